"""EpiCache against loops: what a patched prompt attends to, among past keys only."""

import math
from dataclasses import replace

import pytest
import torch

from remnant.errors import ConfigError, ShapeError
from remnant.kv import KVView, get_policy
from remnant.kv.policies.epicache import EpiCache


def loops(view: KVView, queries: torch.Tensor | None, past: int) -> torch.Tensor:
    """`max` over queries and group of the softmax over the first `past` slots, one number at a time."""
    assert queries is not None
    b, h, s = view.shape
    g = queries.shape[1] // h
    out = torch.zeros(b, h, s)
    for bi in range(b):
        for head in range(h * g):
            for i in range(queries.shape[2]):
                kv = head // g
                x = [float(view.k[bi, kv, j].double() @ queries[bi, head, i].double()) for j in range(past)]
                e = [math.exp(v * view.k.shape[-1] ** -0.5) for v in x]
                for j in range(past):
                    out[bi, kv, j] = max(float(out[bi, kv, j]), e[j] / sum(e))
    return out


def view(s=24, w=8, b=2, h=2, g=2, d=4, ahead=0) -> KVView:
    torch.manual_seed(s + w)
    k = torch.randn(b, h, s, d)
    q = torch.randn(b, h * g, w, d)
    return KVView(k, torch.randn(b, h, s, d), torch.arange(s).expand(b, h, s), seen=s + ahead, queries=q)


def probed(policy: EpiCache, shown: KVView) -> KVView:
    """The view after a probe, as a host makes it: side and state stored, queries gone."""
    side, state = policy.observe(shown)
    return replace(shown, side=side, state=state, queries=None, seen=shown.shape[2])


def test_probe_scores_equal_the_loops():
    policy = EpiCache(sinks=0)
    shown = view(ahead=8)
    assert policy.score(probed(policy, shown)) == pytest.approx(loops(shown, shown.queries, 24), abs=1e-5)


def test_without_a_probe_the_last_queries_observe_and_stay():
    policy = EpiCache(sinks=0, window=6)
    shown = view()
    assert policy.observe(shown) == ({}, {})
    scores = policy.score(shown)
    assert shown.queries is not None
    assert scores[..., :18] == pytest.approx(loops(shown, shown.queries[:, :, -6:], 18)[..., :18], abs=1e-5)
    assert torch.isinf(scores[..., 18:]).all()


@pytest.mark.parametrize("allocation", ["uniform", "flat"])
def test_kept_slots_are_those_of_the_loops(allocation):
    policy = EpiCache(sinks=2, window=3, allocation=allocation)
    shown = view(ahead=8)
    keep = policy.plan(probed(policy, shown), 10)
    truth = loops(shown, shown.queries, 24)
    truth[..., :2] = torch.inf
    for b in range(2):
        if allocation == "uniform":
            want = [sorted(truth[b, h].topk(10).indices.tolist()) for h in range(2)]
        else:
            top = truth[b].flatten().topk(20).indices.tolist()
            want = [sorted(i - 24 * h for i in top if i // 24 == h) for h in range(2)]
        got = [[int(i) for i in keep.indices[b, h] if i >= 0] for h in range(2)]
        assert got == want
    total = keep.indices.ge(0).sum((1, 2))
    assert total.tolist() == [20, 20]


def test_two_probes_take_the_maximum_and_a_plan_forgets():
    policy = EpiCache(sinks=0, window=1)
    one, two = view(ahead=8), view(ahead=8)
    assert two.queries is not None
    two = replace(two, queries=two.queries.flip(2) * 3)
    side, state = policy.observe(one)
    both, state = policy.observe(replace(two, side=side, state=state))
    want = torch.maximum(loops(one, one.queries, 24), loops(one, two.queries, 24))
    assert both["episodic"] == pytest.approx(want, abs=1e-5)
    keep = policy.plan(replace(one, side=both, state=state, queries=None), 5)
    assert not keep.side["episodic"].any()
    assert keep.side["episodic"].shape == keep.indices.shape
    assert not keep.state["probed"].any()


def test_padding_is_neither_scored_nor_normalised():
    policy = EpiCache(sinks=0)
    shown = view(ahead=8, b=1)
    valid = torch.ones(1, 2, 24, dtype=torch.bool)
    valid[..., :5] = False
    scores = policy.score(probed(policy, replace(shown, valid=valid)))
    short = KVView(shown.k[:, :, 5:], shown.v[:, :, 5:], shown.positions[:, :, 5:], 32, queries=shown.queries)
    assert scores[..., 5:] == pytest.approx(loops(short, shown.queries, 19), abs=1e-5)
    assert (scores[..., :5] == -torch.inf).all()


def test_layers_have_their_own_budgets():
    policy = EpiCache(sinks=0, window=2, per_layer=(5, 9), allocation="uniform")
    shown = replace(probed(policy, view(ahead=8)), layers=2)
    assert policy.plan(shown, 7).indices.shape[-1] == 5
    assert policy.plan(replace(shown, layer=1), 7).indices.shape[-1] == 9
    assert policy.due("block", 0, 6, 7)
    assert not policy.due("block", 0, 5, 7)


def test_options_and_missing_queries():
    assert get_policy("epicache", window=8).minimum == 13
    for wrong in ({"window": 0}, {"kernel": 2}, {"allocation": "pair"}, {"per_layer": (1,)}, {"pooling": "sum"}):
        with pytest.raises(ConfigError):
            get_policy("epicache", **wrong)
    with pytest.raises(ShapeError, match="queries"):
        EpiCache().plan(replace(view(), queries=None), 3)
