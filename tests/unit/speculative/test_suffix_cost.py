"""What the index costs, counted in operations and bytes rather than in seconds."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remnant.speculative import suffix
from remnant.speculative.match import (
    _BUCKETS,  # pyright: ignore[reportPrivateUsage]
    ALL,
    ALONE,
    COPIED,
    FEW,
    MOST,
    Rates,
    grounds_of,
)
from remnant.speculative.suffix import MatchOptions, SuffixIndex


def _fibonacci(n: int) -> list[int]:
    a, b = [0], [0, 1]
    while len(b) < n:
        a, b = b, b + a
    return b[:n]


def _noisy(n: int) -> list[int]:
    """A block copied again and again with a wrong token now and then."""
    r = random.Random(0)
    block = [r.randrange(9) for _ in range(40)]
    return [r.randrange(9) if r.random() < 0.05 else block[i % 40] for i in range(n)]


TEXTS: dict[str, Callable[[int], list[int]]] = {
    "one token": lambda n: [0] * n,
    "period": lambda n: [i % 3 for i in range(n)],
    "broken runs": lambda n: [int(i % 17 == 16) * (i % 5 + 1) for i in range(n)],
    "fibonacci": _fibonacci,
    "noisy copies": _noisy,
    "two tokens": lambda n: random.Random(1).choices((0, 1), k=n),
    "all different": lambda n: list(range(n)),
    "squares": lambda n: [i * i % 97 for i in range(n)],
}


@pytest.mark.parametrize("text", TEXTS)
def test_work_per_token_is_bounded_and_does_not_grow_with_the_text(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    plain = suffix.common_suffix

    def counting(*given: object) -> int:
        nonlocal compared
        length = plain(*given)  # pyright: ignore[reportArgumentType]
        compared += length - int(given[3]) + 1  # pyright: ignore[reportArgumentType]
        return length

    monkeypatch.setattr(suffix, "common_suffix", counting)
    options = MatchOptions(probes=8, depth=24, max_tokens=2048)

    def work(n: int) -> float:
        nonlocal compared
        compared = 0
        tokens = TEXTS[text](n)
        index = SuffixIndex(tokens[:100], options)
        for at in range(100, n, 3):
            index.extend(tokens[at : at + 3])
            index.propose(4)
        done = index.stats()
        assert done["searches"] <= n - 100 + 1
        assert done["probes"] <= options.probes * done["searches"]
        return (done["searches"] + done["probes"] + done["linked"] + compared) / n

    short, long = work(1000), work(8000)
    bound = 1 + options.probes + 2 + options.probes * options.depth
    assert long <= bound
    assert long <= 1.3 * short + 2  # the window moves in the long text only: at most one more link a token


def test_a_token_that_the_match_foretold_costs_no_search() -> None:
    block = list(range(200))
    index = SuffixIndex(block + block[:10])
    before = index.stats()["searches"]
    index.extend(block[10:200])
    assert index.stats()["searches"] == before
    assert index.match() == (200, 200)


def test_memory_stays_below_what_is_documented() -> None:
    tracemalloc.start()
    try:
        index = SuffixIndex((), MatchOptions(max_tokens=1 << 12))
        before = tracemalloc.get_traced_memory()[0]
        for at in range(0, 1 << 12, 64):  # no gram occurs twice: the dearest text
            index.extend(range(at, at + 64))
        whole = tracemalloc.get_traced_memory()[0] - before
        assert whole <= (24 + 290) * len(index)
        for at in range(1 << 12, 4 << 12, 64):
            index.extend(range(at, at + 64))
        longer = tracemalloc.get_traced_memory()[0] - before
        assert longer <= 24 * len(index) + 290 * (1 << 12)
    finally:
        tracemalloc.stop()


def test_what_was_counted_can_be_taken_back() -> None:
    r = random.Random(0)
    rates, fresh = Rates(), Rates()
    done = [(r.randrange(1, 60), r.randrange(5), r.randrange(0, 60), r.random() < 0.5) for _ in range(100)]
    for length, grounds, run, failed in done:
        rates.count(length, grounds, run, failed=failed)
    assert _all(rates) != _all(fresh)
    for length, grounds, run, failed in reversed(done):
        rates.count(length, grounds, run, -1, failed=failed)
    assert _all(rates) == _all(fresh)


def _all(rates: Rates) -> list[float]:
    return [rates.expected(length, grounds, 1) for length in range(70) for grounds in range(5)]


@given(st.integers(1, 60), st.integers(0, 4), st.integers(0, 60), st.booleans())
def test_a_run_is_counted_token_by_token(length: int, grounds: int, run: int, failed: bool) -> None:
    """The sums over ranges of lengths against one step per token."""
    seen, hits = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for place in range(run + failed):
        at = (COPIED if place else grounds, _BUCKETS[min(length + place, 32)])
        seen[at] += 1
        hits[at] += place < run
    rates = Rates()
    rates.count(length, grounds, run, failed=failed)
    for what, counted in ((seen, rates._seen), (hits, rates._hits)):  # pyright: ignore[reportPrivateUsage]
        told = {(g, b): n for g, row in enumerate(counted) for b, n in enumerate(row) if n}
        assert told == {at: n for at, n in what.items() if n}


def test_chances_approach_what_was_seen() -> None:
    rates = Rates()
    for _ in range(200):
        rates.count(5, ALONE, 1)  # right at 5, wrong at 6
    assert rates.expected(5, ALONE, 1) == pytest.approx(1, abs=0.02)
    assert rates.expected(6, COPIED, 1) == pytest.approx(0, abs=0.02)
    assert rates.expected(5, ALONE, 3) == pytest.approx(
        rates.expected(5, ALONE, 1) * (1 + rates.expected(6, COPIED, 2))
    )
    assert rates.expected(6, ALONE, 1) == Rates().expected(6, ALONE, 1)
    rates.count(40, ALL, 100)
    assert 0.98 < rates.expected(50, COPIED, 1) < 1


@pytest.mark.parametrize(
    ("token", "following", "grounds"),
    [(1, [1], ALONE), (1, [1, 1], ALL), (1, [1, 2, 1], MOST), (1, [1, 2], FEW), (1, [2, 1, 3], FEW)],
)
def test_grounds_are_how_many_go_on_alike(token: int, following: list[int], grounds: int) -> None:
    assert grounds_of(token, following) == grounds
