"""Drafters that we wrote, in vLLM's own machinery: samples have the distribution of the target, on the CPU, too."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from remnant.cli import main
from remnant_vllm.ours import drafts_by_ours

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="needs the folder benchmarks of a clone"),
]
SAMPLES, KEPT = 800, 5


@pytest.fixture
def lib(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the benchmark draws and compares with."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("drafting_samples_lib")


@pytest.fixture
def unrepaired(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's sampler as an engine before may have left it is as it came again."""
    from vllm.v1.sample import rejection_sampler

    from remnant_vllm._compat.sampler import REPAIRS

    for name in REPAIRS:
        monkeypatch.setattr(rejection_sampler, name, inspect.unwrap(getattr(rejection_sampler, name)))
    return rejection_sampler


def eagle3(folder: Path, hidden: int, vocab: int) -> Path:
    """A random EAGLE-3 drafter with a full head."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "head_dim": 32, "vocab_size": vocab, "draft_vocab_size": vocab, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float32",
        "eagle_aux_hidden_state_layer_ids": [0, 1, 2], "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    source = torch.Generator().manual_seed(0)
    shapes = {"fc": (hidden, 3 * hidden), "lm_head": (vocab, hidden), "midlayer.self_attn.o_proj": (hidden, 64)}
    shapes |= {f"midlayer.self_attn.{name}_proj": (64, 2 * hidden) for name in "qkv"}
    shapes |= {f"midlayer.mlp.{name}_proj": (64, hidden) for name in ("gate", "up")}
    shapes["midlayer.mlp.down_proj"] = (hidden, 64)
    weights = {f"{name}.weight": torch.randn(*shape, generator=source) * 0.1 for name, shape in shapes.items()}
    for norm in ("norm", "midlayer.hidden_norm", "midlayer.input_layernorm", "midlayer.post_attention_layernorm"):
        weights[f"{norm}.weight"] = torch.ones(hidden)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def trim(model: Path, tokens: list[int], out: Path) -> Path:
    """The command itself."""
    file = out.parent / "tokens.npy"
    np.save(file, np.array(tokens, dtype=np.int64))
    assert (
        main(["trim-vocab", str(model), "--tokens", str(file), "--k", str(KEPT), "--out", str(out), "--no-chart"]) == 0
    )
    return out


@pytest.mark.parametrize("kind", ["draft_model", "eagle3"])
def test_trimmed_drafters_sample_exactly(
    kind: str, engine: Any, lib: Any, unrepaired: Any, tmp_path: Path, capsys: Any
) -> None:
    """Tokens outside the drafter's head have to come from the target, as often as it would write them."""
    target = lib.make(tmp_path / "target", num_hidden_layers=1 if kind == "draft_model" else 3)
    hf = lib.in_hf(target)
    prompt = lib.written(hf)
    whole = target if kind == "draft_model" else eagle3(tmp_path / "eagle", 64, lib.VOCAB)
    spec = {"method": kind, "model": str(trim(whole, prompt, tmp_path / "trimmed")), "num_speculative_tokens": 3}
    sizes = {"blocks": 2000, "max_model_len": 96, "max_num_seqs": 256, "max_num_batched_tokens": 18432}
    running = engine(target, speculative_config=spec, **sizes)
    drawn = lib.draw(running.llm, prompt, lib.MIXED, SAMPLES)
    values = {m.name: m.value for m in running.llm.get_metrics() if hasattr(m, "value")}
    assert values["vllm:spec_decode_num_accepted_tokens"] > 100
    for setting, answers in zip(lib.MIXED, drawn, strict=True):
        assert abs(lib.deviation(lib.counted(answers), lib.joint(hf, prompt, setting))) < 4


def config(model: object, method: str = "draft_model", **hf: Any) -> Any:
    draft = SimpleNamespace(
        model=str(model), method=method, draft_model_config=SimpleNamespace(hf_config=SimpleNamespace(**hf))
    )
    return SimpleNamespace(speculative_config=draft)


def test_whose_drafters_are_ours(tmp_path: Path) -> None:
    """Classes, what `trim-vocab` and what `fastdraft` wrote; whoever drafts with anything else is left alone."""
    assert drafts_by_ours(config("remnant_vllm.LookupDrafter", "custom_class"))
    assert drafts_by_ours(config("anywhere/drafter", "eagle3", remnant_trim={"k": 5}))
    assert not drafts_by_ours(config(tmp_path))
    (tmp_path / "fastdraft.json").write_text("{}")
    assert drafts_by_ours(config(tmp_path))
    assert not drafts_by_ours(config("", "ngram"))
    assert not drafts_by_ours(SimpleNamespace(speculative_config=None))
