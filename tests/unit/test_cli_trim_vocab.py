"""`remnant trim-vocab` from the outside: what it writes, what it prints, what it refuses before it reads a weight."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="pip install 'remnant[hf]'")

from safetensors.torch import load_file, save_file  # noqa: E402

from remnant.cli import main  # noqa: E402
from remnant.speculative.vocab_checkpoint import trimmed_map  # noqa: E402

V = 64


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random target `target`, a smaller random drafter `draft`, an EAGLE-3 drafter `eagle`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models")
    shape: Any = {
        "vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.5, "eos_token_id": 63, "bos_token_id": 62,
        "tie_word_embeddings": False,
    }  # fmt: skip
    for name, layers, width in (("target", 3, 32), ("draft", 1, 16)):
        torch.manual_seed(layers)
        LlamaForCausalLM(LlamaConfig(**{**shape, "hidden_size": width}, num_hidden_layers=layers)).save_pretrained(
            folder / name
        )
    from remnant.speculative.eagle3 import Eagle3
    from remnant.speculative.eagle3_shape import Eagle3Shape

    eagle = {**shape, "architectures": ["LlamaForCausalLMEagle3"], "hidden_size": 32, "draft_vocab_size": V}
    (folder / "eagle").mkdir()
    (folder / "eagle/config.json").write_text(json.dumps(eagle))
    torch.manual_seed(0)
    weights = {name: x * 4 for name, x in Eagle3(Eagle3Shape.from_config(eagle)).state_dict().items()}
    save_file(weights, folder / "eagle/model.safetensors")
    return folder


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    """Ids that fall off in frequency: 0 most often."""
    r = np.random.default_rng(0)
    np.save(tmp_path / "tokens.npy", np.minimum(r.geometric(0.08, 6000) - 1, 61))
    return str(tmp_path / "tokens.npy")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    code = main(["trim-vocab", *map(str, arguments), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (code == 0) is ("error" not in found), found
    return found


def test_the_line_of_the_contract(capsys: Any, models: Path, tokens: str, tmp_path: Path):
    out = tmp_path / "out"
    found = run(capsys, models / "draft", "--tokens", tokens, "--k", 20, "--out", out)
    counts = np.bincount(np.load(tokens), minlength=V)
    best = sorted([62, 63, *np.argsort(-counts, kind="stable")[:18]])
    assert trimmed_map(out).keep.tolist() == best
    assert load_file(out / "model.safetensors")["lm_head.weight"].shape == (20, 16)
    assert (found["k"], found["rows_before"], found["kind"], found["always"]) == (20, V, "causal", 2)
    assert found["coverage"] == pytest.approx(counts[best].sum() / counts.sum())
    assert found["acceptance"]["whole_is"] == "assumed"
    assert found["mbsu"] == {"before": None, "after": None}
    assert found["hosts"] == ["hf", "vllm"]
    assert f'"model": "{out}"' in found["serve"]
    report = json.loads((out / "vocab_trim.json").read_text())
    assert report["table"] == found["table"]
    assert (out / "vocab_trim.png").read_bytes()[:4] == b"\x89PNG"
    config = json.loads((out / "config.json").read_text())
    assert config["remnant_trim"]["acceptance"]["bound"] == found["acceptance"]["bound"]


def test_figures_against_a_target(capsys: Any, models: Path, tokens: str, tmp_path: Path):
    """Cost from headers, acceptance measured, the best k of the table chosen."""
    found = run(
        capsys, models / "draft", "--tokens", tokens, "--out", tmp_path / "out", "--target", models / "target",
        "--temperature", 1, "--no-chart",
    )  # fmt: skip
    table = found["table"]
    size = sum(x.numel() * 4 for x in load_file(models / "target/model.safetensors").values())
    assert found["target_bytes"] == size
    assert found["acceptance"]["whole_is"] == "measured"
    assert found["acceptance"]["positions"] > 400
    assert found["k"] == max(table, key=lambda row: (row["mbsu"], -row["k"]))["k"]
    for row in table:
        assert row["acceptance_measured"] >= row["acceptance_bound"] - 1e-6
        assert row["cost"] == pytest.approx(row["step_bytes"] / size)
        a = row["acceptance_measured"]
        assert row["mbsu"] == pytest.approx((1 + a + a**2 + a**3) / (3 * row["cost"] + 1))
    assert table[-1]["k"] == V
    assert table[-1]["acceptance_measured"] == pytest.approx(found["acceptance"]["whole"])
    assert found["chart"] is None
    assert not (tmp_path / "out/vocab_trim.png").exists()


def test_answers_of_the_target_are_counted(capsys: Any, models: Path, tmp_path: Path):
    """Greedy answers: only what the target wrote counts, the prompts do not."""
    from transformers import AutoModelForCausalLM

    prompts = [[5, 6, 7], [9, 8]]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"ids": ids}) + "\n" for ids in prompts))
    options = ["--generate", tmp_path / "prompts.jsonl", "--target", models / "target", "--max-new", 12, "--no-chart"]
    found = run(capsys, models / "draft", *options, "--k", 30, "--out", tmp_path / "out", "--held-out", 0)
    model: Any = AutoModelForCausalLM.from_pretrained(models / "target")
    wanted = np.zeros(V, dtype=int)
    for ids in prompts:
        answer = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0, len(ids) :]
        np.add.at(wanted, answer.numpy(), 1)
    assert found["texts"][0]["tokens"] == wanted.sum()
    assert set(wanted.nonzero()[0]) <= set(trimmed_map(tmp_path / "out").keep.tolist())


def test_objective_acceptance(capsys: Any, models: Path, tokens: str, tmp_path: Path):
    options = ["--tokens", tokens, "--target", models / "target", "--temperature", 1, "--no-chart", "--k", 16]
    rows = {}
    for objective in ("counts", "acceptance"):
        out = tmp_path / objective
        found = run(capsys, models / "draft", *options, "--objective", objective, "--out", out)
        rows[objective] = next(row for row in found["table"] if row["k"] == 16)
    # These ids say nothing of what a random target writes; the models themselves do.
    assert rows["acceptance"]["acceptance_measured"] > rows["counts"]["acceptance_measured"]


def test_several_texts_with_floors(capsys: Any, models: Path, tmp_path: Path):
    np.save(tmp_path / "a.npy", np.repeat(np.arange(30), 20))
    np.save(tmp_path / "b.npy", np.repeat(np.arange(40, 50), [100, 50, 25, 12, 6, 3, 1, 1, 1, 1]))
    options = ["--tokens", f"a={tmp_path}/a.npy", "--tokens", f"b={tmp_path}/b.npy:95%", "--no-chart"]
    found = run(capsys, models / "draft", *options, "--k", 20, "--out", tmp_path / "out")
    texts = {text["name"]: text for text in found["texts"]}
    assert texts["b"]["floor"] == 0.95
    assert texts["b"]["coverage"] >= 0.95
    assert texts["a"]["coverage"] < 0.5
    error = run(capsys, models / "draft", *options, "--k", 4, "--out", tmp_path / "no")["error"]
    assert "for the floors b 0.95; accepted: at least" in error["message"]
    assert not (tmp_path / "no").exists()


def test_eagle3_again_and_whole(capsys: Any, models: Path, tokens: str, tmp_path: Path):
    options = ["--tokens", tokens, "--no-chart"]
    found = run(capsys, models / "eagle", *options, "--k", 30, "--out", tmp_path / "once")
    assert (found["kind"], found["hosts"]) == ("eagle3", ["vllm"])
    assert '"method": "eagle3"' in found["serve"]
    found = run(capsys, tmp_path / "once", *options, "--k", 10, "--out", tmp_path / "twice")
    once, twice = trimmed_map(tmp_path / "once"), trimmed_map(tmp_path / "twice")
    assert set(twice.keep.tolist()) < set(once.keep.tolist())
    assert 63 in twice.keep.tolist()
    counts = np.bincount(np.load(tokens), minlength=V)
    assert found["coverage"] == pytest.approx(counts[twice.keep.numpy()].sum() / counts.sum())
    whole = load_file(models / "eagle/model.safetensors")["lm_head.weight"]
    assert torch.equal(load_file(tmp_path / "twice/model.safetensors")["lm_head.weight"], whole[twice.keep])
    run(capsys, models / "eagle", *options, "--k", V, "--out", tmp_path / "whole")
    assert not {"d2t", "t2d"} & set(load_file(tmp_path / "whole/model.safetensors"))
    error = run(capsys, tmp_path / "once", *options, "--k", 31, "--out", tmp_path / "no")["error"]
    assert "accepted: 1 to the 30 rows of once" in error["message"]


def test_an_eagle3_drafter_is_measured(capsys: Any, models: Path, tokens: str, tmp_path: Path):
    """Acceptance, how far its chains get, the speed-up that follows from that; and it may choose the tokens."""
    options = ["--tokens", tokens, "--target", models / "target", "--temperature", 1, "--no-chart", "--k", 16]
    rows = {}
    for objective in ("counts", "acceptance"):
        out = tmp_path / objective
        found = run(capsys, models / "eagle", *options, "--objective", objective, "--out", out)
        rows[objective] = next(row for row in found["table"] if row["k"] == 16)
        assert found["acceptance"]["whole_is"] == "measured"
        assert found["acceptance"]["steps"] == rows[objective]["acceptance_steps"]
        for row in found["table"]:
            steps = row["acceptance_steps"]
            assert row["acceptance_measured"] >= row["acceptance_bound"] - 1e-6
            assert steps[0] >= steps[1] >= steps[2] > 0
            assert row["mbsu"] == pytest.approx((1 + sum(steps)) / (3 * row["cost"] + 1))
        assert found["table"][-1]["acceptance_measured"] == pytest.approx(found["acceptance"]["whole"])
    assert rows["acceptance"]["acceptance_measured"] > rows["counts"]["acceptance_measured"]
    again = run(capsys, tmp_path / "counts", *options[:-1], 8, "--out", tmp_path / "again")
    assert again["acceptance"]["whole"] == pytest.approx(rows["counts"]["acceptance_measured"])
    assert again["acceptance"]["measured"] < again["acceptance"]["whole"]


def test_replacing(capsys: Any, models: Path, tokens: str, tmp_path: Path):
    options = [models / "draft", "--tokens", tokens, "--no-chart", "--out", tmp_path / "out"]
    run(capsys, *options, "--k", 20)
    error = run(capsys, *options, "--k", 30)["error"]
    assert "there already" in error["message"]
    assert trimmed_map(tmp_path / "out").k == 20
    run(capsys, *options, "--k", 30, "--force")
    assert trimmed_map(tmp_path / "out").k == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tokens.npy"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--k", "0"], "k 0; accepted: 1 to the 64 rows"),
        (["--k", "65"], "k 65; accepted: 1 to the 64 rows"),
        (["--k", "many"], "k 'many'; accepted: a number of tokens, or auto"),
        (["--k", "1"], "k 1 with 2 tokens that are always kept"),
        ([], "k auto without a target"),
        (["--k", "9", "--always", "64"], "always-kept id 64"),
        (["--k", "9", "--always", "word"], "there is no tokenizer"),
        (["--k", "9", "--objective", "luck"], "objective 'luck'; accepted: counts, acceptance"),
        (["--k", "9", "--objective", "acceptance"], "objective acceptance without a target"),
        (["--k", "9", "--acceptance", "2"], "acceptance 2.0; accepted: 0 to 1"),
        (["--k", "9", "--target", "absent"], "no such folder"),
        (["--k", "9", "--generate", "absent.txt"], "--generate without a target"),
        (["--k", "9", "--tokens", "absent.txt"], "no file 'absent.txt'"),
        (["--k", "9", "--always", "-1"], "always-kept id -1"),
        (["--k", "9", "--temperature", "inf"], "temperature inf"),
        (["--k", "9", "--tokenizer", "absent"], "no tokenizer in 'absent'"),
    ],
)
def test_refusals(capsys: Any, models: Path, tokens: str, tmp_path: Path, options: list[str], said: str):
    found = run(capsys, models / "draft", "--tokens", tokens, *options, "--out", tmp_path / "out")
    assert said in found["error"]["message"]
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_a_file(capsys: Any, models: Path, tokens: str, tmp_path: Path):
    (tmp_path / "file").write_text("kept")
    found = run(capsys, models / "draft", "--tokens", tokens, "--k", "9", "--out", tmp_path / "file/deep/out")
    assert f"{str(tmp_path / 'file')!r} is a file" in found["error"]["message"]
    assert (tmp_path / "file").read_text() == "kept"


def test_refusals_read_no_weights(capsys: Any, models: Path, tokens: str, tmp_path: Path):
    """Another vocabulary, a drafter larger than its target, nothing to count: told from headers, before the data."""
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaConfig(
        vocab_size=V + 1, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(small).save_pretrained(tmp_path / "small")
    for name in ("draft", "target"):
        (tmp_path / name).mkdir()
        for path in (models / name).iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
        weights = tmp_path / name / "model.safetensors"
        size = weights.stat().st_size
        head = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
        os.truncate(weights, head)  # the data is gone; reading it would give zeros
        os.truncate(weights, size)
    draft, out = tmp_path / "draft", tmp_path / "out"
    options = ["--k", 9, "--out", out, "--tokens", tokens]
    found = run(capsys, draft, *options, "--target", tmp_path / "small")
    assert "a target of 65 tokens, a drafter of 64" in found["error"]["message"]
    found = run(capsys, tmp_path / "target", *options, "--target", draft)
    assert "a smaller drafter" in found["error"]["message"]
    found = run(capsys, draft, "--k", 9, "--out", out)
    assert "nothing to count" in found["error"]["message"]
    (tmp_path / "eagle").mkdir()
    config = json.loads((models / "eagle/config.json").read_text())
    (tmp_path / "eagle/config.json").write_text(json.dumps({**config, "fc_norm": True}))
    (tmp_path / "eagle/model.safetensors").write_bytes((models / "eagle/model.safetensors").read_bytes())
    found = run(capsys, tmp_path / "eagle", *options, "--target", models / "target")
    assert "an EAGLE-3 drafter with fc_norm True; accepted: false; trim by counts" in found["error"]["message"]
    run(capsys, tmp_path / "eagle", *options, "--target", models / "target", "--held-out", 0, "--no-chart")


def test_text_needs_a_tokenizer_that_fits(capsys: Any, models: Path, tmp_path: Path):
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds

    (tmp_path / "a.txt").write_text("a b b c c c")
    options = ["--tokens", tmp_path / "a.txt", "--k", 4, "--out", tmp_path / "out", "--no-chart"]
    error = run(capsys, models / "draft", *options)["error"]
    assert "there is no tokenizer beside the model; give --tokenizer" in error["message"]
    words = Tokenizer(kinds.WordLevel({"a": 3, "b": 4, "c": 5, "?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "words").mkdir()
    words.save(str(tmp_path / "words/tokenizer.json"))
    run(capsys, models / "draft", *options, "--tokenizer", tmp_path / "words", "--always", "a")
    assert trimmed_map(tmp_path / "out").keep.tolist() == [3, 5, 62, 63]
    words.add_tokens([f"x{i}" for i in range(V)])
    words.save(str(tmp_path / "words/tokenizer.json"))
    error = run(capsys, models / "draft", *options, "--tokenizer", tmp_path / "words", "--force")["error"]
    assert "a tokenizer of 68 tokens, a drafter of 64" in error["message"]


def test_for_people(capsys: Any, models: Path, tokens: str, tmp_path: Path):
    assert (
        main(["trim-vocab", str(models / "draft"), "--tokens", tokens, "--k", "20", "--out", str(tmp_path / "out")])
        == 0
    )
    out = capsys.readouterr().out
    assert "kept     20 of 64 rows" in out
    assert "--speculative-config" in out
