"""Reordering: the published order, and that nothing is lost or repeated."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remnant.routing import chronological, reorder


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], []),
        ([1], [1]),
        ([1, 2], [1, 2]),
        ([1, 2, 3], [1, 3, 2]),
        ([1, 2, 3, 4], [1, 3, 4, 2]),
        ([1, 2, 3, 4, 5], [1, 3, 5, 4, 2]),
        ([1, 2, 3, 4, 5, 6], [1, 3, 5, 6, 4, 2]),
    ],
)
def test_the_published_order(items: list[int], expected: list[int]):
    assert reorder(items) == expected


def test_k_drops_the_weakest_before_ordering():
    assert reorder([1, 2, 3, 4, 5], 3) == [1, 3, 2]
    assert reorder([1, 2], 0) == []
    assert reorder([1, 2], 9) == [1, 2]


@given(st.lists(st.integers()))
def test_reorder_is_a_permutation_and_leaves_its_input(items: list[int]):
    before = list(items)
    assert Counter(reorder(items)) == Counter(items)
    assert items == before


@given(st.integers(2, 200))
def test_best_at_both_ends_worst_in_the_middle(count: int):
    out = reorder(range(1, count + 1))
    assert (out[0], out[-1]) == (1, 2)
    assert abs(out.index(count) - (count - 1) / 2) <= 0.5


def test_by_time_the_best_conversation_comes_last():
    ranked = [(2, "a"), (3, "b"), (1, "a"), (0, "c")]
    assert chronological(ranked, lambda p: p[0], lambda p: p[1]) == [(0, "c"), (3, "b"), (1, "a"), (2, "a")]
    assert chronological([], lambda p: p, lambda p: p) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3))))
def test_by_time_is_a_permutation(items: list[tuple[int, int]]):
    assert Counter(chronological(items, lambda p: p[0], lambda p: p[1])) == Counter(items)
