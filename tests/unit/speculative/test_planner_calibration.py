"""Acceptance by place, node selection, learning and planning again."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.errors import ConfigError
from remnant.speculative.calibration import Acceptance, Calibration, best_nodes, common_acceptance, select_nodes
from remnant.speculative.costs import Measured
from remnant.speculative.memory_model import MemoryModel
from remnant.speculative.planner import Plan, Planner
from remnant.speculative.replan import Replanner


@st.composite
def tables(draw: Any) -> Acceptance:
    depth, ranks = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    raw = draw(st.lists(st.lists(st.floats(0, 1), min_size=ranks, max_size=ranks), min_size=depth, max_size=depth))
    return Acceptance(tuple(tuple(x / max(1.0, math.fsum(row)) for x in row) for row in raw))


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(1, 30))
def test_best_nodes_are_the_best_and_closed(table: Acceptance, n: int):
    found = best_nodes(table, n)
    every = [node for d in range(1, table.depth + 1) for node in itertools.product(range(table.ranks), repeat=d)]
    assert len(found) == len(set(found)) == min(n - 1, len(every))
    assert all(node[:-1] == () or node[:-1] in found for node in found)
    want = sorted(map(table.path, every), reverse=True)[: n - 1]
    assert math.fsum(map(table.path, found)) == pytest.approx(math.fsum(want))
    assert best_nodes(table, n + 1)[: len(found)] == found


@st.composite
def trees(draw: Any) -> tuple[list[int], list[float]]:
    n = draw(st.integers(1, 25))
    parents = [-1, *(draw(st.integers(0, i - 1)) for i in range(1, n))]
    return parents, [draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])) for _ in range(n)]


@settings(max_examples=80, deadline=None)
@given(trees(), st.integers(1, 30))
def test_a_cut_tree_is_closed_under_parents(tree: tuple[list[int], list[float]], n: int):
    parents, scores = tree
    kept = select_nodes(parents, scores, n)
    assert kept == sorted(set(kept))
    assert len(kept) == min(n, len(parents))
    assert kept[0] == 0
    assert all(parents[node] in kept for node in kept[1:])
    whole = [1.0]
    for node in range(1, len(parents)):
        whole.append(whole[parents[node]] * scores[node])
    assert min(whole[i] for i in kept) >= max((w for i, w in enumerate(whole) if i not in kept), default=0.0)


def test_trees_that_are_none_are_refused():
    for parents in ([0], [-1, 1], [-1, -1], []):
        with pytest.raises(ConfigError):
            select_nodes(parents, [1.0] * len(parents), 2)


@pytest.mark.parametrize("table", [(), ((),), ((0.5,), (0.5, 0.1)), ((0.7, 0.4),), ((-0.1,),)])
def test_tables_that_are_none_are_refused(table: Any):
    with pytest.raises(ConfigError):
        Acceptance(table)


def test_constant_rows_are_parts_of_a_distribution():
    assert Acceptance.constant(0.8, 2, 3, 0.5).table == ((0.8, pytest.approx(0.2), 0.0),) * 2
    assert best_nodes(Acceptance(((0.6, 0.2), (0.5, 0.1))), 4) == [(0,), (0, 0), (1,)]


def test_a_batch_shares_the_mean_of_those_that_still_write():
    low, high = Acceptance(((0.2,),)), Acceptance(((0.8,),))
    assert common_acceptance([low, high], [30, 10]).table[0][0] == pytest.approx(0.35)
    assert common_acceptance([low, high], [0, 10]).table[0][0] == pytest.approx(0.8)
    assert common_acceptance([low, high], [0, 0]).table[0][0] == pytest.approx(0.5)
    with pytest.raises(ConfigError):
        common_acceptance([low, Acceptance.constant(0.5, 2)], [1, 1])


def test_calibration_learns_what_is_there():
    rng, true = random.Random(0), [0.9, 0.6, 0.3]
    learned = Calibration(Acceptance.constant(0.5, 3), rate=0.005)
    for _ in range(4000):
        accepted = next((i for i, p in enumerate(true) if rng.random() >= p), 3)
        learned.observe_block(3, accepted)
    assert [row[0] for row in learned.table().table] == pytest.approx(true, abs=0.08)


def test_only_tested_places_are_learned_from():
    learned = Calibration(Acceptance.constant(0.5, 3), prior=1)
    learned.observe_block(3, 1)
    assert [row[0] for row in learned.table().table] == [0.75, 0.25, 0.5]
    learned.observe_block(0, 0)
    learned.observe(9, 0)
    assert [row[0] for row in learned.table().table] == [0.75, 0.25, 0.5]


def test_ranks_are_learned_and_stay_a_distribution():
    learned = Calibration(Acceptance(((0.6, 0.3),)), prior=1, rate=0.5)
    for _ in range(6):
        learned.observe(0, 1, candidates=2)
    first, second = learned.table().table[0]
    assert second > 0.9 > 0.1 > first
    learned = Calibration(Acceptance(((0.1, 0.8),)), prior=1, rate=0.5)
    for _ in range(6):
        learned.observe(0, 0, candidates=1)
    assert sum(learned.table().table[0]) <= 1 + 1e-9


def test_the_better_judge_is_believed():
    rng = random.Random(1)
    vain, honest = Calibration(Acceptance.constant(0.5, 1)), Calibration(Acceptance.constant(0.5, 1))
    assert vain.probability(0, 0, 0.99) == 0.99  # nothing is known yet
    for _ in range(400):
        hit = rng.random() < 0.4
        vain.observe(0, 0 if hit else None, 1, [0.99])
        own = 0.95 if (hit2 := rng.random() < 0.5) else 0.05
        honest.observe(0, 0 if hit2 else None, 1, [own])
    assert vain.brier[0] > vain.brier[1]
    assert vain.probability(0, 0, 0.99) == pytest.approx(0.4, abs=0.15)
    assert honest.brier[0] < honest.brier[1]
    assert honest.probability(0, 0, 0.95) == 0.95
    assert honest.probability(0, 0) == honest.table().table[0][0]
    assert honest.probability(5, 3) == 0.0


def test_drift_is_relative_to_the_mark():
    learned = Calibration(Acceptance.constant(0.5, 2), rate=0.1, prior=10)
    learned.observe_block(1, 1)
    assert learned.drift() == pytest.approx((0.5 + 0.5 * 0.1 - 0.5) / 0.5)
    learned.mark()
    assert learned.drift() == 0


CONFIG: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 100,
    "torch_dtype": "float32",
}  # fmt: skip
DRAFT = CONFIG | {"hidden_size": 32, "num_hidden_layers": 1}


def replanner(first: float = 0.9, **options: Any) -> Replanner:
    costs = Measured({1: 1.0, 16: 1.6}, 0.1)
    table = Acceptance.constant(first, 8)
    return Replanner(Planner(MemoryModel(CONFIG, DRAFT), 1, 200, acceptance=table, costs=costs), 10**9, **options)


def of(made: Any) -> Plan:
    assert isinstance(made, Plan)
    return made


def test_a_drafter_that_disappoints_is_given_less_and_then_nothing():
    run = replanner()
    start = of(run.plan).n
    assert start > 4
    assert of(run.plan).bytes["weights_draft"] > 0
    planned = sum(run.observe_block(start - 1, 0) for _ in range(100))
    assert 1 < planned < 60
    assert of(run.plan).n == 1
    assert of(run.plan).bytes["weights_draft"] > 0, "it stays loaded"


def test_small_changes_make_no_new_plan():
    run = replanner()
    assert run.plans == 1
    assert not run.observe_block(1, 1)
    assert run.plans == 1


def test_every_turn_is_planned_and_drafting_is_tried_again():
    run = replanner(probe=3)
    n = of(run.plan).n
    while of(run.plan).n > 1:
        run.observe_block(3, 0)
    assert [of(run.turn()).n for _ in range(4)] == [1, 1, n, n if of(run.plan).n > 1 else 1]
    assert of(run.turn(now=50, context=80)).L_max == 80
    run.budget = 1
    assert run.turn().missing_bytes > 0  # type: ignore[union-attr]
    with pytest.raises(ConfigError):
        replanner(threshold=0)
