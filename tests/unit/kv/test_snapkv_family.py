"""SnapKV and the two that spend its budget differently: over layers, and over heads."""

from dataclasses import replace
from importlib import import_module

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from remnant.errors import ConfigError, ShapeError  # noqa: E402
from remnant.kv.budget import portion  # noqa: E402
from remnant.kv.policies.adakv import AdaKV  # noqa: E402
from remnant.kv.policies.pyramidkv import PyramidKV  # noqa: E402
from remnant.kv.policies.snapkv import SnapKV  # noqa: E402
from remnant.kv.score import group_columns  # noqa: E402
from remnant.kv.view import KVView  # noqa: E402

few = settings(max_examples=40, deadline=None)


def lists(keep):
    """Kept slots per row and head, without the padding of ragged rows."""
    return [[[i for i in head if i >= 0] for head in row] for row in keep.indices.tolist()]


@pytest.mark.parametrize("over", ["sum", "max"])
@pytest.mark.parametrize("how", ["mean", "any", "sum"])
@pytest.mark.parametrize("more", [{}, {"softcap": 2.0}, {"scaling": 0.2}, {"sinks": torch.tensor([0.5, -1.0, 2.0, 0])}])
def test_columns_equal_the_loop(make_view, by_loops, monkeypatch, over, how, more):
    view = make_view(s=19, b=2, w=7, starts=[0, 14], **more)
    for block in (2, 128):
        monkeypatch.setattr(import_module("remnant_kernels.window_score.fast"), "_BLOCK", block)
        assert torch.allclose(group_columns(view, how, over), by_loops(group_columns, view, how, over), atol=1e-5)


def test_columns_need_queries_and_an_odd_kernel(make_view):
    with pytest.raises(ShapeError, match="no queries"):
        group_columns(make_view(), "mean")
    for kernel in (0, 4):
        with pytest.raises(ConfigError, match=f"kernel={kernel}; accepted: an odd"):
            group_columns(make_view(w=3), "mean", kernel=kernel, pooling="avg")


@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
def test_snapkv_equals_the_loop(make_view, by_loops, pooling):
    s, w, tokens = 30, 4, 12
    view = make_view(s=s, b=2, w=w, starts=[0, 7])
    policy = SnapKV(window=w, kernel=5, pooling=pooling)
    columns = by_loops(group_columns, view, "mean")
    plan = lists(policy.plan(view, tokens))
    for b, start in enumerate([0, 7]):
        for h in range(2):
            score = {}
            for j in range(start, s - w):
                near = [float(columns[b, h, i]) for i in range(max(start, j - 2), min(s - w, j + 3))]
                score[j] = {"avg": sum(near) / len(near), "max": max(near), "none": float(columns[b, h, j])}[pooling]
            order = sorted(score, key=lambda j: (round(score[j], 9), j), reverse=True)
            assert plan[b][h] == sorted([*order[: tokens - w], *range(s - w, s)])


def test_snapkv_is_never_in_place_because_neighbours_count():
    assert SnapKV(refresh=8).bounded
    assert not SnapKV(refresh=8).in_place
    assert SnapKV().due("block", 0, 11, 10)


def test_pyramid_by_hand():
    policy = PyramidKV(window=32, beta=20)
    budgets = policy.schedule(seen=10**6, layers=32, tokens=2048)
    assert sum(budgets) == 32 * 2048
    # 3932 ... 119 less the excess of 9.5 tokens, plus the window.
    assert (budgets[0], budgets[-1]) == (3932 - 10 + 32, 119 - 9 + 32)
    # Between the budget and twice of it all layers keep the same; below, everything stays.
    assert policy.schedule(seen=3000, layers=4, tokens=2048) == [2048] * 4
    assert policy.schedule(seen=2048, layers=4, tokens=2048) == [2048] * 4
    # Hardly longer than the first layer's share: that one keeps all, and the last ones gain.
    assert policy.schedule(seen=90, layers=4, tokens=72) == [90, 78, 66, 54]
    assert policy.schedule(seen=10**6, layers=1, tokens=2048) == [2048]


@few
@given(st.integers(1, 500), st.integers(0, 5000), st.integers(1, 40), st.integers(1, 30), st.integers(0, 6))
def test_pyramid_never_spends_more_than_the_total(more, longer, layers, beta, sinks):
    policy = PyramidKV(beta=beta, sinks=sinks)
    tokens = policy.minimum - 1 + more
    budgets = policy.schedule(tokens + longer, layers, tokens)
    assert sum(budgets) <= layers * tokens
    assert min(budgets) >= policy.window + sinks


def test_pyramid_keeps_its_layers_share(make_view):
    policy = PyramidKV(window=4)
    counts = []
    for layer in range(4):
        view = make_view(s=80, w=4, layer=layer, layers=4)
        keep = policy.plan(view, policy.layer_share(80, layer, 4, 20))
        counts.append(keep.indices.shape[-1])
        assert set(range(76, 80)) <= set(lists(keep)[0][0])
    assert counts == policy.schedule(80, 4, 20)
    assert sum(counts) == 80
    assert counts == sorted(counts, reverse=True)


def rigged(scores, window=2):
    """A view whose one query of interest gives the slots attention proportional to `scores` `[H][S - window]`."""
    x = torch.tensor(scores)
    h, s = x.shape[0], x.shape[1] + window
    k = torch.full((1, h, s, 1), -20.0)
    k[0, :, : s - window, 0] = x.log()
    q = torch.ones(1, h, window, 1)
    return KVView(k, k, torch.arange(s).expand(1, h, s), seen=s, queries=q)


def test_adakv_by_hand():
    # Head 0 attends to one token, head 1 to five alike: of the 2 * 3 best, one is in head 0 and five in head 1.
    view = rigged([[1e4, 1, 1, 1, 1, 1, 1, 1], [1e3] * 5 + [1, 1, 1]])
    policy = AdaKV(window=2, kernel=1, floor=0.0)
    keep = policy.plan(view, 5)
    assert lists(keep) == [[[0, 8, 9], [0, 1, 2, 3, 4, 8, 9]]]
    assert keep.lengths is not None
    assert keep.lengths.tolist() == [[3, 7]]
    # A floor of a third of three is one each, and the other four go 1 : 5 -> 0.67 and 3.33 -> 1 and 3.
    assert lists(replace(policy, floor=0.34).plan(view, 5)) == [[[0, 7, 8, 9], [1, 2, 3, 4, 8, 9]]]
    assert policy.budget(view, 5).tolist() == [[3, 7]]  # pyright: ignore[reportAttributeAccessIssue]


@few
@given(st.integers(5, 30), st.floats(0, 1), st.integers(0, 2), st.integers(0, 99))
def test_adakv_spends_the_total_exactly(tokens, floor, sinks, seed):
    r = torch.Generator().manual_seed(seed)
    k, q = torch.randn(2, 3, 31, 4, generator=r), torch.randn(2, 6, 4, 4, generator=r)
    view = KVView(k, k, torch.arange(31).expand(2, 3, 31), seen=31, queries=q)
    policy = AdaKV(window=4, floor=floor, sinks=sinks)
    tokens = max(tokens, policy.minimum)
    keep = policy.plan(view, tokens)
    counts = torch.full((2, 3), keep.indices.shape[-1]) if keep.lengths is None else keep.lengths
    assert counts.sum(-1).tolist() == [3 * tokens] * 2
    assert int(counts.min()) >= 4 + sinks + portion(tokens - 4 - sinks, floor)
    for head in (x for row in lists(keep) for x in row):
        assert {*range(sinks), *range(27, 31)} <= set(head)
        assert head == sorted(set(head))


def test_adakv_allocates_every_row_by_itself_and_nothing_to_padding(make_view):
    view = make_view(s=30, b=2, h=3, w=4, starts=[0, 8])
    policy = AdaKV(window=4, kernel=5, pooling="avg")
    keep = policy.plan(view, 10)
    assert keep.lengths is not None
    assert keep.lengths.sum(-1).tolist() == [30, 30]
    alone = KVView(view.k[1:, :, 8:], view.v[1:, :, 8:], view.positions[1:, :, :22], seen=22, queries=view.queries[1:])
    assert [[i - 8 for i in head] for head in lists(keep)[1]] == lists(policy.plan(alone, 10))[0]
    # With fewer tokens than the budget a row keeps them all, and no padding.
    assert lists(policy.plan(view, 25))[1] == [list(range(8, 30))] * 3


def test_adakv_within_the_budget_keeps_everything(make_view):
    assert lists(AdaKV(window=4).plan(make_view(s=12, w=4), 12)) == [[list(range(12))] * 2]
    with pytest.raises(ConfigError, match="floor"):
        AdaKV(floor=1.5)
