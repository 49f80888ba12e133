"""Costs: the formulas by hand, and what must hold for any request."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remnant.errors import ConfigError
from remnant.routing import Budgets, Cache, Index, Mode, Model, Request, Settings, break_even, count_tokens, estimate

MODEL = Model(1_000_000, price_in=1.0, price_cached_in=0.1, price_out=4.0, prefill_tok_s=1000, decode_tok_s=100)
EXTRACTOR = Model(100_000, price_in=0.5, price_out=2.0, prefill_tok_s=2000, decode_tok_s=200, ttft_s=0.1)
QUERY = "q" * 80  # 20 tokens


def request(**changes: object) -> Request:
    given = {"query": QUERY, "n_conversations": 100, "history_tokens": 100_000, "model": MODEL, "output_tokens": 200}
    return Request(**{**given, **changes})  # type: ignore[arg-type]


def test_full_reads_what_is_not_cached():
    cache = Cache(60_000, ttl_left_s=10)
    found = estimate(Mode.FULL, request(cache=cache), Settings(), 0)
    assert found.usd == pytest.approx((60_000 * 0.1 + 40_000 + 20 + 200 * 4) / 1e6)
    assert found.latency_s == pytest.approx(0.5 + 40 + 2)
    assert (found.tokens_in, found.tokens_out, found.longest_prompt, found.calls) == (100_020, 200, 100_220, 1)


@pytest.mark.parametrize(
    ("cache", "version", "new", "cached"),
    [
        (Cache(60_000, 10), "", 0, 60_000),
        (Cache(60_000, 10), "", 90_000, 10_000),  # the newest tokens cannot be cached
        (Cache(60_000, 0), "", 0, 0),  # expired
        (Cache(60_000, 10, "v1"), "v2", 0, 0),  # something was deleted since
        (Cache(900_000, 10), "", 0, 100_000),
        (Cache(10, 10), "", 900_000, 0),
    ],
)
def test_what_counts_as_cached(cache: Cache, version: str, new: int, cached: int):
    assert request(cache=cache, store_version=version, tokens_new_since_cache=new).cached_tokens == cached


def test_without_a_cached_price_cached_tokens_cost_the_same():
    plain = Model(1_000_000, price_in=1.0)
    cost = [estimate(Mode.FULL, request(model=plain, cache=Cache(n, 1)), Settings(), 0).usd for n in (0, 50_000)]
    assert cost[0] == cost[1]


def test_rag_reads_k_units_and_pays_its_share_of_the_index():
    index = Index(True, 2000, usd_query=0.001, usd_ingest=0.5, search_s=0.05, rerank_s=0.2)  # 50 tokens per unit
    found = estimate(Mode.RAG, request(index=index, calls_expected=10), Settings(), 20)
    assert found.usd == pytest.approx(0.001 + 0.05 + (20 * 50 + 20 + 200 * 4) / 1e6)
    assert found.latency_s == pytest.approx(0.05 + 0.2 + 0.5 + 1 + 2)
    assert found.tokens_in == 1020


def test_recent_and_unindexed_conversations_are_read_verbatim():
    index = Index(True, unit_tokens=50)
    assert estimate(Mode.RECENT_PLUS_RAG, request(index=index), Settings(), 20).tokens_in == 10_000 + 1000 + 20
    late = Index(True, unit_tokens=50, unindexed_tokens=12_000)
    assert estimate(Mode.RECENT_PLUS_RAG, request(index=late), Settings(), 20).tokens_in == 12_000 + 1000 + 20
    assert estimate(Mode.RAG, request(index=late), Settings(), 20).tokens_in == 12_000 + 1000 + 20


def test_blocks_are_read_by_the_extractor():
    found = estimate(Mode.BLOCK_EXTRACT, request(extractor=EXTRACTOR, est_evidence=2), Settings(parallel=4), 0)
    assert found.usd == pytest.approx((100_000 * 0.5 + 10 * 300 * 2 + 2 * 300 + 200 * 4) / 1e6)
    assert found.latency_s == pytest.approx(3 * (0.1 + 5 + 1.5) + 0.5 + 0.6 + 2)
    assert (found.calls, found.tokens_out) == (11, 10 * 300 + 200)


def test_retrieved_conversations_are_half_of_them_here():
    both = [estimate(m, request(), Settings(), 50).tokens_in for m in (Mode.BLOCK_EXTRACT, Mode.RETRIEVE_THEN_BLOCK)]
    assert both == [100_900, 50_900]


def test_break_even():
    assert break_even(1.0, 0.3, 0.1) == pytest.approx(5)
    assert break_even(1.0, 0.1, 0.3) == math.inf
    assert break_even(1.0, 0.1, 0.1) == math.inf
    assert break_even(0.0, 0.1, 0.1) == 0


def test_tokens_of_a_text():
    assert [count_tokens("x" * n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


@pytest.mark.parametrize(("tier", "share"), [("weak", 0.25), ("mid", 0.5), ("top", 0.75)])
def test_prior_of_the_reliable_length(tier: str, share: float):
    assert Model(1000, tier=tier).reliable_tokens == 1000 * share
    assert Model(1000, 700, tier=tier).reliable_tokens == 700
    assert Model(1000, 7000, tier=tier).reliable_tokens == 1000


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Model(0),
        lambda: Model(1000, price_in=-1),
        lambda: Model(1000, price_in=math.nan),
        lambda: Model(1000, prefill_tok_s=0),
        lambda: Model(1000, tier="huge"),
        lambda: Budgets(usd=-0.1),
        lambda: Index(True, recall_at={10: 1.5}),
        lambda: request(est_evidence=7),
        lambda: request(n_conversations=0),
        lambda: request(history_tokens=-1),  # a table of the original carries a negative count
        lambda: request(calls_expected=0),
        lambda: request(query_type="nonsense"),
    ],
)
def test_impossible_values_are_refused(wrong: object):
    with pytest.raises(ConfigError):
        wrong()  # type: ignore[operator]


PRICES = st.floats(0, 100)
SIZES = st.integers(0, 5_000_000)


@given(
    mode=st.sampled_from(list(Mode)),
    n=st.integers(1, 1000),
    tokens=SIZES,
    cached=SIZES,
    new=SIZES,
    late=SIZES,
    k=st.integers(0, 100),
    price=PRICES,
    price_cached=PRICES,
)
def test_no_cost_is_ever_negative(
    mode: Mode, n: int, tokens: int, cached: int, new: int, late: int, k: int, price: float, price_cached: float
):
    model = Model(10_000, price_in=price, price_cached_in=price_cached, price_out=price)
    asked = Request(
        "q", n, tokens, model, tokens_new_since_cache=new, cache=Cache(cached, 1), index=Index(unindexed_tokens=late)
    )
    found = estimate(mode, asked, Settings(), k)
    values = (found.usd, found.latency_s, found.tokens_in, found.tokens_out, found.longest_prompt)
    assert all(0 <= value < math.inf for value in values)
