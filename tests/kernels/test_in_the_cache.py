"""Policies over kernels: `RemnantCache` keeps and writes what it keeps and writes without them."""

import logging
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="pip install 'remnant[hf]'")

from transformers import LlamaConfig, LlamaForCausalLM

from remnant.kv import get_policy
from remnant_hf import RemnantCache
from remnant_kernels import dispatch

POLICIES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "snapkv": ({"window": 8}, {"window_score", "compact"}),
    "h2o": ({}, {"window_score", "compact", "decode_attention"}),
    "tova": ({}, {"window_score", "compact", "decode_attention"}),
    "lazyeviction": ({"window": 8}, {"decode_attention"}),
    "adakv": ({"window": 8}, {"window_score", "decode_attention"}),
    "d2o": ({}, {"nearest", "fold", "window_score", "decode_attention"}),
    "think": ({"window": 8, "recent": 4}, {"pruned_decode", "window_score"}),
    "trimkv": ({"gates": "uniform", "recent": 4, "buffer": 4}, set()),
    "kinetics": ({"page": 4}, {"page_summaries", "block_sparse_decode"}),
}


IN_CORE = {"snapkv": {"window_score"}, "d2o": {"window_score", "nearest", "fold"}, "trimkv": set[str]()}
"""Operations that policies call, whatever runs them."""


@pytest.fixture(scope="module")
def model() -> Any:
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, initializer_range=0.15, pad_token_id=0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def run(model: Any, name: str, padded: bool) -> tuple[Any, list[Any]]:
    """(logits of a prompt and ten tokens, kept positions per layer)."""
    options, _ = POLICIES[name]
    draw = torch.Generator().manual_seed(1)
    ids, mask = torch.randint(1, 64, (2, 58), generator=draw), torch.ones(2, 58, dtype=torch.long)
    if padded:
        mask[0, :7] = 0
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = RemnantCache(model.config, get_policy(name, **options), budget=24)
    outs = []
    for start, stop in [(0, 48), *((i, i + 1) for i in range(48, 58))]:
        more = {"attention_mask": mask[:, :stop], "position_ids": position[:, start:stop]}
        outs.append(model(ids[:, start:stop], past_key_values=cache, use_cache=True, **more).logits)
    return torch.cat(outs, 1)[mask.bool()], [cache.kept_positions(layer.index) for layer in cache.governed]


CASES = [(name, padded) for name in POLICIES for padded in (False, True) if (name, padded) != ("think", True)]
"""Padding stands in `think`'s store as slots that must be hidden, which its kernel has no form for."""


@pytest.mark.parametrize(("name", "padded"), CASES, ids=lambda x: x if isinstance(x, str) else "padded" * x or "whole")
def test_kernels_change_nothing(
    name: str, padded: bool, model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.delenv(dispatch.FORCE, raising=False)
    dispatch.forget()
    want, kept = run(model, name, padded)
    monkeypatch.setenv(dispatch.FORCE, "triton")
    dispatch.forget()
    with caplog.at_level(logging.INFO, "remnant.kernels"):
        got, held = run(model, name, padded)
    dispatch.forget()
    for a, b in zip(kept, held, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    ran = {record.message.partition(" ")[0] for record in caplog.records if ": triton" in record.message}
    assert ran >= POLICIES[name][1]


@pytest.mark.parametrize("name", ["snapkv", "d2o", "trimkv"])
def test_loops_change_nothing(name: str, model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """A CPU runs what the dispatcher chooses too, so the naive operations can stand in for the fast ones."""
    found = []
    for force in ("fast", "naive"):
        monkeypatch.setenv(dispatch.FORCE, force)
        dispatch.forget()
        with caplog.at_level(logging.INFO, "remnant.kernels"):
            found.append(run(model, name, True))
    dispatch.forget()
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-4)
    ran = {record.message.partition(" ")[0] for record in caplog.records if ": naive" in record.message}
    assert ran >= IN_CORE[name]


def test_trained_gates_run_as_a_kernel(monkeypatch: pytest.MonkeyPatch):
    from remnant.testbed import load

    model, tokenizer = load()
    ids = tokenizer("A cache keeps what was read, so that nothing is read twice. " * 4, return_tensors="pt").input_ids
    kept = []
    for force in ("fast", "triton"):
        monkeypatch.setenv(dispatch.FORCE, force)
        dispatch.forget()
        cache = RemnantCache(model.config, "trimkv", budget=40, gates="testbed")
        with torch.no_grad():
            model(ids, past_key_values=cache, use_cache=True)
        kept.append([cache.kept_positions(layer.index) for layer in cache.governed])
    dispatch.forget()
    for a, b in zip(*kept, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["h2o", "tova", "lazyeviction", "trimkv"])
def test_a_compiled_step_warns_of_nothing(name: str, model: Any, monkeypatch: pytest.MonkeyPatch):
    """The dispatcher is asked at every step, and `torch.compile` sees through it."""
    warned: list[str] = []
    monkeypatch.setattr(torch._dynamo.utils, "warn_once", lambda message, *_, **__: warned.append(str(message)))
    monkeypatch.delenv(dispatch.FORCE, raising=False)
    torch._dynamo.reset()
    cache = RemnantCache(model.config, get_policy(name, **POLICIES[name][0]), budget=24)
    ids = torch.randint(1, 64, (1, 42), generator=torch.Generator().manual_seed(2))
    step = torch.compile(lambda x, c: model(x, past_key_values=c).logits, backend="eager", fullgraph=True)
    with torch.no_grad():
        model(ids[:, :40], past_key_values=cache)
        dispatch.forget()
        for i in (40, 41):
            step(ids[:, i : i + 1], cache)
    torch._dynamo.reset()
    assert warned == []
