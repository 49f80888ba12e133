"""Integer shares: hand-computed, and exact whatever the weights."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from remnant.kv.budget import allocate_floor, largest_remainder, portion, pyramid, trim  # noqa: E402

few = settings(max_examples=40, deadline=None)


def test_portion_reads_the_decimal():
    assert [portion(100, 0.29), portion(10, 0.3), portion(7, 0.5), portion(7, 1), portion(7, 0)] == [29, 3, 3, 7, 0]
    assert int(100 * 0.29) == 28


def test_portion_equals_the_original_floor_of_adakv():
    assert all(portion(m, 0.2) == int(0.2 * m) for m in range(5000))


@pytest.mark.parametrize(
    ("weights", "total", "parts"),
    [
        ([1, 1, 1], 5, [2, 2, 1]),
        ([5, 3, 2], 10, [5, 3, 2]),
        ([7, 2, 1], 5, [4, 1, 0]),  # 3.5, 1.0, 0.5: of equal fractions the lower index is rounded up
        ([0, 4, 0], 3, [0, 3, 0]),
        ([0, 0], 3, [2, 1]),
        ([3], 2, [2]),
    ],
)
def test_largest_remainder_by_hand(weights, total, parts):
    assert largest_remainder(torch.tensor(weights), total).tolist() == parts


@few
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12), st.integers(0, 10**7))
def test_largest_remainder_is_exact_and_fair(weights, total):
    w = torch.tensor(weights)
    parts = largest_remainder(w, total)
    assert int(parts.sum()) == total
    whole = sum(weights)
    if whole:
        assert all(
            total * x // whole <= p <= -(-total * x // whole) for x, p in zip(weights, parts.tolist(), strict=True)
        )
    if total <= whole:
        assert bool((parts <= w).all())


def test_largest_remainder_splits_rows_by_themselves():
    weights = torch.tensor([[1, 1], [3, 1]])
    assert largest_remainder(weights, torch.tensor([3, 4])).tolist() == [[2, 1], [3, 1]]


def test_allocate_floor_by_hand():
    # 12 wanted by one head of four; 2 each first, the other 4 in proportion.
    wanted, room = torch.tensor([[12, 0, 0, 0]]), torch.full((1, 4), 20)
    assert allocate_floor(wanted, room, 2).tolist() == [[6, 2, 2, 2]]
    assert allocate_floor(wanted, room, 0).tolist() == [[12, 0, 0, 0]]
    assert allocate_floor(wanted, room, 99).tolist() == [[3, 3, 3, 3]]
    # A full head hands its part on.
    assert allocate_floor(torch.tensor([[5, 3]]), torch.tensor([[5, 9]]), 4).tolist() == [[4, 4]]
    assert allocate_floor(torch.tensor([[2, 6]]), torch.tensor([[2, 6]]), 4).tolist() == [[2, 6]]


@few
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8), st.integers(0, 60))
def test_allocate_floor_keeps_the_sum_and_the_room(pairs, least):
    wanted = torch.tensor([[min(p) for p in pairs]])
    room = torch.tensor([[max(p) for p in pairs]])
    parts = allocate_floor(wanted, room, least)
    assert int(parts.sum()) == int(wanted.sum())
    assert bool(((parts >= 0) & (parts <= room)).all())
    sure = min(least, int(wanted.sum()) // len(pairs))
    assert bool((parts >= room.clamp(max=sure)).all())


def test_pyramid_is_the_original_schedule():
    budgets = pyramid(2048 - 32, 32, 10**6)
    assert (budgets[0], budgets[1], budgets[-1]) == (3932, 3809, 119)
    assert sum(budgets) == 32 * 2016 + 304  # the excess of the original: 9.5 tokens per layer
    assert pyramid(100, 1, 1000) == [100]
    # Not more than there is: the first layers keep everything and the last ones gain.
    assert pyramid(100, 5, 150) == [150, 125, 100, 75, 50]


def test_trim_by_hand():
    assert trim([5, 3, 2], 8) == [4, 2, 2]
    assert trim([5, 0, 1], 3) == [3, 0, 0]
    assert trim([1, 2], 9) == [1, 2]


@few
@given(st.integers(1, 400), st.integers(1, 40), st.integers(0, 4000), st.integers(1, 30))
def test_pyramid_trimmed_never_exceeds_the_total(middle, layers, more, beta):
    budgets = trim(pyramid(middle, layers, middle + more, beta), layers * middle)
    assert sum(budgets) <= layers * middle
    assert min(budgets) >= 0
    assert budgets == sorted(budgets, reverse=True) or max(budgets) - min(budgets) <= layers
