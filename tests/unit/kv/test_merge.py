"""The fold of evicted into kept slots: against hand-computed answers and loops."""

import math
from dataclasses import replace
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.errors import ShapeError
from remnant.kv import Keep, KVView, Merge
from remnant.kv.merge import apply_merge, evicted, fold_weights, make_merge, nearest

TILES = {name: import_module(f"remnant_kernels.{name}.fast") for name in ("fold", "nearest")}


def make_view(k, v=None, valid=None):
    b, h, s = k.shape[:3]
    return KVView(k, k if v is None else v, torch.arange(s).expand(b, h, s), s, valid=valid)


def random_keep(g, b, h, s, kept):
    slots = torch.rand(b, h, s, generator=g).argsort(-1)
    return Keep(slots[..., :kept].sort(-1).values)


def naive_nearest(k, src, kept, valid=None):
    """Triple loop; equal similarities go to the later kept key."""
    best, place = torch.full(src.shape, -math.inf), torch.zeros_like(src)
    for b, h, e in torch.cartesian_prod(*(torch.arange(n) for n in src.shape)).tolist():
        if src[b, h, e] < 0:
            continue
        for c in range(kept.shape[-1]):
            slot = int(kept[b, h, c])
            if slot < 0 or (valid is not None and not valid[b, h, slot]):
                continue
            x, y = k[b, h, src[b, h, e]], k[b, h, slot]
            m = float(x @ y / (x.norm() * y.norm()).clamp(min=1e-12))
            if m >= best[b, h, e]:
                best[b, h, e], place[b, h, e] = m, c
    return best, place


def test_evicted_is_the_complement_without_padding():
    valid = torch.tensor([[[False, True, True, True, True, True]]])
    view = make_view(torch.randn(1, 1, 6, 2), valid=valid)
    assert evicted(Keep(torch.tensor([[[2, 5]]])), view).tolist() == [[[1, 3, 4]]]
    two = make_view(torch.randn(1, 2, 4, 2))
    ragged = Keep(torch.tensor([[[0, 1, 3], [2, -1, -1]]]), torch.tensor([[3, 1]]))
    assert evicted(ragged, two).tolist() == [[[2, -1, -1], [0, 1, 3]]]
    assert evicted(Keep.everything(two), two).shape == (1, 2, 0)


def test_evicted_goes_by_position_not_by_slot():
    view = replace(make_view(torch.randn(1, 1, 4, 2)), positions=torch.tensor([[[7, 4, 6, 5]]]), seen=8, ordered=False)
    assert evicted(Keep(torch.tensor([[[1]]])), view).tolist() == [[[3, 2, 0]]]


def test_nearest_by_hand_and_ties_go_to_the_later_key():
    k = torch.tensor([[1.0, 0], [0, 2], [1, 1], [5, 0], [0, 0]]).view(1, 1, 5, 2)
    m, place = nearest(k, torch.tensor([[[2, 0, 4, -1]]]), torch.tensor([[[1, 3]]]))
    torch.testing.assert_close(m, torch.tensor([[[0.5**0.5, 1.0, 0.0, -math.inf]]]))
    assert place.tolist() == [[[1, 1, 1, 0]]]


@pytest.mark.parametrize("s", [5, 64, 65, 80])
def test_nearest_equals_loops_over_any_tiles(s, monkeypatch):
    g = torch.Generator().manual_seed(s)
    k = torch.randn(2, 2, s, 4, generator=g)
    keep = random_keep(g, 2, 2, s, max(1, s // 3))
    valid = torch.ones(2, 2, s, dtype=torch.bool)
    valid[1, :, : s // 4] = False
    src = evicted(keep, make_view(k, valid=valid))
    expected = naive_nearest(k, src, keep.indices, valid)
    for tile in (1, 16, 512):
        monkeypatch.setattr(TILES["nearest"], "_TILE", tile)
        m, place = nearest(k, src, keep.indices, valid)
        torch.testing.assert_close(m, expected[0], atol=1e-5, rtol=0)
        found = place[src >= 0]
        assert torch.equal(found, expected[1][src >= 0])


def test_nearest_never_holds_a_square(monkeypatch):
    peak = []
    argmax = torch.Tensor.argmax
    monkeypatch.setattr(
        torch.Tensor, "argmax", lambda x, *a, **kw: (peak.append(tuple(x.shape)), argmax(x, *a, **kw))[1]
    )
    k = torch.randn(1, 1, 512, 4)
    nearest(k, torch.arange(256).view(1, 1, -1), torch.arange(256, 512).view(1, 1, -1))
    assert peak
    assert all(min(shape[-2:]) < 256 for shape in peak)


def test_weights_by_hand():
    m, dst = torch.tensor([[[0.0, 1.0, 0.5]]]), torch.tensor([[[0, 0, 1]]])
    chosen = torch.tensor([[[True, True, False]]])
    weight, own = fold_weights(m, dst, chosen, 3, "paper")
    total = 2 * math.e + 1
    torch.testing.assert_close(weight, torch.tensor([[[1 / total, math.e / total, 0.0]]]))
    torch.testing.assert_close(own, torch.tensor([[[math.e / total, 1.0, 1.0]]]))
    weight, own = fold_weights(m, dst, chosen, 3, "code")
    torch.testing.assert_close(weight, torch.tensor([[[0.0, 1 / 3, 0.0]]]))
    torch.testing.assert_close(own, torch.tensor([[[1 / 3, 1.0, 1.0]]]))


def test_code_form_shrinks_and_paper_form_does_not():
    v = torch.ones(1, 1, 3, 2)
    src, dst, m = torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]), torch.tensor([[[0.5, 0.5]]])
    every = torch.ones(1, 1, 2, dtype=torch.bool)
    out = {
        form: apply_merge(v, Keep(torch.tensor([[[2]]]), merge=make_merge(src, dst, m, every, 1, form)))
        for form in ("paper", "code")
    }
    torch.testing.assert_close(out["paper"], torch.ones(1, 1, 1, 2))
    torch.testing.assert_close(out["code"], torch.full((1, 1, 1, 2), 2 / 3))


def test_apply_without_merge_is_the_gather_and_holes_are_zero():
    v = torch.arange(8.0).view(1, 2, 4, 1)
    keep = Keep(torch.tensor([[[1, 3], [2, -1]]]), torch.tensor([[2, 1]]))
    assert apply_merge(v, keep).flatten().tolist() == [1.0, 3.0, 6.0, 0.0]
    with pytest.raises(ShapeError, match="plan"):
        apply_merge(v[:, :1], keep)


def test_unused_slots_may_hold_nan_and_the_dtype_stays():
    v = torch.tensor([math.nan, 2.0, 4.0]).view(1, 1, 3, 1).bfloat16()
    merge = Merge(
        torch.tensor([[[-1, 1]]]), torch.tensor([[[0, 0]]]), torch.tensor([[[0.0, 0.5]]]), torch.tensor([[[0.5]]])
    )
    out = apply_merge(v, Keep(torch.tensor([[[2]]]), merge=merge))
    assert out.dtype == torch.bfloat16
    assert out.item() == 3.0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    s=st.integers(2, 24),
    share=st.floats(0.05, 0.95),
    form=st.sampled_from(["paper", "code"]),
    tile=st.sampled_from([1, 3, 512]),
)
def test_fold_equals_loops_and_stays_in_the_hull(by_loops, seed, s, share, form, tile):
    g = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, 2, s, 3, generator=g), torch.randn(2, 2, s, 5, generator=g)
    kept = min(s - 1, max(1, round(s * share)))
    keep = random_keep(g, 2, 2, s, kept)
    src = evicted(keep, make_view(k, v))
    m, dst = nearest(k, src, keep.indices)
    chosen = torch.rand(m.shape, generator=g) < 0.7
    keep = replace(keep, merge=make_merge(src, dst, m, chosen, kept, form))
    before = v.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TILES["fold"], "_TILE", tile)
        out = apply_merge(v, keep)
    assert torch.equal(v, before)
    torch.testing.assert_close(out, by_loops(apply_merge, v, keep), atol=1e-5, rtol=0)
    assert keep.merge is not None
    weight = keep.merge.weight
    total = keep.merge.own.scatter_add(-1, keep.merge.dst, weight)
    assert bool((weight[~chosen] == 0).all())
    if form == "code":
        assert bool((total <= 1 + 1e-6).all())
        return
    torch.testing.assert_close(total, torch.ones_like(total))
    assert bool((weight >= 0).all())
    # Convex hull, dimension by dimension: nothing leaves the range of a target and its members.
    low = high = v.gather(2, keep.indices.unsqueeze(-1).expand(-1, -1, -1, 5))
    members = v.gather(2, src.unsqueeze(-1).expand(-1, -1, -1, 5))
    where = dst.unsqueeze(-1).expand_as(members)
    mask = chosen.unsqueeze(-1)
    low = low.scatter_reduce(2, where, members.masked_fill(~mask, math.inf), "amin")
    high = high.scatter_reduce(2, where, members.masked_fill(~mask, -math.inf), "amax")
    assert bool(((out >= low - 1e-5) & (out <= high + 1e-5)).all())


def test_merging_identical_values_changes_nothing():
    v = F.normalize(torch.randn(1, 1, 1, 4), dim=-1).expand(1, 1, 6, 4)
    view = make_view(torch.randn(1, 1, 6, 4), v)
    keep = Keep(torch.tensor([[[4, 5]]]))
    src = evicted(keep, view)
    m, dst = nearest(view.k, src, keep.indices)
    keep = replace(keep, merge=make_merge(src, dst, m, m > -2, 2))
    torch.testing.assert_close(apply_merge(v, keep), v[:, :, :2])
