"""Sampling with lazy logits is sampling from the target, over a plain cache and over one that evicts.

The target is a real Llama whose layers add nothing to what they read: its next token depends on the newest one only, so
every token of a long text is a draw whose distribution is known, whatever the cache still holds.
"""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import remnant_hf
from remnant.speculative.drafters.tree import TreeDrafter
from remnant_hf import RemnantCache
from remnant_hf._target import ModelTarget

V, ROWS, NEW = 6, 100, 200
"""20,000 draws."""
WORST = 1e-4
"""A p-value below this fails; seeds are fixed, so a pass is a pass."""


def _model(seed: int, near: Any = None) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, initializer_range=0.4, eos_token_id=None, pad_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    layer: Any = model.model.layers[0]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        if near is not None:  # a drafter that is half right
            model.model.embed_tokens.weight.copy_(near.model.embed_tokens.weight)
            model.lm_head.weight.mul_(0.5).add_(near.lm_head.weight)
    return model


@torch.no_grad()
def _p(model: Any) -> Any:
    """Transition probabilities `[V, V]`, by the model itself."""
    return model(torch.arange(V)[:, None]).logits[:, 0].softmax(-1).double()


def _worst(texts: Any, p: Any) -> float:
    """The smaller p-value of two chi-square tests: of each step, and of each step after a pair."""
    values: list[float] = []
    for before in (texts[:, :-1][:, 1:], texts[:, :-2] * V + texts[:, 1:-1]):
        counts = torch.zeros(V ** (1 + len(values)), V, dtype=torch.float64)
        counts.index_put_((before.flatten(), texts[:, 2:].flatten()), torch.ones(()).double(), accumulate=True)
        expected = counts.sum(1, keepdim=True) * p.repeat(V ** len(values), 1)
        enough = expected >= 5
        statistic = float((((counts - expected) ** 2 / expected)[enough]).sum())
        freedom = int((enough.sum(1) - 1).clamp(min=0).sum())
        values.append(float(torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2))))
    return min(values)


def _texts(drafts: Any, model: Any, cache: Any) -> Any:
    ids = torch.arange(ROWS)[:, None] % V
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=True, top_k=0, custom_generate=drafts,
        past_key_values=cache,
    )  # fmt: skip


def _cache(model: Any, policy: str | None) -> Any:
    if policy is None:
        return DynamicCache(config=model.config)
    return RemnantCache(model.config, policy, budget=24, slack=8)


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        ("model", None),
        ("lookup", "keydiff"),
        pytest.param("tree", None, marks=pytest.mark.slow),
        pytest.param("lookup", None, marks=pytest.mark.slow),
        pytest.param("model", "keydiff", marks=pytest.mark.slow),
    ],
)
def test_draws_are_the_targets(kind: str, policy: str | None):
    model = _model(0)
    other = _model(1, near=model)
    drafter = {"lookup": "lookup", "model": other}.get(kind) or TreeDrafter(ModelTarget(other), 3, 2, 5)
    generator = torch.Generator().manual_seed(0)
    drafts = remnant_hf.speculate(drafter, 4, tree=kind == "tree", generator=generator, lazy_logits=True)
    texts = _texts(drafts, model, _cache(model, policy))
    assert texts[:, 1:].numel() == 20_000
    assert 400 < drafts.stats.accepted < drafts.stats.proposed
    assert _worst(texts, _p(model)) > WORST


def test_the_test_notices_another_distribution():
    """A target that is somewhat sharper than it should be is far outside."""
    model, p = _model(0), _p(_model(0))
    generator = torch.Generator().manual_seed(0)
    texts, sharper = [torch.arange(ROWS) % V], p**1.2 / (p**1.2).sum(-1, keepdim=True)
    while len(texts) <= NEW:
        texts.append(torch.multinomial(sharper[texts[-1]], 1, generator=generator)[:, 0])
    assert _worst(torch.stack(texts, 1), _p(model)) < WORST
