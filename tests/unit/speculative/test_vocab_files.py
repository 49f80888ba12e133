"""What is read beside a model: texts, special tokens, headers; what is written; the paper's numbers from headers."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from remnant.errors import ConfigError
from remnant.speculative.vocab_checkpoint import read_checkpoint, target_bytes, trimmed_map
from remnant.speculative.vocab_counts import Tokens, count_tokens, read_prompts, read_tokens, windows
from remnant.speculative.vocab_map import VocabMap
from remnant.speculative.vocab_specials import special_ids
from remnant.speculative.vocab_write import replacing, write_trimmed

V, D = 20, 4


def letters(text: str) -> list[int]:
    return [ord(c) % V for c in text]


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_every_kind_of_file(tmp_path: Path):
    counted = {"ids": [1, 2, 3, 2], "loss_mask": [0, 1, 1, 1]}
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, 2]], dtype=np.uint16))
    save_file(
        {"input_ids": torch.tensor([1, 2, 3, 2]), "loss_mask": torch.tensor([0, 1, 1, 1])}, tmp_path / "a.safetensors"
    )
    write(tmp_path / "a.txt", "abca")
    write(tmp_path / "a.jsonl", json.dumps({"text": "ab"}) + "\n\n" + json.dumps(counted) + "\n[9]\n")
    seen: list[tuple[int, int]] = []

    def count(name: str) -> dict[int, int]:
        texts = read_tokens(tmp_path / name, letters, V, lambda done, total, _: seen.append((done, total)))
        found = count_tokens(texts, V)
        assert found.dtype == torch.int64
        return {int(i): int(found[i]) for i in found.nonzero()}

    assert count("a.npy") == {1: 1, 2: 2, 3: 1}
    assert count("a.safetensors") == {2: 2, 3: 1}
    assert count("a.txt") == {97 % V: 2, 98 % V: 1, 99 % V: 1}
    assert count("a.jsonl") == {97 % V: 1, 98 % V: 1, 2: 2, 3: 1, 9: 1}
    assert seen[-1][0] == seen[-1][1]


def test_a_long_text_is_read_in_parts(tmp_path: Path):
    text = "some words, and more of them\n" * 9000
    parts = list(read_tokens(write(tmp_path / "a.txt", text), letters, V))
    assert len(parts) > 1
    assert torch.cat([part.ids for part in parts]).tolist() == letters(text)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.txt", None, "no file"),
        ("a.csv", "1,2", "of no kind that holds tokens"),
        ("a.txt", b"\xff\xfe\xff", "not UTF-8"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.jsonl", '{"ids": [1]}\n{"words": 1}', "line 2 holds neither text nor ids"),
        ("a.jsonl", '{"ids": ["1"]}', "line 1 holds neither"),
        ("a.jsonl", '"words"', "line 1 holds neither"),
        ("a.jsonl", '{"ids": [1, 2], "loss_mask": [1]}', "1 marks for 2 ids"),
        ("a.jsonl", '{"ids": [1, 20]}', "token ids from 1 to 20; accepted: 0 to 19"),
        ("a.jsonl", '{"ids": [-1]}', "token ids from -1"),
        ("a.jsonl", '{"ids": [true]}', "line 1 holds neither"),
        ("a.jsonl", '{"ids": [99999999999999999999]}', "line 1 holds neither"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", '{"text": "\\ud800"}', "line 1 is no text"),
        ("a.npy", "text", "not an array of numbers"),
        ("a.safetensors", "text", "not a safetensors file"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: Any, said: str):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=said):
        list(read_tokens(tmp_path / name, letters, V))


def test_other_refusals(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.array([0.5]))
    with pytest.raises(ConfigError, match="holds float64; accepted: integers"):
        list(read_tokens(tmp_path / "a.npy", None, V))
    np.save(tmp_path / "b.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ConfigError, match="not an array of numbers"):
        list(read_tokens(tmp_path / "b.npy", None, V))
    with pytest.raises(ConfigError, match="there is no tokenizer"):
        list(read_tokens(write(tmp_path / "a.txt", "x"), None, V))
    (tmp_path / "c.txt").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_prompts(tmp_path / "c.txt", letters, V)
    with pytest.raises(ConfigError, match="no prompt"):
        read_prompts(write(tmp_path / "b.txt", "\n\n"), letters, V)


def test_prompts_and_windows(tmp_path: Path):
    prompts = read_prompts(write(tmp_path / "a.txt", "ab\n\nc\n"), letters, V)
    assert [prompt.ids.tolist() for prompt in prompts] == [letters("ab"), letters("c")]
    parts = list(windows([Tokens(torch.arange(5), torch.arange(5) > 2)], 2))
    assert [part.ids.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert [part.chosen().tolist() for part in parts] == [[], [3], [4]]


def test_special_tokens(tmp_path: Path):
    """Ends and beginnings, what templates write, and additional ones; no reserved token that nothing uses."""
    write(tmp_path / "config.json", {"bos_token_id": 1, "eos_token_id": [2, 99]})
    write(tmp_path / "generation_config.json", {"eos_token_id": [2, 3], "pad_token_id": 17})
    added = {4: "<|user|>", 5: "<|reserved|>", 6: "<tool_call>", 7: "<mask>", 8: "<image>"}
    write(
        tmp_path / "tokenizer.json",
        {"added_tokens": [{"id": i, "content": text, "special": True} for i, text in added.items()]},
    )
    config = {
        "chat_template": "{{'<|user|>'}}",
        "extra_special_tokens": {"image_token": "<image>"},
        "pad_token": "<mask>",
    }
    write(tmp_path / "tokenizer_config.json", config)
    write(tmp_path / "chat_template.jinja", "{% if tools %}<tool_call>{% endif %}")
    found = special_ids(tmp_path, V)
    assert list(found) == [1, 2, 3, 4, 6, 8]
    assert found[3] == "eos_token_id of generation_config.json"
    assert "chat template" in found[6]
    assert special_ids(tmp_path / "nothing", V) == {}


def causal(folder: Path, tied: bool = False, shards: bool = False, bias: bool = False, **config: Any) -> Path:
    """A folder that looks like a causal model's."""
    source = torch.Generator().manual_seed(0)
    weights = {"model.embed_tokens.weight": torch.randn(V, D, generator=source), "model.norm.weight": torch.ones(D)}
    if not tied:
        weights["lm_head.weight"] = torch.randn(V, D, generator=source)
    if bias:
        weights["lm_head.bias"] = torch.randn(V, generator=source)
    base = {"architectures": ["LlamaForCausalLM"], "vocab_size": V, "tie_word_embeddings": tied, "eos_token_id": 7}
    write(folder / "config.json", {**base, **config})
    if not shards:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    where = {name: f"model-{i}.safetensors" for i, name in enumerate(weights)}
    for name, file in where.items():
        save_file({name: weights[name]}, folder / file)
    write(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": where})
    return folder


def eagle(folder: Path, rows: int = V, **tables: torch.Tensor) -> Path:
    """A folder that looks like an EAGLE-3 drafter's."""
    config = {"architectures": ["LlamaForCausalLMEagle3"], "vocab_size": V, "draft_vocab_size": rows}
    write(folder / "config.json", config)
    weights = {"fc.weight": torch.ones(D, D), "lm_head.weight": torch.arange(rows * D).float().view(rows, D)}
    save_file({**weights, **tables}, folder / "model.safetensors")
    return folder


def trimmed(folder: Path, keep: list[int], out: Path) -> dict[str, torch.Tensor]:
    checkpoint = read_checkpoint(folder)
    with replacing(out, folder) as place:
        write_trimmed(checkpoint, VocabMap.from_ids(keep, checkpoint.rows), place, {"k": len(keep)})
    names = sorted(path.name for path in out.glob("*.safetensors"))
    return {key: x for name in names for key, x in load_file(out / name).items()}


@pytest.mark.parametrize(
    "options", [{}, {"tied": True}, {"shards": True}, {"tied": True, "shards": True}, {"bias": True}]
)
def test_a_trimmed_causal_model(tmp_path: Path, options: dict[str, bool]):
    folder = causal(tmp_path / "in", **options)
    write(folder / "tokenizer.json", {"added_tokens": []})
    (folder / "old.bin").write_bytes(b"weights of another format")
    keep, before = [1, 7, 19], load_file(folder / "model.safetensors") if not options.get("shards") else None
    found = trimmed(folder, keep, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["RemnantTrimmedLlamaForCausalLM"]
    assert (config["draft_vocab_size"], config["vocab_size"], config["tie_word_embeddings"]) == (3, V, False)
    assert config["remnant_trim"] == {"k": 3}
    rows = found["model.embed_tokens.weight"] if options.get("tied") else None
    if before is not None:
        rows = before.get("lm_head.weight", before["model.embed_tokens.weight"])
        assert torch.equal(found["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    if rows is not None:
        assert torch.equal(found["lm_head.weight"], rows[keep])
    if options.get("bias"):
        assert before is not None
        assert torch.equal(found["lm_head.bias"], before["lm_head.bias"][keep])
    assert trimmed_map(tmp_path / "out").keep.tolist() == keep
    assert (tmp_path / "out/tokenizer.json").is_file()
    assert (tmp_path / "out").stat().st_mode == folder.stat().st_mode
    assert not (tmp_path / "out/old.bin").exists()
    if options.get("shards"):
        index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(found)
        assert index["metadata"]["total_size"] == sum(x.numel() * x.element_size() for x in found.values())


def test_all_of_v_drops_the_tables(tmp_path: Path):
    found = trimmed(eagle(tmp_path / "in", d2t=torch.zeros(V, dtype=torch.int64)), list(range(V)), tmp_path / "out")
    assert set(found) == {"fc.weight", "lm_head.weight"}
    assert json.loads((tmp_path / "out/config.json").read_text())["draft_vocab_size"] == V
    same = trimmed(causal(tmp_path / "causal", tied=True), list(range(V)), tmp_path / "same")
    assert set(same) == {"model.embed_tokens.weight", "model.norm.weight"}
    assert json.loads((tmp_path / "same/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_trimming_again_composes(tmp_path: Path):
    once = trimmed(eagle(tmp_path / "in"), [2, 3, 11, 19], tmp_path / "once")
    assert once["d2t"].tolist() == [2, 2, 9, 16]
    assert once["t2d"].nonzero()[:, 0].tolist() == [2, 3, 11, 19]
    twice = trimmed(tmp_path / "once", [0, 2], tmp_path / "twice")
    assert twice["d2t"].tolist() == [2, 10]
    assert twice["lm_head.weight"][:, 0].tolist() == [2.0 * D, 11.0 * D]
    assert trimmed_map(tmp_path / "twice").keep.tolist() == [2, 11]
    config = json.loads((tmp_path / "twice/config.json").read_text())
    assert (config["draft_vocab_size"], config["architectures"]) == (2, ["LlamaForCausalLMEagle3"])
    trimmed(causal(tmp_path / "c"), [0, 1, 7], tmp_path / "c1")
    trimmed(tmp_path / "c1", [1, 2], tmp_path / "c2")
    config = json.loads((tmp_path / "c2/config.json").read_text())
    assert config["architectures"] == ["RemnantTrimmedLlamaForCausalLM"]
    assert trimmed_map(tmp_path / "c2").keep.tolist() == [1, 7]


def repacked(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    return folder


GOOD = VocabMap.from_ids([1, 3, 5], V).to_tensors()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: f, "no such folder"),
        (lambda f: write(f / "config.json", {"vocab_size": V}).parent, "without 'architectures'"),
        (lambda f: causal(f, architectures=["EagleLlamaForCausalLM"]), "takes no smaller vocabulary"),
        (lambda f: causal(f, architectures=["BertModel"]), "takes no smaller vocabulary"),
        (lambda f: causal(f, vocab_size=None), "vocab_size None"),
        (lambda f: causal(f, vocab_size=V + 1), "a head of 20 rows"),
        (lambda f: causal(f, draft_vocab_size=5), "draft_vocab_size 5"),
        (lambda f: repacked(causal(f), lambda w: w.__delitem__("lm_head.weight")), "no head"),
        (lambda f: repacked(eagle(f), lambda w: w.__delitem__("lm_head.weight")), "copy the target's head"),
        (lambda f: repacked(causal(f), lambda w: w.update({"lm_head.weight": torch.zeros(V, D).to(torch.int8)})), "I8"),
        (
            lambda f: repacked(
                causal(f), lambda w: w.update({"lm_head.qweight": w.pop("lm_head.weight").to(torch.int32)})
            ),
            "a quantised head, lm_head.qweight",
        ),
        (lambda f: repacked(causal(f), lambda w: w.update({"lm_head.bias": torch.zeros(3)})), r"a bias of \[3\]"),
        (lambda f: eagle(f, 3), "without the table 'd2t'"),
        (lambda f: eagle(f, 3, d2t=torch.zeros(3, dtype=torch.int64)), "confirms"),
        (lambda f: eagle(f, 3, **{**GOOD, "t2d": torch.ones(V, dtype=torch.bool)}), "t2d marks 20"),
        (lambda f: eagle(f, 3, d2t=torch.tensor([5, 2, 1]), t2d=GOOD["t2d"]), "kept ids 5, 3"),
        (lambda f: eagle(f, 2, **GOOD), "a map of 3 tokens for a head of 2 rows"),
        (lambda f: eagle(f, 3, d2t=GOOD["d2t"], t2d=GOOD["t2d"][:10]), r"accepted: bool \[20\]"),
    ],
)
def test_drafters_that_are_refused(tmp_path: Path, make: Callable[[Path], Path], said: str):
    with pytest.raises(ConfigError, match=said):
        read_checkpoint(make(tmp_path / "in"))


def test_weights_in_pickles_are_refused(tmp_path: Path):
    folder = causal(tmp_path / "in")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"a format that can run code; accepted: .*safetensors"):
        read_checkpoint(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ConfigError, match="no weights"):
        read_checkpoint(folder)


def test_an_untrimmed_model_has_no_map(tmp_path: Path):
    with pytest.raises(ConfigError, match="keeps all 20 tokens"):
        trimmed_map(causal(tmp_path / "in"))


def test_places_that_are_not_written_to(tmp_path: Path):
    folder = causal(tmp_path / "in")
    for out, said in ((folder, "the model itself"), (tmp_path, "the model itself")):
        with pytest.raises(ConfigError, match=said), replacing(out, folder, force=True):
            pass
    other = tmp_path / "photos"
    write(other / "one.txt", "precious")
    with pytest.raises(ConfigError, match="there already"), replacing(other, folder):
        pass
    with pytest.raises(ConfigError, match="is no checkpoint"), replacing(other, folder, force=True):
        pass
    assert (other / "one.txt").read_text() == "precious"


def test_an_error_leaves_what_was_there(tmp_path: Path):
    folder, out = causal(tmp_path / "in"), causal(tmp_path / "out")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(OSError, match="No such file"), replacing(out, folder, force=True) as place:
        write_trimmed(replace(read_checkpoint(folder), folder=tmp_path / "gone"), VocabMap.from_ids([1], V), place, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert read_checkpoint(out).vocab_size == V
    with replacing(out, folder, force=True) as place:
        write(place / "config.json", {})
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def hole(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Path:
    """A checkpoint of any size whose data is a hole in the file."""
    write(folder / "config.json", config)
    header, end = dict[str, Any](), 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
    os.truncate(folder / "model.safetensors", 8 + len(text) + end)
    return folder


def test_the_numbers_of_llama_3_8b(tmp_path: Path):
    """525 M of 819 M parameters are the head; 32,000 rows leave 425 M; 1.64 GB a step become 0.85; c .102 -> .053."""
    d, inner, kv, v = 4096, 14336, 1024, 128256
    layer = {
        "self_attn.q_proj.weight": (d, 2 * d), "self_attn.k_proj.weight": (kv, 2 * d),
        "self_attn.v_proj.weight": (kv, 2 * d), "self_attn.o_proj.weight": (d, d), "mlp.gate_proj.weight": (inner, d),
        "mlp.up_proj.weight": (inner, d), "mlp.down_proj.weight": (d, inner),
    }  # fmt: skip
    shapes = {"fc.weight": (d, 3 * d), "embed_tokens.weight": (v, d), "lm_head.weight": (v, d)}
    shapes |= {f"midlayer.{name}": shape for name, shape in layer.items()}
    config = {"architectures": ["LlamaForCausalLMEagle3"], "vocab_size": v, "draft_vocab_size": v}
    checkpoint = read_checkpoint(hole(tmp_path / "eagle", config, shapes))
    target = {
        "vocab_size": v, "hidden_size": d, "intermediate_size": inner, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "architectures": ["LlamaForCausalLM"],
    }  # fmt: skip
    write(tmp_path / "target/config.json", target)
    cost = checkpoint.cost(target_bytes(tmp_path / "target", v, checkpoint.element))
    assert round(v * cost.row / 2e6) == 525
    assert [round(cost.step(k) / 2e6) for k in (v, 32000)] == [819, 425]
    assert [round(cost.step(k) / 1e9, 2) for k in (v, 32000)] == [1.64, 0.85]
    assert [round(cost.ratio(k), 3) for k in (v, 32000)] == [0.102, 0.053]


def test_targets_that_do_not_match(tmp_path: Path):
    folder = causal(tmp_path / "in")
    assert target_bytes(folder, V, 4) == 4 * (2 * V * D + D)
    with pytest.raises(ConfigError, match="a target of 20 tokens, a drafter of 21; accepted: one vocabulary"):
        target_bytes(folder, 21, 4)


def test_a_tied_head_costs_memory_and_saves_bandwidth(tmp_path: Path):
    tied, plain = (read_checkpoint(causal(tmp_path / str(t), tied=t)).cost() for t in (True, False))
    assert tied.step(V) == plain.step(V) == 4 * (V * D + D)
    assert tied.step(5) == 4 * (5 * D + D)
