"""Corners where two features meet: padding inside a row, drafts, and attention that never came by."""

from typing import Any

import pytest
import torch

from remnant.errors import UnsupportedPolicy


@pytest.mark.parametrize("kind", ["lookup", "assistant"])
def test_tim_refuses_drafts(lab: Any, kind: str):
    """Its hooks would prune by tokens that are not accepted yet."""
    model, ids = lab.model("llama"), lab.ids(8).repeat(1, 4)
    draft = {"prompt_lookup_num_tokens": 3} if kind == "lookup" else {"assistant_model": lab.model("llama", seed=5)}
    with pytest.raises(UnsupportedPolicy, match="assisted generation with policy 'tim'"):
        lab.go(model, ids, lab.cache(model, "tim", None), 16, **draft)


def second_turn(lab: Any, steps: int) -> tuple[list[list[Any]], list[Any], list[Any]]:
    """(passes of each row alone, passes of the batch, attention masks): the second turn has rows of unequal length."""
    rows, ids, mask = lab.padded((40, 33, 30))
    turns, ids2, mask2 = lab.padded((9, 6, 3), seed=20)
    before, after = ([lab.ids(1, rows=3, seed=seed + i) for i in range(steps)] for seed in (30, 60))
    masks = [mask]
    for x in (*before, mask2, *after):
        masks.append(torch.cat([masks[-1], torch.ones_like(x) if x.shape[1] == 1 else x], 1))
    one = lambda i: ([x[i : i + 1] for x in part] for part in (before, after))  # noqa: E731
    alone = []
    for i in range(3):
        first, last = one(i)
        alone.append([rows[i], *first, turns[i], *last])
    return alone, [ids, *before, ids2, *after], masks


PADDED = [
    ("streaming", {"positions": "rerotate", "sinks": 4}),
    ("d2o", {"merge_keys": True}),
    ("d2o", {}),
    ("lazyeviction", {"window": 4, "activity": 1.0}),
    ("keydiff", {"slack": 2}),
]


def intervals(cache: Any, row: int) -> list[list[int]]:
    """Longest silence of every kept token of a row, in tokens, by layer."""
    found = []
    for layer in cache.governed:
        dense = layer.store.dense()
        real = torch.ones_like(dense.pos[row], dtype=torch.bool) if dense.valid is None else dense.valid[row]
        order = dense.pos[row].masked_fill(~real, -1).argsort(-1)
        kept = real.gather(1, order)
        found.append(dense.side["interval"][row].gather(1, order)[kept].tolist())
    assert any(map(any, found))
    return found


@pytest.mark.parametrize(("policy", "more"), PADDED, ids=[f"{n}-{'-'.join(m) or 'plain'}" for n, m in PADDED])
def test_padding_inside_a_row_changes_nothing(lab: Any, policy: str, more: dict[str, Any]):
    """Turned sinks, merged keys and recurrence all count tokens, so padding between turns must not count as one."""
    model = lab.model("llama")
    alone, batch, masks = second_turn(lab, 7)
    cache = lab.cache(model, policy, 24, **more)
    logits = []
    with torch.no_grad():
        for x, mask in zip(batch, masks, strict=True):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -x.shape[1] :]
            out = model(x, past_key_values=cache, attention_mask=mask, position_ids=positions)
            logits.append(out.logits[:, -1])
        for i, passes in enumerate(alone):
            own = lab.cache(model, policy, 24, **more)
            for at, x in enumerate(passes):
                want = model(x, past_key_values=own).logits[0, -1]
                assert (want - logits[at][i]).abs().max() < 1e-4, f"row {i}, pass {at}"
            if policy == "lazyeviction":
                assert intervals(cache, i) == intervals(own, 0)
    assert cache.stats().evicted > 0


class OneLayer(torch.nn.Module):
    """A model of one layer with an attention of its own, read once."""

    def forward(self, q: Any, k: Any, v: Any, cache: Any) -> Any:
        k, v = cache.update(k, v, 0)
        return (q @ k.repeat_interleave(2, 1).transpose(2, 3)).softmax(-1) @ v.repeat_interleave(2, 1)


def tokens(n: int) -> tuple[Any, Any, Any]:
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, h, n, 16, generator=g) for h in (4, 2, 2))  # type: ignore[return-value]


@pytest.mark.parametrize("look", ["stats", "kept_positions", "tokens_until_eviction"])
def test_one_pass_of_one_layer_without_attention_is_noticed_by_who_looks(lab: Any, look: str):
    from remnant_hf import RemnantCache

    config = lab.config("llama", num_hidden_layers=1)
    cache = RemnantCache(config, "snapkv", budget=24, window=8)
    OneLayer()(*tokens(40), cache)
    with pytest.raises(UnsupportedPolicy, match=r"layer 0.*cannot see"):
        getattr(cache, look)(*((0,) if look == "kept_positions" else ()))
    cache = RemnantCache(config, "keydiff", budget=24, slack=0)
    OneLayer()(*tokens(40), cache)
    assert cache.stats().layers[0].stored == [[24, 24]]
