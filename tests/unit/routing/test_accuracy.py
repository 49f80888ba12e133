"""Expected accuracy: the published numbers, and never a rise with length."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remnant.routing import ContextRouter, Index, Mode, Model, QueryType, Request, Settings
from remnant.routing.accuracy import p_answerable

# Pakhomov et al. 2025, ConvoMem, released results, mid-tier model: % right at 6, 30, 100, 150, 300 conversations
# of full context and of a memory of facts, and USD per question of full context at 30 and 300.
REPLAY = {
    (QueryType.USER_FACT, 1): ((91.0, 87.5, 84.4, 82.0, 83.6), (75.7, 68.3, 56.6, 56.0, 61.0)),
    (QueryType.MULTI_HOP, 6): ((93.5, 90.6, 80.8, 86.5, 83.4), (54.2, 53.8, 37.0, 33.9, 25.0)),
    (QueryType.PREFERENCE, 1): ((90.4, 85.7, 78.3, 79.5, 77.3), (34.0, 31.7, 43.5, 45.5, 40.7)),
    (QueryType.IMPLICIT, 1): ((81.4, 73.3, 71.6, 67.4, 63.5), (43.9, 39.8, 37.5, 32.2, 24.9)),
}
LENGTHS = (6, 30, 100, 150, 300)
MODEL = Model(2_000_000, price_in=0.3, price_cached_in=0.075, price_out=2.5)
INDEX = Index(True, unit_tokens=50)


def chance(mode: Mode, kind: QueryType, n: float, evidence: int = 1, k: int = 20, **changes: object) -> float:
    asked = Request("q", 10, 1000, MODEL, est_evidence=evidence)
    return p_answerable(mode, kind, replace(asked, **changes), Settings(), n, k)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "evidence"), REPLAY)
def test_the_published_numbers_come_back_within_three_points(kind: QueryType, evidence: int):
    full, _ = REPLAY[kind, evidence]
    for n, percent in zip(LENGTHS, full, strict=True):
        assert chance(Mode.FULL, kind, n, evidence) == pytest.approx(percent / 100, abs=0.03)


def test_golden_values():
    assert chance(Mode.FULL, QueryType.CHANGING, 300) == pytest.approx(0.85)
    assert chance(Mode.FULL, QueryType.TEMPORAL, 300) == pytest.approx(0.85)
    assert chance(Mode.FULL, QueryType.ASSISTANT_FACT, 1000) == pytest.approx(0.985)
    assert chance(Mode.FULL, QueryType.ABSTAIN_PROBE, 1) == pytest.approx(0.993)
    assert chance(Mode.FULL, QueryType.IMPLICIT, (6 * 30) ** 0.5) == pytest.approx((0.814 + 0.733) / 2)
    assert chance(Mode.BLOCK_EXTRACT, QueryType.IMPLICIT, 300, extractor=Model(1000, tier="weak")) == pytest.approx(
        0.634
    )
    assert chance(Mode.NONE, QueryType.IMPLICIT, 5) == 0


def test_weak_readers_fall_earlier():
    weak = Model(1000, tier="weak")
    lost = [
        chance(Mode.FULL, QueryType.MULTI_HOP, 10, 6, model=m) - chance(Mode.FULL, QueryType.MULTI_HOP, 100, 6, model=m)
        for m in (MODEL, weak)
    ]
    assert lost[1] > 2 * lost[0]


def test_measured_recall_takes_the_place_of_the_prior():
    index = Index(True, recall_at={10: 0.5, 40: 0.9})
    prior = chance(Mode.RAG, QueryType.USER_FACT, 6)
    assert prior == pytest.approx(0.757)
    assert chance(Mode.RAG, QueryType.USER_FACT, 6, index=index) == pytest.approx(0.5 * 0.91)
    assert chance(Mode.RAG, QueryType.USER_FACT, 6, k=40, index=index) == pytest.approx(0.9 * 0.91)
    assert chance(Mode.RAG, QueryType.USER_FACT, 6, k=5, index=index) == prior  # nothing was measured so low


@given(
    mode=st.sampled_from(list(Mode)),
    kind=st.sampled_from(list(QueryType)),
    tier=st.sampled_from(["weak", "mid", "top"]),
    evidence=st.sampled_from([1, 6]),
    recall=st.sampled_from([{}, {10: 1.0}]),
    a=st.floats(0.5, 3000),
    b=st.floats(0.5, 3000),
)
def test_no_mode_answers_more_when_the_history_grows(
    mode: Mode, kind: QueryType, tier: str, evidence: int, recall: dict[int, float], a: float, b: float
):
    values = [
        chance(mode, kind, n, evidence, model=Model(9, tier=tier), index=Index(True, recall_at=recall))
        for n in sorted((a, b))
    ]
    assert 1 >= values[0] >= values[1] - 1e-12 >= -1e-12


def replayed(kind: QueryType, evidence: int, n: int, mode: Mode) -> float:
    """Percent that a mode reached; modes that were not run take the router's own estimate."""
    full, rag = REPLAY[kind, evidence]
    measured = {Mode.FULL: full, Mode.RAG: rag}
    return measured[mode][LENGTHS.index(n)] if mode in measured else 100 * chance(mode, kind, n, evidence)


@pytest.mark.parametrize(("kind", "evidence"), REPLAY)
def test_replay_of_the_table(kind: QueryType, evidence: int):
    router, regret = ContextRouter(), dict[int, float]()
    for n in LENGTHS:
        asked = Request("q", n, n * 1500, MODEL, kind, est_evidence=evidence, index=INDEX)
        found = router.decide(asked)
        options = {option.mode: option for option in found.considered}
        reached = replayed(kind, evidence, n, found.mode)
        assert reached >= replayed(kind, evidence, n, Mode.RAG)  # never behind always retrieving
        assert found.cost.usd <= options[Mode.FULL].cost.usd  # never dearer than always reading everything
        regret[n] = max(replayed(kind, evidence, n, mode) for mode in (Mode.FULL, Mode.RAG)) - reached
    assert max(regret[n] for n in (6, 30)) <= 2
    if kind is not QueryType.USER_FACT:  # facts trade accuracy for a fourth of the cost above 30
        assert max(regret[n] for n in (6, 30, 100, 150)) <= 2
