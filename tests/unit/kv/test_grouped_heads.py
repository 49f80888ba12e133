"""S4: what a policy decides on grouped heads is what it decides on repeated ones, reduced afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from remnant.kv import KVView, get_policy, select
from remnant.kv.score import reduce_group
from remnant.kv.select import protect

B, H, G, S, D, BUDGET = 2, 2, 3, 40, 16, 16
CASES = [
    ("snapkv", {"window": 8}, "mean"),
    ("snapkv", {"window": 8, "reduce": "max", "pooling": "max"}, "max"),
    ("snapkv", {"window": 8, "reduce": "sum", "pooling": "none"}, "sum"),
    ("tova", {}, "mean"),
    ("h2o", {}, "mean"),
    ("knorm", {}, "mean"),
    ("keydiff", {}, "mean"),
]


def views() -> tuple[KVView, KVView]:
    """The same attention with `H` KV heads, and with every one of them written out `G` times."""
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(B, heads, S, D, generator=g) for heads in (G * H, H, H))
    grouped = KVView(k, v, torch.arange(S).expand(B, H, S), S, queries=q)
    many = [x.repeat_interleave(G, 1) for x in (k, v, grouped.positions)]
    return grouped, KVView(many[0], many[1], many[2], S, queries=q)


def scores(policy: Any, view: KVView) -> Any:
    assert view.queries is not None
    if "all_queries" not in policy.needs:
        view = replace(view, queries=view.queries[:, :, -policy.window :] if policy.window else None)
    zero = {side.name: torch.full(view.shape, side.fill, dtype=side.dtype) for side in policy.sides}
    side, _ = policy.observe(replace(view, side=zero))
    return policy.score(replace(view, side={**zero, **side}))


@pytest.mark.parametrize(("name", "more", "how"), CASES, ids=[f"{n}-{how}" for n, _, how in CASES])
def test_grouped_heads_equal_repeated_ones(name: str, more: dict[str, Any], how: Any):
    policy = get_policy(name, **more)
    grouped, repeated = views()
    got = scores(policy, grouped)
    want = reduce_group(scores(policy, repeated).view(B, H, G, S), how)
    assert torch.allclose(got, want, atol=1e-5)
    kept = [select(protect(x, grouped, policy.sinks, policy.recent), BUDGET, grouped).indices for x in (got, want)]
    assert torch.equal(*kept)
