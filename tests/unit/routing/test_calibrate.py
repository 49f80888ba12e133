"""Calibration: published rows and hand-computed answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remnant.errors import ConfigError
from remnant.routing.calibrate import Abstentions, Trial, abstention_gate, best_k, drop_weak, reliable_length


def row(*percents: float) -> dict[int, Trial]:
    return {n: Trial(round(p * 10), 1000) for n, p in zip((6, 30, 100, 150, 300), percents, strict=True)}


def test_reliable_length_of_the_published_rows():
    assert reliable_length(row(99.5, 99.5, 98.9, 98.7, 98.5), 6) == 300  # assistant facts, mid tier
    assert reliable_length(row(95.4, 81.4, 69.2, 62.2, 33.8), 6) == 6  # changing facts, weak
    assert reliable_length(row(93.5, 90.6, 80.8, 91.0, 91.0), 6) == 30  # a later rise does not count
    assert reliable_length(row(90, 85, 85, 84.9, 90), 6) == 100  # exactly 5 points still pass
    with pytest.raises(ConfigError):
        reliable_length(row(1, 1, 1, 1, 1), 10)


def test_intervals():
    assert Trial(8, 10).interval() == pytest.approx((0.490, 0.943), abs=1e-3)
    assert Trial(0, 10).interval()[0] == 0
    assert Trial(80, 400).error == pytest.approx(0.02)


def test_k_is_the_smallest_within_one_error_of_the_best():
    trials = {3: Trial(250, 400), 5: Trial(312, 400), 10: Trial(315, 400), 20: Trial(320, 400), 80: Trial(240, 400)}
    assert best_k(trials) == 5  # best .80, error .02
    with pytest.raises(ConfigError):
        best_k({3: Trial(1, 199)})
    with pytest.raises(ConfigError):
        best_k({})


def test_the_gate_lets_the_answerable_pass():
    assert abstention_gate([i / 20 for i in range(1, 21)]) == 0.1  # 19 of 20 pass
    assert abstention_gate([0.3], 1.0) == 0.3
    with pytest.raises(ConfigError):
        abstention_gate([])


@given(st.lists(st.floats(0, 1), min_size=1), st.floats(0.01, 1))
def test_the_gate_keeps_its_promise(scores: list[float], recall: float):
    gate = abstention_gate(scores, recall)
    assert sum(score >= gate for score in scores) >= recall * len(scores) - 1e-6


def test_false_answers_weigh_on_the_score():
    found = Abstentions(80, 5, 10, 100)
    assert (found.score(), found.score(0)) == (0.7, 0.8)


def test_far_behind_is_dropped():
    ranked = [("a", 3.0), ("b", 2.0), ("c", 1.9), ("d", 1.0)]
    assert [item for item, _ in drop_weak(ranked)] == ["a", "b"]
    assert drop_weak([("a", 1.0), ("b", 1.0)]) == [("a", 1.0), ("b", 1.0)]
    assert drop_weak([("a", 0.0)]) == [("a", 0.0)]
    assert drop_weak([]) == []
    with pytest.raises(ConfigError):
        drop_weak(ranked, 2)


@pytest.mark.parametrize(("right", "asked"), [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts_are_refused(right: int, asked: int):
    with pytest.raises(ConfigError):
        Trial(right, asked)
