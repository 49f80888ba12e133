"""Trimmed drafters in the real engine: EAGLE-3 through stock vLLM, draft models through our class; output unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from remnant.cli import main
from remnant.speculative.vocab_checkpoint import trimmed_map

pytestmark = pytest.mark.vllm

H, V, NEW = 128, 512, 40
COUNTS = {"draft": "vllm:spec_decode_num_draft_tokens", "accepted": "vllm:spec_decode_num_accepted_tokens"}


def eagle3(folder: Path, vocab: int = V) -> Path:
    """A random EAGLE-3 drafter for the tiny target, with a full head."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": H, "intermediate_size": 256,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "vocab_size": vocab, "draft_vocab_size": vocab, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "hidden_act": "silu",
        "tie_word_embeddings": False, "torch_dtype": "float32", "eagle_aux_hidden_state_layer_ids": [0, 1, 2],
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    source = torch.Generator().manual_seed(0)
    shapes = {
        "fc.weight": (H, 3 * H), "lm_head.weight": (vocab, H), "midlayer.self_attn.q_proj.weight": (128, 2 * H),
        "midlayer.self_attn.k_proj.weight": (64, 2 * H), "midlayer.self_attn.v_proj.weight": (64, 2 * H),
        "midlayer.self_attn.o_proj.weight": (H, 128), "midlayer.mlp.gate_proj.weight": (256, H),
        "midlayer.mlp.up_proj.weight": (256, H), "midlayer.mlp.down_proj.weight": (H, 256),
    }  # fmt: skip
    weights = {name: torch.randn(*shape, generator=source) * 0.1 for name, shape in shapes.items()}
    for norm in ("norm", "midlayer.hidden_norm", "midlayer.input_layernorm", "midlayer.post_attention_layernorm"):
        weights[f"{norm}.weight"] = torch.ones(H)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def trim(model: Path, tokens: list[list[int]], k: int, out: Path) -> Path:
    """The command itself, on tokens that the target wrote."""
    file = out.parent / "tokens.npy"
    np.save(file, np.array([i for row in tokens for i in row], dtype=np.int64))
    options = ["--tokens", str(file), "--k", str(k), "--out", str(out), "--no-chart", "--json"]
    assert main(["trim-vocab", str(model), *options]) == 0
    return out


def counts(running: Any) -> dict[str, int]:
    names = {value: key for key, value in COUNTS.items()}
    return {names[m.name]: int(m.value) for m in running.llm.get_metrics() if m.name in names}


def spec(method: str, model: Path) -> dict[str, Any]:
    return {"method": method, "model": str(model), "num_speculative_tokens": 3}


@pytest.mark.parametrize(("kind", "k"), [("llama", 96), ("llama", 31), ("qwen3", 64)])
def test_a_trimmed_draft_model_changes_nothing(
    engine: Any, checkpoints: Any, prompts: Any, tmp_path: Path, kind: str, k: int
):
    target, given = checkpoints(kind), prompts(20, 70, 33)
    want = engine(target).run(given, NEW)
    draft = trim(target, want, k, tmp_path / "draft")
    running = engine(target, blocks=200, speculative_config=spec("draft_model", draft))
    assert running.run(given, NEW) == want
    model, kept = running.runner.drafter.model, trimmed_map(draft)
    assert type(model).__name__ == f"RemnantTrimmed{kind.capitalize()}ForCausalLM"
    assert model.lm_head.weight.shape[0] < V
    logits = model.compute_logits(torch.randn(2, H))
    assert torch.isinf(logits).sum(-1).tolist() == [V - k] * 2
    assert torch.isfinite(logits[0]).nonzero()[:, 0].tolist() == kept.keep.tolist()
    found = counts(running)
    assert 0 < found["accepted"] <= found["draft"]
    if k == 96:  # it is the target itself, and the target writes little else
        assert found["accepted"] > found["draft"] / 2


def test_a_trimmed_eagle3_loads_in_stock_vllm(engine: Any, checkpoints: Any, prompts: Any, tmp_path: Path):
    target, given = checkpoints("llama"), prompts(20, 70)
    want = engine(target).run(given, NEW)
    once = trim(eagle3(tmp_path / "eagle"), want, 192, tmp_path / "once")
    twice = trim(once, want, 64, tmp_path / "twice")
    running = engine(target, blocks=300, speculative_config=spec("eagle3", twice))
    assert running.run(given, NEW) == want
    model, kept = running.runner.drafter.model, trimmed_map(twice)
    assert type(model).__name__ == "Eagle3LlamaForCausalLM"
    assert type(model).__module__.startswith("vllm.")
    assert torch.equal(model.draft_id_to_target_id.cpu(), kept.to_tensors()["d2t"])
    whole = load_file(tmp_path / "eagle/model.safetensors")["lm_head.weight"]
    assert torch.equal(model.lm_head.weight[:64].cpu(), whole[kept.keep])
    assert counts(running)["draft"] > 0


def test_a_broken_map_is_refused_before_weights(engine: Any, checkpoints: Any, prompts: Any, tmp_path: Path):
    target = checkpoints("llama")
    draft = trim(target, prompts(400), 96, tmp_path / "draft")
    weights = load_file(draft / "model.safetensors")
    del weights["d2t"]
    save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match="without the table 'd2t'"):
        engine(target, blocks=200, speculative_config=spec("draft_model", draft))


def test_architectures_are_registered_once_and_by_name():
    from vllm.model_executor.models.registry import ModelRegistry

    from remnant.speculative.vocab_names import SERVED, trimmed_name
    from remnant_vllm import trimmed
    from remnant_vllm.plugin import register

    register()
    before = {name: ModelRegistry.models[trimmed_name(name)] for name in SERVED}
    register()
    assert all(ModelRegistry.models[trimmed_name(name)] is before[name] for name in SERVED)
    assert sorted(trimmed.__all__) == sorted(map(trimmed_name, SERVED))
    assert all(type(model).__name__ == "_LazyRegisteredModel" for model in before.values())
