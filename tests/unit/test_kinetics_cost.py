"""The cost model against loops over tokens, its laws, and coverage."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.errors import ConfigError
from remnant.kinetics import (
    Block,
    Dense,
    Evict,
    Group,
    Purse,
    Shape,
    TopK,
    coverage,
    eflops,
    held_bytes,
    parse_reading,
    read_tokens,
)

SHAPE = Shape.uniform("m", parameters=1000, layers=3, heads=8, kv_heads=2, dim=4)
A, C = 8 * 4 * 3, 2 * 4 * 3  # heads x channels x layers, of queries and of keys
WINDOWED = Shape("w", 1000, (Group(2, 8, 2, 4, 4), Group(4, 8, 2, 4, 4, span=24)), 2.0, 4000.0)
SIZES = st.tuples(st.integers(0, 300), st.integers(1, 300), st.integers(1, 5))
READINGS = st.one_of(
    st.just(Dense()),
    st.builds(TopK, st.integers(1, 400)),
    st.builds(Evict, st.integers(1, 400)),
    st.builds(Block, st.integers(33, 400), st.sampled_from((4, 16)), st.integers(0, 32), st.sampled_from((1, 2))),
)


def looped(x: int, y: int, limit: int | None) -> int:
    """Tokens seen, step by step; each step sees its own token too."""
    return sum(x + t if limit is None else min(limit, x + t) for t in range(1, y + 1))


def own_tokens(x: int, y: int, limit: int | None) -> float:
    """Half a token of every step at which the text still grows: what the integral leaves out of the sum."""
    return (y if limit is None else min(y, max(0, limit - x))) / 2


@given(st.integers(0, 80), st.integers(1, 80), st.none() | st.integers(1, 200))
def test_tokens_seen_are_the_sum_but_for_half_of_each_own_token(x: int, y: int, limit: int | None):
    assert read_tokens(x, y, limit) + own_tokens(x, y, limit) == looped(x, y, limit)


@pytest.mark.parametrize(("x", "y", "b"), [(512, 8192, 1024), (512, 8192, 4096), (4000, 4000, 1000)])
def test_the_triangle_is_subtracted(x: int, y: int, b: int):
    exact = looped(x, y, b)
    assert read_tokens(x, y, b) == b * y - 0.5 * max(0, b - x) ** 2
    assert read_tokens(x, y, b) == pytest.approx(exact, rel=2e-4)
    if b > x:
        assert b * y + 0.5 * (b - x) ** 2 > exact * 1.01


def test_dense_as_published():
    x, y, N = 500, 4000, 7
    cost = eflops(SHAPE, x, y, N, Dense(), intensity=562.5)
    assert cost.compute == N * (2 * 1000 * y + 2 * (2 * x + y) * y * A)
    assert cost.bytes == 2 * (2 * x + N * y) * y * C
    assert cost.eflops == cost.compute + 562.5 * cost.bytes
    assert (cost.search, cost.search_bytes, cost.weight_bytes) == (0, 0, 0)


@pytest.mark.parametrize("x", [1024 + 64, 3000])
def test_block_as_published(x: int):
    y, N, policy = 4000, 7, Block(1024 + 64, 16, 64)
    kv = 1088 * y
    cost = eflops(SHAPE, x, y, N, policy)
    assert cost.compute == N * (2 * 1000 * y + 4 * kv * A + (2 * x + y) // 16 * y * A)
    assert cost.bytes == N * 4 * kv * C + (2 * x + N * y) // 16 * y * C
    bound = eflops(SHAPE, x, y, N, Block(1088, 16, 64, summaries=2))
    assert (bound.search, bound.search_bytes) == (2 * cost.search, 2 * cost.search_bytes)


@pytest.mark.parametrize("policy", [Dense(), TopK(90), Evict(90), TopK(1000)])
@pytest.mark.parametrize("shape", [SHAPE, WINDOWED])
def test_costs_are_those_of_a_walk_over_trials_steps_and_layers(shape: Shape, policy: Any):
    x, y, N = 60, 100, 3
    flops = loaded = 0
    for group, t in itertools.product(shape.groups, range(1, y + 1)):
        limit = group.span or policy.limit or 10**9
        seen = min(limit, x + t)
        flops += N * seen * 2 * group.count * group.heads * (4 + 4)
        shared = isinstance(policy, Dense) or group.span
        prompt = range(max(0, x + t - limit), x)  # of a window, what it still shows of the prompt
        tokens = len(prompt) + N * min(limit, t) if shared else N * seen
        loaded += tokens * group.count * group.kv_heads * (4 + 4) * 2
    cost = eflops(shape, x, y, N, policy)
    assert cost.linear == 2 * 1000 * N * y
    assert cost.attention == pytest.approx(flops, rel=6e-3)
    assert cost.kv_bytes == pytest.approx(loaded, rel=8e-3)
    assert cost.attention <= flops
    assert cost.kv_bytes <= loaded


def test_searches_are_those_of_the_steps_that_choose():
    x, y, policy = 100, 2000, Block(512, 16, 16)
    walked = sum((x + t) / 16 for t in range(1, y + 1) if x + t > 512)
    cost = eflops(SHAPE, x, y, 1, policy)
    assert cost.search == pytest.approx(walked * 2 * A, rel=0.01)
    assert cost.search_bytes == pytest.approx(walked * 2 * C, rel=0.01)
    assert eflops(SHAPE, x, 412, 1, policy).search == 0
    assert eflops(SHAPE, x, 414, 1, policy).search > 0


def test_the_prompt_is_read_once_by_dense_trials_and_by_each_sparse_one():
    one, many = (eflops(SHAPE, 5000, 100, N, Dense()) for N in (1, 8))
    assert many.compute == 8 * one.compute
    assert one.kv_bytes < many.kv_bytes < 1.1 * one.kv_bytes
    assert eflops(SHAPE, 5000, 100, 8, TopK(64)).kv_bytes == 8 * eflops(SHAPE, 5000, 100, 1, TopK(64)).kv_bytes


@settings(max_examples=60, deadline=None)
@given(SIZES, READINGS, st.sampled_from((SHAPE, WINDOWED)), st.none() | st.integers(1, 4))
def test_more_costs_more(sizes: tuple[int, int, int], policy: Any, shape: Shape, batch: int | None):
    x, y, N = sizes

    def cost(prompt: int, written: int, trials: int) -> float:
        return eflops(shape, prompt, written, trials, policy, batch=batch).eflops

    assert cost(x, y, N) < cost(x, y + 1, N)
    assert cost(x, y, N) < cost(x, y, N + 1)
    assert cost(x, y, N) <= cost(x + 1, y, N)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 600))
def test_sparse_is_at_most_dense_and_less_below_the_text(sizes: tuple[int, int, int], b: int):
    x, y, N = sizes
    dense, sparse = (eflops(SHAPE, x, y, N, policy) for policy in (Dense(), TopK(b)))
    assert sparse.attention <= dense.attention
    assert (sparse.attention < dense.attention) == (b < x + y)
    alone, free = eflops(SHAPE, x, y, 1, Dense()), eflops(SHAPE, x, y, 1, TopK(b))
    assert free.eflops <= alone.eflops
    assert eflops(SHAPE, x, y, 1, Evict(b)).eflops == free.eflops
    paged = eflops(SHAPE, x, y, 1, Block(b, 1, 0))
    assert paged.attention == free.attention
    assert (paged.search_bytes > 0) == (b < x + y)
    assert paged.eflops - free.eflops == pytest.approx(paged.search + paged.intensity * paged.search_bytes)


def test_bytes_per_element_groups_and_weights_count():
    half = Shape.uniform("m", parameters=1000, layers=3, heads=8, kv_heads=2, dim=4, element=1)
    whole = Shape.uniform("m", parameters=1000, layers=3, heads=8, kv_heads=8, dim=4)
    for policy in (Dense(), Block(64, 16, 16)):
        cost, small, wide = (eflops(shape, 100, 50, 2, policy) for shape in (SHAPE, half, whole))
        assert small.bytes == cost.bytes / 2
        assert wide.bytes == 4 * cost.bytes
        assert small.compute == wide.compute == cost.compute
    assert eflops(SHAPE, 1, 50, 2, Dense(), batch=4).weight_bytes == 2000 * 50 / 4
    assert eflops(SHAPE, 1, 50, 2, Dense(), intensity=0).eflops == eflops(SHAPE, 1, 50, 2, Dense()).compute


def test_only_eviction_frees():
    dense = held_bytes(SHAPE, 1000, 500, 2, Dense())
    assert dense == (1000 + 2 * 500) * SHAPE.kv_per_token
    assert held_bytes(SHAPE, 1000, 500, 2, TopK(64)) == dense
    assert held_bytes(SHAPE, 1000, 500, 2, Block(64)) > dense
    assert held_bytes(SHAPE, 1000, 500, 2, Evict(64)) == 2 * 64 * SHAPE.kv_per_token
    assert held_bytes(WINDOWED, 1000, 500, 2, Dense()) == 2 * (2000 * 2 * 2 * 8 + 2 * 24 * 4 * 2 * 8)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: eflops(SHAPE, -1, 1, 1, Dense()),
        lambda: eflops(SHAPE, 1, 0, 1, Dense()),
        lambda: eflops(SHAPE, 1, 1, 0, Dense()),
        lambda: eflops(SHAPE, 1, 1, 1, Dense(), batch=0),
        lambda: eflops(SHAPE, 1, 1, 1, Dense(), intensity=math.nan),
        lambda: Purse(math.inf, 1),
        lambda: TopK(0),
        lambda: Block(16, 16, 16),
        lambda: Block(64, 0),
        lambda: Block(64, 16, 16, 3),
        lambda: parse_reading("topk"),
        lambda: parse_reading("dense:4"),
        lambda: parse_reading("block:a"),
        lambda: parse_reading("blok:64"),
        lambda: Group(1, 8, 3, 4, 4),
        lambda: Shape("m", 0, SHAPE.groups),
        lambda: Shape("m", 1, ()),
        lambda: coverage(4, 5, 1),
        lambda: coverage(4, 1, 5),
    ],
)
def test_what_cannot_be_is_refused(wrong: Any):
    with pytest.raises(ConfigError):
        wrong()


@pytest.mark.parametrize("text", ["dense", "topk:64", "block:1024:16:64", "block:1024:16:64:2", "evict:9"])
def test_ways_of_reading_are_told_as_typed(text: str):
    assert parse_reading(text).label == text
    assert parse_reading("block:1000:16:64").limit == 64 + 16 * 59


@pytest.mark.parametrize(("n", "c", "k"), [(1, 0, 1), (5, 2, 1), (5, 2, 3), (6, 6, 2), (6, 4, 3), (7, 0, 7)])
def test_coverage_is_the_share_of_subsets_with_a_right_sample(n: int, c: int, k: int):
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert coverage(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
