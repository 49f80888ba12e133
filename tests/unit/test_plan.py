"""The plan of a server: hand-computed blocks, what is read from configurations and checkpoints, refusals."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remnant.cli import main
from remnant.cli.plan import parse_size
from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.serving import gone_blocks, kept_tokens, live_blocks, stable_blocks
from remnant.serving.checkpoint import estimated_bytes, find_config, stored_bytes
from remnant.serving.model import Layer, Model, read_config, read_model
from remnant.serving.plan import Memory, Request, element_bytes, plan, size
from remnant.serving.pool import Engine, Eviction, Pool, buckets

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
GEMMA: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 12,
    "sliding_window": 64,
}


def folder(path: Path, config: dict[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def tensors(path: Path, **shapes: tuple[str, list[int], int]) -> None:
    """A safetensors file whose data is a hole: name -> (dtype, shape, bytes)."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, count) in shapes.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + count]}  # type: ignore[dict-item]
        end += count
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.mark.parametrize(
    ("mode", "computed", "prompt", "gone"),
    [
        ("prompt", 599, 600, 0),
        ("prompt", 600, 600, 14),
        ("prompt", 700, 600, 14),
        ("prompt", 100, 100, 0),
        ("prompt", 160, 160, 1),
        ("prompt", 159, 159, 0),
        ("stream", 159, 600, 0),
        ("stream", 160, 600, 1),
        ("stream", 700, 600, 17),
    ],
)
def test_gone_blocks(mode: Any, computed: int, prompt: int, gone: int):
    assert gone_blocks(mode, computed, prompt, 128, 32) == gone


def test_counts_belong_together():
    assert kept_tokens(600, 128, 32) == 600 - 14 * 32
    assert stable_blocks("prompt", 600, 128, 32) == 14
    assert stable_blocks("prompt", 100, 128, 32) is None
    assert stable_blocks("stream", 600, 128, 32) == 0
    assert live_blocks(128, 100, 32) == 10  # 260 tokens are 9 blocks, and one that begins or ends in the middle
    for given in ({"prompt_len": 0}, {"budget": 0}, {"block_size": 0}, {"mode": "x"}):
        with pytest.raises(ConfigError):
            kept_tokens(**{"prompt_len": 600, "budget": 128, "block_size": 32, **given})  # type: ignore[arg-type]


def test_llama():
    model = read_config(LLAMA)
    assert model.layers == (Layer(8, 256),) * 32
    assert model.kinds() == {"full": 32}
    assert sum(layer.token_bytes(2) for layer in model.layers) == 131072  # 2 * 32 layers * 8 heads * 128 * 2 bytes
    assert model.layers[0].token_bytes(2, tp=4) == 2 * 256 * 2
    assert model.layers[0].token_bytes(2, tp=16) == 1 * 256 * 2  # fewer heads than devices: repeated
    assert element_bytes(model) == ("bfloat16", 2)


@pytest.mark.parametrize(
    ("more", "kinds"),
    [
        ({"layer_types": ["sliding_attention"] * 10 + ["full_attention"] * 2}, {"sliding": 10, "full": 2}),
        ({"sliding_window_pattern": 6}, {"sliding": 10, "full": 2}),
        ({"model_type": "gemma3_text"}, {"sliding": 10, "full": 2}),
        ({"model_type": "gemma2"}, {"sliding": 6, "full": 6}),
        ({"model_type": "mistral"}, {"sliding": 12}),
        ({"model_type": "mistral", "sliding_window": None}, {"full": 12}),
        ({"model_type": "qwen2", "use_sliding_window": False}, {"full": 12}),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 9}, {"full": 9, "sliding": 3}),
        ({"layer_types": ["linear_attention"] * 9 + ["full_attention"] * 3}, {"full": 3, "linear_attention": 9}),
        (
            {"layer_types": ["chunked_attention", "full_attention"] * 6, "attention_chunk_size": 128},
            {"chunked": 6, "full": 6},
        ),
    ],
)
def test_kinds_of_layers(more: dict[str, Any], kinds: dict[str, int]):
    assert read_config({**GEMMA, **more}).kinds() == kinds


def test_text_part_of_a_multimodal_model():
    model = read_config(
        {"model_type": "gemma3", "dtype": "bfloat16", "text_config": GEMMA | {"model_type": "gemma3_text"}}
    )
    assert model.kinds() == {"sliding": 10, "full": 2}
    assert model.dtype == "bfloat16"


def test_older_names_and_one_head_for_all():
    model = read_config({"n_layer": 2, "n_head": 8, "n_embd": 64, "multi_query": True})
    assert model.layers == (Layer(1, 16),) * 2


def test_layers_with_a_shape_of_their_own():
    model = read_config({**GEMMA, "model_type": "gemma3_text", "global_head_dim": 32, "num_global_key_value_heads": 1})
    assert {layer.window: (layer.heads, layer.dim) for layer in model.layers} == {"sliding": (2, 32), "none": (1, 64)}


@pytest.mark.parametrize(
    "more", [{"kv_lora_rank": 512}, {"num_kv_shared_layers": 4}, {"is_encoder_decoder": True}], ids=str
)
def test_models_that_cannot_be_evicted_from(more: dict[str, Any]):
    with pytest.raises(UnsupportedPolicy, match="model"):
        read_config({**LLAMA, **more})


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads"])
def test_a_configuration_that_lacks_a_number(key: str):
    with pytest.raises(ConfigError, match=f"has no {key}"):
        read_config({name: value for name, value in LLAMA.items() if name != key})


def test_defaults_of_a_class_come_from_transformers(tmp_path: Path):
    """As the file of Gemma 3 4B: heads are left to the class."""
    pytest.importorskip("transformers", reason="pip install 'remnant[hf]'")
    short = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024}
    model = read_model(str(folder(tmp_path / "m", {"model_type": "gemma3", "text_config": short})))
    assert model.kinds() == {"sliding": 29, "full": 5}
    assert model.layers[0] == Layer(4, 512, "sliding", 1024)


def test_where_a_model_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    here = folder(tmp_path / "m", LLAMA)
    assert find_config(str(here)) == find_config(str(here / "config.json")) == here / "config.json"
    with pytest.raises(ConfigError, match=r"org/name.*hf download org/name config\.json"):
        find_config("org/name")
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    folder(snapshot, LLAMA)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    assert find_config("org/name") == snapshot / "config.json"
    (here / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="no JSON object"):
        read_model(str(here))


def test_weights_from_headers(tmp_path: Path):
    assert stored_bytes(tmp_path, 2) is None
    tensors(tmp_path / "model.safetensors", a=("F32", [10, 10], 400), b=("I8", [50], 50))
    tensors(tmp_path / "consolidated.safetensors", a=("F32", [10, 10], 400))
    assert stored_bytes(tmp_path, 2) == 250  # a is loaded in half precision, b as it is
    assert stored_bytes(tmp_path, 4) == 450


def test_weights_from_an_index(tmp_path: Path):
    index = {"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}, "metadata": {"total_size": 77}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert stored_bytes(tmp_path, 2) == 77
    tensors(tmp_path / "x-1.safetensors", a=("BF16", [3], 6))
    tensors(tmp_path / "x-2.safetensors", b=("BF16", [4], 8))
    assert stored_bytes(tmp_path, 2) == 14


def test_estimate_of_weights_is_exact_for_a_llama():
    """8 030 261 248 parameters, as published for this shape."""
    assert estimated_bytes(LLAMA, 2) == 2 * 8_030_261_248
    with pytest.raises(ConfigError, match="--weights-bytes"):
        estimated_bytes({"hidden_size": 8}, 2)


def pool(layers: list[Layer], eviction: Eviction | None = None, memory: int = 2**20, **engine: Any) -> Pool:
    server = Engine(**{"block_size": 16, "element": 2, "chunk": 100, "overlap": 1, **engine})
    return Pool(buckets(layers, server, eviction), server, memory)


def test_one_kind_of_layers_shares_one_table():
    found = pool([Layer(2, 32)] * 4)
    assert (found.tables, found.block_bytes, found.blocks) == ([1], 4 * 2 * 32 * 2 * 16, 128)


@pytest.mark.parametrize(
    ("full", "sliding", "tables", "width"),
    [(2, 10, [5, 1], 2), (12, 13, [1, 1], 13), (4, 6, [2, 1], 4), (6, 6, [1, 1], 6)],
)
def test_two_kinds_share_the_pool(full: int, sliding: int, tables: list[int], width: int):
    found = pool([Layer(2, 32, "sliding", 64)] * sliding + [Layer(2, 32)] * full)
    assert (found.tables, found.block_bytes) == (tables, width * 2 * 32 * 2 * 16)


def test_prompt_mode_peaks_and_falls():
    """600 tokens are 38 blocks of 16; 29 go at budget 128; 40 new tokens end in block 40."""
    use = pool([Layer(2, 32)] * 4, Eviction("prompt", (128,))).use(600, 640)
    assert (use.peak_blocks, use.steady_blocks, use.demanded_blocks) == (38, 40 - 29, 40)
    assert use.requests == 1 + (127 - 38) // 11
    assert use.decoding == 127 // 11
    assert use.concurrency == 128 / 40


def test_stream_mode_stays_small():
    """A chunk of 100 on top of budget 128 and what does not fill a block; decoding holds 9 or 10 blocks."""
    use = pool([Layer(2, 32)] * 4, Eviction("stream", (128,))).use(600, 900)
    assert use.peak_blocks == max(
        -(-min(s + 100, 600) // 16) - gone_blocks("stream", s, 600, 128, 16) for s in range(0, 600, 100)
    )
    assert use.peak_blocks <= live_blocks(128, 100, 16) == use.demanded_blocks
    assert use.steady_blocks == 9


def test_overlapping_steps_free_later():
    sync = pool([Layer(2, 32)], Eviction("stream", (128,))).use(600, 900)
    overlapping = pool([Layer(2, 32)], Eviction("stream", (128,)), overlap=2).use(600, 900)
    assert overlapping.peak_blocks > sync.peak_blocks


def test_sliding_and_chunked_layers_free_by_themselves():
    sliding = pool([Layer(2, 32, "sliding", 64)]).use(600, 640)
    assert sliding.steady_blocks == 5  # 64 tokens, begun in the middle of a block
    assert sliding.demanded_blocks == -(-(63 + 100) // 16) + 1
    chunked = pool([Layer(2, 32, "chunked", 128)]).use(600, 640)
    assert chunked.steady_blocks == 8  # tokens 512 to 639


def test_a_budget_for_each_layer_is_a_table_for_each():
    found = pool([Layer(2, 32)] * 2, Eviction("prompt", (192, 64)))
    assert found.tables == [1, 1]
    assert found.use(600, 601).steady_blocks == (38 - 25) + (38 - 33)


def test_layers_with_smaller_pages_have_longer_blocks():
    found = pool([Layer(4, 32), Layer(2, 32, "sliding", 64)])
    assert [part.block_size for part in found.parts] == [16, 32]


def planned(model: Model | None = None, budget: int = 1024, mode: Any = "prompt", **changes: Any) -> dict[str, Any]:
    request = Request(changes.pop("context", 32768), changes.pop("new", 512))
    memory = Memory(**{"total": 80 * 2**30, "weights": 16 * 2**30, "overhead": 2**30, **changes.pop("memory", {})})
    return plan(model or read_config(LLAMA), Engine(16, 2, **changes), memory, request, budget, mode)


def test_plan_in_numbers():
    """72 - 16 - 1 = 55 GiB make 28160 blocks of 2 MiB; a request of 33280 tokens takes 2080 of them, or 96."""
    found = planned()
    assert found["memory"]["for_cache"] == 55 * 2**30
    assert found["without"]["blocks"] == 28160
    assert found["without"]["requests"] == found["without"]["decoding"] == 28159 // 2080
    assert found["with"]["requests"] == 1 + (28159 - 2048) // 96
    assert found["with"]["decoding"] == 28159 // 96
    assert found["request"]["prompt_kept"] == 1024
    assert json.loads(json.dumps(found)) == found


def test_plan_keeps_to_known_memory():
    found = planned(context=2048, memory={"given": 2**30})
    assert found["with"]["blocks"] == 512
    assert not any("guess" in note for note in found["notes"])


def test_devices_that_share_a_layer_hold_more():
    one, two = planned(), planned(tp=2)
    assert two["with"]["blocks"] == 2 * one["with"]["blocks"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 1024, "new": 5000}, "nothing is saved; accepted: at most 1008"),
        ({"budget": 10, "context": 16, "new": 0}, "nothing is saved; a smaller budget"),
        ({"memory": {"total": 16 * 2**30}}, r"2\.60 GiB or 2791728743 bytes are missing"),
        ({"memory": {"given": 2**30}}, "too small for one request of 33280 tokens, which needs 2080"),
        ({"tp": 3}, "does not divide 8 KV heads"),
        ({"budget": 0}, "budget=0"),
    ],
    ids=str,
)
def test_plans_that_cannot_be(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        planned(**changes)


def test_a_model_without_full_attention_has_nothing_to_evict():
    with pytest.raises(ConfigError, match="no full-attention layer"):
        planned(read_config({**GEMMA, "model_type": "mistral"}))


def test_notes_say_what_is_not_counted():
    kinds = ["linear_attention"] * 9 + ["full_attention"] * 3
    notes = planned(read_config({**GEMMA, "sliding_window": None, "layer_types": kinds}))["notes"]
    assert any("9 layers of kind linear_attention are not counted" in note for note in notes)
    notes = planned(read_config({**GEMMA, "model_type": "gemma3_text"}))["notes"]
    assert any("10 sliding layers evict nothing" in note for note in notes)
    notes = planned(context=200_000)["notes"]
    assert any("more than the 131072" in note for note in notes)


def test_stream_mode_fits_where_a_whole_prompt_does_not():
    found = planned(context=131072, new=0, mode="stream", memory={"given": 4 * 2**30})
    assert found["without"]["requests"] == 0
    assert found["gain"]["requests"] is None
    assert found["with"]["requests"] >= 1


@pytest.mark.parametrize(
    ("text", "count"),
    [("80GiB", 80 * 2**30), ("80 GB", 80 * 10**9), ("24G", 24 * 2**30), ("1.5MiB", 3 * 2**19), ("1000000", 10**6)],
)
def test_sizes(text: str, count: int):
    assert parse_size(text, "x") == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "80 gigs"])
def test_no_sizes(text: str):
    with pytest.raises(ConfigError, match="accepted: bytes"):
        parse_size(text, "x")


def test_sizes_for_people():
    assert [size(n) for n in (512, 1536, 3 * 2**29)] == ["512 B", "1.50 KiB", "1.50 GiB"]


def arguments(path: Path, *more: str) -> list[str]:
    return ["plan", "--model", str(path), "--budget", "1024", "--context", "32768", "--gpu-memory", "80GiB", *more]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    here = folder(tmp_path / "m", LLAMA)
    assert main(arguments(here, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["weights_from"] == "estimate"
    assert found["model"]["dtype"] == "bfloat16"
    assert found["with"]["requests"] > 15 * found["without"]["requests"]
    settings = json.loads(found["flags"][found["flags"].index("--additional-config") + 1])
    assert settings == {"remnant": {"policy": "snapkv", "budget": 1024, "mode": "prompt"}}
    assert main(arguments(here, "--weights-bytes", "20GB", "--tp", "2", "--mode", "stream")) == 0
    out = capsys.readouterr().out
    assert "vllm serve" in out
    assert "weights 9.31 GiB (given)" in out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--gpu-memory", "80"], "no unit"),
        (["--mode", "x"], "accepted: prompt, stream"),
        (["--dtype", "fp8"], "accepted: auto, float32, float16, bfloat16"),
        (["--model", "org/name"], "hf download"),
    ],
    ids=" ".join,
)
def test_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str):
    assert main(arguments(folder(tmp_path / "m", LLAMA), *more)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--policy", "snap"], "did you mean 'snapkv'"),
        (["--policy", "adakv"], "numbers of tokens"),
        (["--budget", "4"], "at least"),
    ],
    ids=" ".join,
)
def test_command_knows_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str):
    pytest.importorskip("torch", reason="pip install 'remnant[torch]'")
    assert main(arguments(folder(tmp_path / "m", LLAMA), *more)) == 2
    assert message in capsys.readouterr().err


def test_command_without_torch(tmp_path: Path):
    """Neither torch, transformers nor vLLM: none can be found here."""
    here = folder(tmp_path / "m", LLAMA)
    code = (
        "import importlib.util as u, sys\n"
        "real = u.find_spec\n"
        "away = {'torch', 'transformers', 'vllm'}\n"
        "u.find_spec = lambda name, *a: None if name in away else real(name, *a)\n"
        "for name in away: sys.modules[name] = None\n"
        "from remnant.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments(here, "--json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert any("was not checked" in note for note in json.loads(done.stdout)["notes"])
