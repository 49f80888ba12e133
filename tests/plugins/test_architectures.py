"""Eight architectures: nothing changes at an infinite budget, memory is bounded at a small one, rows stay apart."""

from typing import Any

import pytest
import torch

from remnant.errors import UnsupportedPolicy
from remnant_hf.layer import RemnantLayer

ARCHS = ("llama", "qwen3", "mistral", "phi3", "gemma3", "gptoss", "qwen3next", "dsv3")
POLICIES = ("snapkv", "h2o", "streaming", "adakv", "think", "keydiff", "trimkv", "lazyeviction")
UNIFORM = ("snapkv", "h2o", "streaming", "keydiff", "lazyeviction")
ENDLESS = 10_000


def pairs() -> list[Any]:
    return [(name, attn) for name in ARCHS for attn in (("eager",) if name == "gptoss" else ("sdpa", "eager"))]


def answers(lab: Any, model: Any, ids: Any, mask: Any, more: Any, cache: Any, new: int = 6) -> list[Any]:
    """Tokens of two turns through one cache."""
    first = lab.go(model, ids, cache, new, attention_mask=mask)
    ids = torch.cat([ids, first, more], 1)
    ones = torch.ones(mask.shape[0], new + more.shape[1], dtype=mask.dtype)
    return [first, lab.go(model, ids, cache, new, attention_mask=torch.cat([mask, ones], 1))]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("name", "attn"), pairs())
def test_infinite_budget_changes_nothing(lab: Any, name: str, attn: str, policy: str):
    model, ids = lab.model(name, attn), lab.ids(30)
    want = lab.go(model, ids, lab.full(model), 5)
    cache = lab.cache(model, policy, ENDLESS)
    assert torch.equal(lab.go(model, ids, cache, 5), want)
    assert cache.stats().evicted == 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ARCHS)
def test_two_turns_in_bounded_memory(lab: Any, name: str, policy: str):
    model, ids = lab.model(name, lab.attns(name)[0]), lab.ids(60)
    budget, new, more = 24, 12, lab.ids(9, seed=8)
    cache = lab.cache(model, policy, budget)
    if name == "dsv3" and policy == "think":
        with pytest.raises(UnsupportedPolicy, match="latent attention"):
            lab.go(model, ids, cache)
        return
    first, second = answers(lab, model, ids, torch.ones_like(ids), more, cache, new)
    assert first.shape == second.shape == (1, new)
    stats = cache.stats()
    assert stats.seen == 60 + new + 9 + new - 1
    assert 0 < stats.bytes <= stats.allocated <= stats.peak_bytes
    grows = not cache.policy.bounded
    limit = budget + (new if grows else cache.policy.slack)
    for layer in stats.layers:
        if layer.kind != "remnant":
            continue
        heads = layer.stored[0]
        assert sum(heads) <= limit * len(heads)
        assert layer.evicted == sum(stats.seen - n for n in heads) > 0
        kept = cache.kept_positions(layer.index)
        assert kept.shape[:2] == (1, len(heads))
        for head, n in zip(kept[0], heads, strict=True):
            real = head[head >= 0]
            assert len(real) == n
            assert (real.diff() > 0).all()
            assert real[-1] == stats.seen - 1
    stock = [layer for layer in stats.layers if layer.kind != "remnant"]
    assert bool(stock) == (name in ("gemma3", "gptoss", "qwen3next"))


@pytest.mark.parametrize(("name", "attn"), pairs())
def test_padded_batch_equals_rows_snapkv(lab: Any, name: str, attn: str):
    rows_equal(lab, lab.model(name, attn), "snapkv")


@pytest.mark.parametrize("policy", [p for p in (*UNIFORM, "adakv", "trimkv") if p != "snapkv"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_padded_batch_equals_rows(lab: Any, attn: str, policy: str):
    rows_equal(lab, lab.model("llama", attn), policy)


def test_padded_batch_equals_rows_think(lab: Any):
    """Keys of a layer have one width, so a row that fits the budget is pruned with the others: none here does."""
    rows_equal(lab, lab.model("llama"), "think", (50, 41, 33))


@pytest.mark.parametrize("name", ["gemma3", "qwen3next", "dsv3"])
@pytest.mark.parametrize("policy", ["h2o", "streaming", "lazyeviction"])
def test_padded_batch_equals_rows_elsewhere(lab: Any, name: str, policy: str):
    rows_equal(lab, lab.model(name), policy)


def rows_equal(lab: Any, model: Any, policy: str, lengths: tuple[int, ...] = (50, 33, 15)) -> None:
    """Rows longer, a little longer and shorter than the budget, two turns."""
    rows, ids, mask = lab.padded(lengths)
    more = lab.ids(7, rows=3, seed=9)
    together = answers(lab, model, ids, mask, more, lab.cache(model, policy))
    for i, row in enumerate(rows):
        alone = answers(lab, model, row, torch.ones_like(row), more[i : i + 1], lab.cache(model, policy))
        for turn in (0, 1):
            assert torch.equal(alone[turn][0], together[turn][i]), f"row {i}, turn {turn + 1}"


def naive_kept(attention: Any, heads: int, budget: int, window: int, kernel: int) -> list[list[int]]:
    """SnapKV by loops over the probabilities `[Hq, S, S]` of an eager forward pass."""
    hq, s, _ = attention.shape
    old = s - window
    columns = attention[:, old:, :old].double().sum(1).view(heads, hq // heads, old).mean(1)
    kept = []
    for column in columns:
        near = [range(max(0, i - kernel // 2), min(old, i + kernel // 2 + 1)) for i in range(old)]
        scores = [sum(float(column[j]) for j in span) / len(span) for span in near]
        best = sorted(range(old), key=lambda i: (scores[i], i), reverse=True)[: budget - window]
        kept.append(sorted(best) + list(range(old, s)))
    return kept


@pytest.mark.parametrize(("name", "attn"), pairs())
def test_snapkv_keeps_what_a_naive_reference_keeps(lab: Any, name: str, attn: str):
    model, eager, ids = lab.model(name, attn), lab.model(name, "eager"), lab.ids(60)
    cache = lab.cache(model, "snapkv", 24)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        attentions = eager(ids, output_attentions=True, use_cache=False).attentions
    governed = [layer.index for layer in cache.layers if isinstance(layer, RemnantLayer)]
    assert governed
    attentions = [a for a in attentions if a is not None]
    if len(attentions) == len(cache.layers):
        attentions = [attentions[i] for i in governed]
    assert len(attentions) == len(governed)
    for index, attention in zip(governed, attentions, strict=True):
        kept = cache.kept_positions(index)[0]
        assert kept.tolist() == naive_kept(attention[0], kept.shape[0], 24, 8, 5)


def test_latent_attention_has_one_choice_for_all_heads(lab: Any):
    model, ids = lab.model("dsv3"), lab.ids(60)
    for policy in ("h2o", "keydiff", "lazyeviction", "tova"):
        cache = lab.cache(model, policy)
        lab.go(model, ids, cache, 20)
        assert all(len(layer.stored[0]) == 1 for layer in cache.stats().layers)


@pytest.mark.parametrize("policy", ["think", "d2o"])
def test_latent_attention_refuses_policies_that_change_what_is_stored(lab: Any, policy: str):
    model = lab.model("dsv3")
    with pytest.raises(UnsupportedPolicy, match=f"{policy}.*latent attention") as error:
        lab.go(model, lab.ids(60), lab.cache(model, policy))
    assert "only choose tokens" in str(error.value)
