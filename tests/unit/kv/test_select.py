"""Top-k, ties, protection and padding: against sorting by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from remnant.errors import ShapeError  # noqa: E402
from remnant.kv.select import KEPT, PADDING, protect, select, select_flat, top_mask, victims  # noqa: E402
from remnant.kv.view import KVView  # noqa: E402

few = settings(max_examples=50, deadline=None)
levels = st.sampled_from([PADDING, -1.0, 0.0, 0.5, 2.0, KEPT])


def view_of(positions, **more):
    p = torch.as_tensor(positions)
    return KVView(torch.zeros(*p.shape, 1), torch.zeros(*p.shape, 1), p, seen=int(p.max()) + 1, **more)


def best(scores, positions, k):
    """Slots of the k best by (score, position), ascending by position."""
    order = sorted(range(len(scores)), key=lambda i: (scores[i], positions[i]), reverse=True)[:k]
    return sorted(order, key=lambda i: positions[i])


@st.composite
def rows(draw, heads=2):
    s = draw(st.integers(1, 9))
    ordered = draw(st.booleans())
    base = draw(st.permutations(range(2 * s)))[:s]
    base = sorted(base) if ordered else base
    scores = [draw(st.lists(levels, min_size=s, max_size=s)) for _ in range(heads)]
    return scores, [list(base)] * heads, ordered


@few
@given(rows(), st.integers(1, 10))
def test_select_keeps_the_best_and_ties_go_to_the_newer(row, k):
    scores, positions, ordered = row
    keep = select(torch.tensor([scores]), k, view_of([positions], ordered=ordered))
    if k >= len(scores[0]):
        assert keep.indices.tolist() == [[list(range(len(scores[0])))] * 2]
    else:
        assert keep.indices.tolist() == [[best(x, p, k) for x, p in zip(scores, positions, strict=True)]]


@few
@given(rows(), st.data())
def test_select_with_a_budget_per_head(row, data):
    scores, positions, ordered = row
    s = len(scores[0])
    k = data.draw(st.lists(st.integers(0, s + 1), min_size=2, max_size=2))
    keep = select(torch.tensor([scores]), torch.tensor([k]), view_of([positions], ordered=ordered))
    got = [[i for i in x if i >= 0] for x in keep.indices[0].tolist()]
    assert got == [best(x, p, min(n, s)) for x, p, n in zip(scores, positions, k, strict=True)]
    assert keep.lengths is None or keep.lengths.tolist() == [[min(n, s) for n in k]]


@few
@given(rows(), st.data())
def test_select_flat_spends_the_total_over_the_heads(row, data):
    scores, positions, ordered = row
    s = len(scores[0])
    total = data.draw(st.integers(0, 2 * s + 2))
    keep = select_flat(torch.tensor([scores]), total, view_of([positions], ordered=ordered))
    flat = [(scores[h][i], positions[h][i], h, i) for h in range(2) for i in range(s)]
    want = {(h, i) for _, _, h, i in sorted(flat, reverse=True)[:total]}
    assert {(h, i) for h in range(2) for i in keep.indices[0, h].tolist() if i >= 0} == want
    assert keep.lengths is not None
    assert int(keep.lengths.sum()) == min(total, 2 * s)


@few
@given(rows(), st.data())
def test_top_mask_marks_exactly_k(row, data):
    scores, positions, _ = row
    k = data.draw(st.integers(0, len(scores[0])))
    mask = top_mask(torch.tensor(scores), k, torch.tensor(positions))
    assert [[i for i, m in enumerate(r) if m] for r in mask.tolist()] == [
        sorted(best(x, p, k)) for x, p in zip(scores, positions, strict=True)
    ]


@few
@given(rows(), st.data())
def test_victims_are_what_select_drops(row, data):
    scores, positions, ordered = row
    s = len(scores[0])
    count = data.draw(st.integers(0, s - 1))
    view = view_of([positions], ordered=ordered)
    kept = select(torch.tensor([scores]), s - count, view).indices
    gone = victims(torch.tensor([scores]), count, view)
    for h in range(2):
        assert sorted([*kept[0, h].tolist(), *gone[0, h].tolist()]) == list(range(s))


def test_nan_is_an_error():
    view = view_of([[[0, 1]]])
    with pytest.raises(ShapeError, match="NaN"):
        select(torch.tensor([[[float("nan"), 1.0]]]), 1, view)


def test_protection_goes_by_position_and_skips_padding():
    # Two padding slots; the newest token sits in slot 2 because slots are overwritten in place.
    positions = torch.tensor([[[0, 1, 9, 3, 4, 5]]])
    valid = torch.tensor([[[False, False, True, True, True, True]]])
    view = view_of(positions, valid=valid, ordered=False)
    out = protect(torch.zeros(1, 1, 6), view, sinks=1, recent=1)
    assert out.tolist() == [[[PADDING, PADDING, KEPT, KEPT, 0.0, 0.0]]]
    # The host remembers that the row began at 2, whose token is gone: 3 is no sink then.
    view = view_of(positions, valid=valid, ordered=False, state={"start": torch.tensor([2])})
    assert protect(torch.zeros(1, 1, 6), view, sinks=1).tolist() == [[[PADDING, PADDING, 0.0, 0.0, 0.0, 0.0]]]
