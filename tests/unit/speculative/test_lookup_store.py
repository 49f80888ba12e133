"""The store of past outputs: what it proposes, what it never shows, and what it holds."""

from __future__ import annotations

import random
import threading
import tracemalloc
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.errors import ConfigError
from remnant.speculative.match import FEW
from remnant.speculative.output_store import OutputStore, StoreOptions

SMALL = StoreOptions(max_tokens=120, max_scope_tokens=60, min_match=2, probes=1000, depth=64)
OUTPUTS = st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 3), max_size=12)), max_size=12)


def _store(**options: Any) -> OutputStore:
    plain = {"max_tokens": 1000, "max_scope_tokens": 1000, "min_match": 2, "depth": 16}
    return OutputStore(StoreOptions(**{**plain, **options}))


def _agree(output: list[int], at: int, context: list[int]) -> int:
    length = 0
    while length <= at and length < len(context) and output[at - length] == context[-1 - length]:
        length += 1
    return length


def _naive(outputs: list[list[int]], context: list[int], least: int) -> tuple[int, set[int]]:
    """The longest match in any output, and the tokens that most of such matches go on with."""
    found = [(_agree(o, at, context), o[at + 1]) for o in outputs for at in range(len(o) - 1)]
    best = max((length for length, _ in found), default=0)
    if best < least:
        return 0, set()
    votes = Counter(token for length, token in found if length == best)
    return best, {token for token, count in votes.items() if count == max(votes.values())}


@given(OUTPUTS, st.lists(st.integers(0, 3), max_size=10))
def test_the_longest_match_of_the_scope_is_found(outputs: list[tuple[str, list[int]]], context: list[int]) -> None:
    store = OutputStore(StoreOptions(2000, 1000, 2, 1000, 64))
    held: dict[str, list[list[int]]] = {"a": [], "b": []}
    for scope, tokens in outputs:
        assert store.add(scope, tokens) == (len(tokens) > 2 and tokens not in held[scope])
        if len(tokens) > 2 and tokens not in held[scope]:
            held[scope].append(tokens)
    for scope, mine in held.items():
        length, tokens = _naive(mine, context, 2)
        draft, found, _ = store.find(scope, context, 4)
        assert found == length
        assert set(draft[:1]) <= tokens
        assert bool(draft) == bool(tokens)


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_nothing_of_one_scope_ever_reaches_another(seed: int) -> None:
    """Every scope writes tokens of its own behind shared ones; only its own may come back, and only while held."""
    r = random.Random(seed)
    scopes = {name: 100 * (i + 1) for i, name in enumerate("abcd")}
    store, held = OutputStore(SMALL), {name: list[list[int]]() for name in scopes}
    for _ in range(60):
        scope = r.choice("abcd")
        act = r.random()
        if act < 0.5:
            output = [t for _ in range(r.randrange(2, 7)) for t in (1, 2, scopes[scope] + r.randrange(5))]
            store.add(scope, output)
            held[scope].append(output)
        elif act < 0.55:
            store.forget(scope)
            held[scope].clear()
        context = [r.choice((1, 2)), 1, 2]
        for name, low in scopes.items():
            draft = store.propose(name, context, 5)
            assert all(t < 100 or low <= t < low + 100 for t in draft)
            assert not draft or any(_holds(output, [1, 2, *draft]) for output in held[name])
        stats = store.stats()
        assert stats["tokens"] <= SMALL.max_tokens
        assert stats["scopes"] <= len(scopes)


def _holds(output: list[int], part: list[int]) -> bool:
    return any(output[i : i + len(part)] == part for i in range(len(output)))


@settings(max_examples=60)
@given(OUTPUTS, st.lists(st.integers(0, 3), min_size=2, max_size=6))
def test_dropping_outputs_leaves_what_never_adding_them_would_have_left(
    outputs: list[tuple[str, list[int]]], context: list[int]
) -> None:
    full, after = OutputStore(StoreOptions(30, 20, 2, 1000, 64)), OutputStore(StoreOptions(2000, 1000, 2, 1000, 64))
    for scope, tokens in outputs:
        full.add(scope, tokens)
    for number, scope in full._used.items():  # pyright: ignore[reportPrivateUsage]
        after.add(scope, full._shelves[scope].outputs[number].tokens)  # pyright: ignore[reportPrivateUsage]
    for scope in "ab":
        mine = full.find(scope, context, 5)
        length = after.find(scope, context, 5)[1]
        assert mine[1] == length
    assert full.stats() == after.stats()


def test_a_proposal_never_runs_over_the_end_of_its_output() -> None:
    store = _store()
    store.add("a", [1, 2, 3, 4])
    store.add("a", [5, 6, 7, 8])
    assert store.propose("a", [1, 2], 9) == [3, 4]
    assert store.propose("a", [2, 3], 9) == [4]
    assert store.propose("a", [3, 4], 9) == []
    assert store.propose("a", [4, 5], 9) == []  # across two outputs


def test_the_most_frequent_continuation_wins_then_the_newest() -> None:
    store = _store()
    for output in ([1, 2, 3, 9], [1, 2, 4, 9], [1, 2, 3, 8]):
        store.add("a", output)
    assert store.propose("a", [1, 2], 2) == [3, 8]
    store.add("a", [1, 2, 4, 7])
    assert store.propose("a", [1, 2], 2) == [4, 7]


def test_a_longer_match_wins_over_a_more_frequent_one() -> None:
    store = _store()
    for output in ([7, 1, 2, 3], [8, 1, 2, 4], [9, 1, 2, 4]):
        store.add("a", output)
    assert store.find("a", [7, 1, 2], 3) == ([3], 3, FEW)


def test_the_output_that_was_used_least_recently_goes_first() -> None:
    store = _store(max_tokens=12, max_scope_tokens=12)
    store.add("a", [1, 2, 3, 4])
    store.add("a", [5, 6, 7, 8])
    store.add("a", [11, 12, 13, 14])
    assert store.propose("a", [1, 2], 1) == [3]  # used now
    store.add("a", [21, 22, 23, 24])
    assert store.propose("a", [5, 6], 1) == []
    assert store.propose("a", [1, 2], 1) == [3]
    assert store.stats() == {"scopes": 1, "outputs": 3, "tokens": 12}


def test_a_busy_scope_drops_its_own_outputs_first() -> None:
    store = _store(max_tokens=24, max_scope_tokens=12)
    store.add("quiet", [1, 2, 3, 4])
    for start in range(10, 100, 10):
        store.add("busy", [start, start + 1, start + 2, start + 3])
    assert store.propose("quiet", [1, 2], 2) == [3, 4]
    assert store.stats() == {"scopes": 2, "outputs": 4, "tokens": 16}


def test_of_an_output_longer_than_a_scope_may_hold_the_end_is_kept() -> None:
    store = _store(max_scope_tokens=6)
    assert store.add("a", range(10))
    assert store.stats()["tokens"] == 6
    assert store.propose("a", [2, 3], 4) == []
    assert store.propose("a", [4, 5], 9) == [6, 7, 8, 9]


def test_the_same_output_is_held_once() -> None:
    store = _store()
    assert store.add("a", [1, 2, 3])
    assert not store.add("a", [1, 2, 3])
    assert store.add("b", [1, 2, 3])
    assert store.stats() == {"scopes": 2, "outputs": 2, "tokens": 6}


def test_forgetting_a_scope_leaves_nothing_of_it() -> None:
    store = _store()
    store.add("a", [1, 2, 3])
    store.add("b", [1, 2, 4])
    assert store.forget("a") == 1
    assert store.forget("a") == 0
    assert store.propose("a", [1, 2], 1) == []
    assert store.propose("b", [1, 2], 1) == [4]
    assert store.stats() == {"scopes": 1, "outputs": 1, "tokens": 3}
    assert store.add("a", [1, 2, 3])


def test_nothing_is_proposed_for_a_short_context_or_no_room() -> None:
    store = _store()
    assert not store.add("a", [1, 2])  # nothing could follow a match
    store.add("a", [1, 2, 3])
    assert store.propose("a", [2], 4) == []
    assert store.propose("a", [], 4) == []
    assert store.propose("a", [1, 2], 0) == []
    assert store.propose("nobody", [1, 2], 4) == []


@pytest.mark.parametrize("call", [lambda s: s.add("", [1, 2, 3]), lambda s: s.propose("", [1], 1),
                                  lambda s: s.forget(""), lambda s: s.add("a", [-1, 2, 3])])  # fmt: skip
def test_a_call_without_a_tenant_or_with_bad_tokens_is_refused(call: Any) -> None:
    with pytest.raises(ConfigError, match=r"scope|token"):
        call(_store())


@pytest.mark.parametrize("given", [{"min_match": 0}, {"probes": 0}, {"depth": 1}, {"max_scope_tokens": 2},
                                   {"max_tokens": 999}])  # fmt: skip
def test_bounds_that_do_not_fit_each_other_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        _store(**given)


def test_calls_from_several_threads_keep_the_store_whole() -> None:
    store, wrong = OutputStore(SMALL), list[str]()

    def work(number: int) -> None:
        r, scope, low = random.Random(number), f"s{number % 3}", 100 * (number % 3)
        for _ in range(150):
            try:
                store.add(scope, [low + r.randrange(6) for _ in range(r.randrange(3, 20))])
                draft = store.propose(scope, [low + r.randrange(6) for _ in range(4)], 5)
                if any(not low <= token < low + 100 for token in draft):
                    wrong.append(f"{scope}: {draft}")
                if r.random() < 0.02:
                    store.forget(scope)
            except Exception as error:  # a thread's error would be lost
                wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    held = {scope: sum(len(o.tokens) for o in shelf.outputs.values()) for scope, shelf in store._shelves.items()}  # pyright: ignore[reportPrivateUsage]
    assert sum(held.values()) == store.stats()["tokens"] <= SMALL.max_tokens


def test_an_emptied_store_holds_nothing() -> None:
    """What is dropped leaves no key behind: else a store in long use would grow."""
    store = _store(max_tokens=40, max_scope_tokens=40)
    r = random.Random(0)
    for _ in range(200):
        store.add("a", [r.randrange(30) for _ in range(r.randrange(3, 15))])
    shelf = store._shelves["a"]  # pyright: ignore[reportPrivateUsage]
    grams = {tuple(o.tokens[i : i + 2]) for o in shelf.outputs.values() for i in range(len(o.tokens) - 2)}
    assert len(shelf.heads) == len(grams)
    assert len(shelf.digests) == len(shelf.outputs)


def test_memory_stays_below_what_is_documented() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        store = OutputStore(StoreOptions(max_tokens=6000, max_scope_tokens=6000))
        for start in range(0, 18_000, 500):  # no gram occurs twice: the dearest outputs
            store.add("a", range(start, start + 500))
            if start > 1500:
                assert tracemalloc.get_traced_memory()[0] - before <= 240 * store.stats()["tokens"]
    finally:
        tracemalloc.stop()
