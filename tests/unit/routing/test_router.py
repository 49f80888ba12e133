"""Decisions: the policy's cases by hand, and what must hold for any request."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from remnant.errors import ConfigError
from remnant.routing import (
    Budgets,
    Cache,
    ContextRouter,
    Index,
    Mode,
    Model,
    Order,
    QueryType,
    Request,
    RouteDecision,
    Settings,
    should_escalate,
)

MODEL = Model(1_000_000, price_in=0.3, price_cached_in=0.03, price_out=2.5)
INDEX = Index(True, unit_tokens=50)
FACTS = [QueryType.USER_FACT, QueryType.ASSISTANT_FACT, QueryType.TEMPORAL, QueryType.ABSTAIN_PROBE]
OTHERS = [QueryType.PREFERENCE, QueryType.IMPLICIT, QueryType.MULTI_HOP, QueryType.CHANGING]
TYPES = [kind for kind in QueryType if kind is not QueryType.UNKNOWN]


def request(n: int, kind: QueryType = QueryType.USER_FACT, **changes: object) -> Request:
    given = {"query": "q", "n_conversations": n, "history_tokens": n * 1500, "model": MODEL, "index": INDEX}
    return Request(**{**given, "query_type": kind, **changes})  # type: ignore[arg-type]


def decide(n: int, kind: QueryType = QueryType.USER_FACT, **changes: object) -> RouteDecision:
    return ContextRouter().decide(request(n, kind, **changes))


def test_no_history_no_mode():
    found = decide(0)
    assert (found.mode, found.cost.usd, found.escalation) == (Mode.NONE, 0.0, ())
    assert "no history" in found.why


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("n", [1, 2, 10, 30])
def test_up_to_30_everything_is_read(n: int, kind: QueryType):
    assert decide(n, kind).mode is Mode.FULL


@pytest.mark.parametrize(
    ("n", "kind", "mode"),
    [
        *((n, kind, Mode.RECENT_PLUS_RAG) for kind in FACTS for n in (31, 150)),
        *((n, kind, Mode.FULL) for kind in OTHERS for n in (31, 150)),
        *((151, kind, Mode.RAG) for kind in FACTS),
        *((151, kind, Mode.RETRIEVE_THEN_BLOCK) for kind in OTHERS),
    ],
)
def test_the_thresholds_and_the_types(n: int, kind: QueryType, mode: Mode):
    assert decide(n, kind).mode is mode


def test_between_the_thresholds_a_cheap_full_context_is_read_for_facts_too():
    cached = Cache(60 * 1500, ttl_left_s=60)
    assert decide(60).mode is Mode.RECENT_PLUS_RAG
    assert decide(60, cache=cached).mode is Mode.FULL


@pytest.mark.parametrize("kind", OTHERS)
def test_between_the_thresholds_blocks_where_the_whole_does_not_fit(kind: QueryType):
    found = decide(100, kind, model=replace(MODEL, max_reliable_tokens=60_000))
    assert (found.mode, found.block_size, found.order) == (Mode.BLOCK_EXTRACT, 10, Order.CHRONOLOGICAL)
    assert "no full: the prompt of" in found.why


def test_several_evidence_messages_over_150_need_blocks():
    assert decide(200, est_evidence=1).mode is Mode.RAG
    assert decide(200, est_evidence=2).mode is Mode.RETRIEVE_THEN_BLOCK


@pytest.mark.parametrize(
    ("allow", "cached", "mode"),
    [(None, 300_000, Mode.RAG), (True, 0, Mode.RAG), (True, 300_000, Mode.FULL), (False, 300_000, Mode.RAG)],
)
def test_over_150_full_only_if_allowed_and_cached(allow: bool | None, cached: int, mode: Mode):
    assert decide(200, allow_full=allow, cache=Cache(cached, 60)).mode is mode


def test_full_can_be_forbidden_and_does_not_come_back_as_the_newest_conversations():
    assert decide(10, allow_full=False).mode is Mode.RAG
    assert decide(11, allow_full=False).mode is Mode.RECENT_PLUS_RAG
    assert decide(10, QueryType.IMPLICIT, allow_full=False).mode is Mode.BLOCK_EXTRACT


def test_long_conversations_count_by_their_tokens():
    assert decide(10, history_tokens=60_000).zone == 0
    assert decide(10, history_tokens=60_001).zone == 1
    assert decide(10, history_tokens=300_001).zone == 2


def test_locomo_is_read_whole_by_a_model_of_32k():
    # 19-32 sessions of together about 13,000 words: full context by tokens
    for sessions in (19, 28, 30):
        assert decide(sessions, history_tokens=17_500, model=Model(32_768, tier="top")).mode is Mode.FULL


def test_thresholds_belong_to_a_model():
    router = ContextRouter(Settings(models={"small": {"low": 5, "high": 40}}))
    small = replace(MODEL, name="small")
    assert [router.decide(request(6, model=m)).zone for m in (MODEL, small)] == [0, 1]
    assert [router.decide(request(41, model=m)).zone for m in (MODEL, small)] == [1, 2]


@pytest.mark.parametrize("overrides", [{"lowest": 5}, {"low": 200}, {"models": {}}])
def test_a_wrong_override_is_refused_at_once(overrides: dict[str, int]):
    with pytest.raises(ConfigError):
        Settings(models={"small": overrides})


@pytest.mark.parametrize(
    ("kind", "order", "reordered"),
    [
        (QueryType.USER_FACT, Order.RELEVANCE, True),
        (QueryType.TEMPORAL, Order.CHRONOLOGICAL, False),
    ],
)
def test_passages_are_reordered_unless_time_is_the_evidence(kind: QueryType, order: Order, reordered: bool):
    found = decide(200, kind)
    assert (found.mode, found.order, found.reorder) == (Mode.RAG, order, reordered)


@pytest.mark.parametrize(("tier", "k"), [("weak", 10), ("mid", 20), ("top", 40)])
def test_k_follows_the_tier_and_the_room(tier: str, k: int):
    assert decide(200, model=replace(MODEL, tier=tier)).k == k
    tight = Model(4000, 1000, tier=tier)  # (1000/1.1 - 1 - 300) / 50 = 12.2
    assert decide(200, model=tight).k == min(k, 12)


def test_without_an_index_or_room_nothing_is_left_and_it_says_so():
    found = decide(200, index=Index(), model=Model(2000))
    assert found.mode is Mode.NONE
    assert "index is not ready" in found.why
    assert "a block of" in found.why


def test_retrieval_remains_when_all_else_breaks_the_budget():
    found = decide(100, budgets=Budgets(usd=0.0))
    assert found.mode is Mode.RAG
    assert "over budget" in found.why


def test_the_classifier_is_asked_last_and_the_default_is_safe():
    plain = "Lasagna, then?"
    asked = ContextRouter(classifier=lambda _: "temporal").decide
    assert decide(10, QueryType.UNKNOWN, query=plain).query_type == "user_fact"
    assert decide(31, QueryType.UNKNOWN, query=plain).query_type == "implicit"
    assert asked(request(31, QueryType.UNKNOWN, query=plain)).query_type == "temporal"
    assert asked(request(31, QueryType.UNKNOWN, query="Do I still smoke?")).query_type == "changing"
    silent = ContextRouter(classifier=lambda _: None)
    assert silent.decide(request(31, QueryType.UNKNOWN, query=plain)).query_type == "implicit"
    with pytest.raises(ConfigError):
        ContextRouter(classifier=lambda _: "weather").decide(request(31, QueryType.UNKNOWN, query=plain))


@pytest.mark.parametrize(
    ("start", "n", "zone"),
    [(30, 33, 0), (30, 34, 1), (31, 28, 1), (31, 27, 0), (150, 165, 1), (150, 166, 2), (151, 136, 2), (151, 135, 1)],
)
def test_a_zone_is_left_only_ten_percent_past_its_threshold(start: int, n: int, zone: int):
    router = ContextRouter()
    assert router.decide(request(n), router.decide(request(start))).zone == zone


def test_hysteresis_does_not_hold_a_jump_back():
    router = ContextRouter()
    assert router.decide(request(160), router.decide(request(10))).zone == 1
    assert router.decide(request(200), router.decide(request(10))).zone == 2
    assert router.decide(request(31), router.decide(request(0))).zone == 1


def test_measured_tokens_route_again():
    router, asked = ContextRouter(), request(30, model=Model(100_000))
    first = router.decide(asked)
    assert first.mode is Mode.FULL
    again = router.measured(asked, 55_000, first)
    assert again.mode is Mode.RECENT_PLUS_RAG
    assert again.cost.longest_prompt <= 50_000


def test_steps_up_end_in_abstention():
    router = ContextRouter()
    asked = request(200)
    first = router.decide(asked)
    assert first.escalation == (Mode.RETRIEVE_THEN_BLOCK, Mode.FULL)
    second = router.escalate(asked, first)
    assert second is not None
    third = router.escalate(asked, second)
    assert third is not None
    assert (second.mode, third.mode) == first.escalation
    assert "step up from rag" in second.why
    assert router.escalate(asked, third) is None


def test_steps_up_stay_within_the_budget_together():
    costs = {option.mode: option.cost.usd for option in decide(200).considered}
    both = costs[Mode.RAG] + costs[Mode.RETRIEVE_THEN_BLOCK]
    assert decide(200, budgets=Budgets(usd=both * 1.001)).escalation == (Mode.RETRIEVE_THEN_BLOCK,)
    assert decide(200, budgets=Budgets(usd=both * 0.999)).escalation in ((), (Mode.FULL,))


@pytest.mark.parametrize(
    ("p", "empty", "top", "expected"),
    [(0.49, False, 0.0, True), (0.5, False, 1.0, False), (0.9, True, 0.81, True), (0.9, True, 0.8, False)],
)
def test_when_to_step_up(p: float, empty: bool, top: float, expected: bool):
    assert should_escalate(p, all_blocks_empty=empty, top_percentile=top) is expected


# What must hold for any request.

NUMBERS = st.integers(1, 2000)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    n, per = draw(NUMBERS), draw(st.integers(1, 5000))
    model = Model(
        draw(st.sampled_from([4_000, 32_000, 128_000, 1_000_000])),
        price_in=draw(st.sampled_from([0.0, 0.1, 3.0])),
        price_cached_in=draw(st.sampled_from([None, 0.01])),
        price_out=draw(st.sampled_from([0.0, 0.4, 15.0])),
        tier=draw(st.sampled_from(["weak", "mid", "top"])),
    )
    recall = draw(st.sampled_from([{}, {5: 0.4, 20: 0.8}, {10: 1.0}]))
    return Request(
        "what",
        n,
        n * per,
        model,
        draw(st.sampled_from(list(QueryType))),
        est_evidence=draw(st.sampled_from([None, 1, 4])),
        extractor=draw(st.sampled_from([None, Model(32_000, price_in=0.05, tier="weak")])),
        cache=Cache(draw(st.integers(0, n * per)), 60),
        index=Index(draw(st.booleans()), recall_at=recall, unit_tokens=draw(st.sampled_from([20, 500]))),
        allow_full=draw(st.sampled_from([None, True, False])),
    )


@given(requests())
def test_a_decision_is_deterministic_explained_and_fits(asked: Request):
    router = ContextRouter()
    found = router.decide(asked)
    assert found == router.decide(asked)
    assert found.why
    assert 0 <= found.p_answerable <= 1
    assert found.cost.usd >= 0
    assert len(found.escalation) <= 2
    assert found.mode not in found.escalation
    if found.mode in (Mode.FULL, Mode.RAG, Mode.RECENT_PLUS_RAG):
        assert found.cost.longest_prompt <= asked.model.reliable_tokens


@given(
    requests(), *[st.sampled_from([0.0, 1e-4, 1e-3, 0.01, 0.1, 1.0, None])] * 2, st.sampled_from([0.0, 3.0, 9.0, None])
)
def test_a_larger_budget_never_answers_less(
    asked: Request, one: float | None, other: float | None, latency: float | None
):
    low, high = sorted([one, other], key=lambda usd: float("inf") if usd is None else usd)
    router = ContextRouter()
    tight = router.decide(replace(asked, budgets=Budgets(low, latency))).p_answerable
    assert router.decide(replace(asked, budgets=Budgets(high, latency))).p_answerable >= tight
    assert router.decide(replace(asked, budgets=Budgets(high))).p_answerable >= tight


RANK = {Mode.FULL: 0, Mode.RECENT_PLUS_RAG: 1, Mode.BLOCK_EXTRACT: 1, Mode.RAG: 2, Mode.RETRIEVE_THEN_BLOCK: 2}


@given(requests(), NUMBERS, st.sampled_from([None, 1e-3, 0.01, 0.1]))
def test_a_longer_history_never_moves_back_towards_full_context(asked: Request, n: int, usd: float | None):
    assume(asked.index.ready and asked.query_type is not QueryType.UNKNOWN and asked.allow_full is not True)
    assume(asked.allow_full is None or asked.n_conversations > Settings().recent)  # below, the newest are the whole
    per = asked.history_tokens // asked.n_conversations
    unit = replace(asked.index, unit_tokens=20)
    asked = replace(asked, cache=Cache(), budgets=Budgets(usd), index=unit)
    longer = replace(asked, n_conversations=asked.n_conversations + n, history_tokens=(asked.n_conversations + n) * per)
    router = ContextRouter()
    short, long = router.decide(asked).mode, router.decide(longer).mode
    assume(Mode.NONE not in (short, long))
    assert RANK[short] <= RANK[long]
