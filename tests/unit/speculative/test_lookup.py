"""The `lookup` drafter: it keeps the contract of drafters, and rows and tenants stay apart."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from remnant.errors import ConfigError, ShapeError
from remnant.speculative.drafter import Drafter, get_drafter, list_drafters
from remnant.speculative.drafters.lookup import Lookup
from remnant.speculative.engine import generate
from remnant.speculative.output_store import OutputStore, StoreOptions

STORE = StoreOptions(max_tokens=2000, max_scope_tokens=1000, min_match=3, depth=16)


def _ids(*tokens: int) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int64)


def _lists(drafts: Sequence[Any]) -> list[list[int]]:
    return [draft.ids.tolist() for draft in drafts]


def test_it_is_a_drafter_that_needs_no_vocabulary() -> None:
    drafter = Lookup()
    assert isinstance(drafter, Drafter)
    assert (drafter.name, drafter.vocab_size) == ("lookup", None)


def test_it_is_made_by_name() -> None:
    assert "lookup" in list_drafters()
    assert isinstance(get_drafter("lookup", min_match=3), Lookup)
    with pytest.raises(ConfigError, match="'lookup' with"):
        get_drafter("lookup", min_mach=3)


def test_a_repetition_is_proposed_row_by_row() -> None:
    drafter = Lookup()
    drafter.reset([_ids(1, 2, 3, 4, 5, 1, 2, 3), _ids(7, 8), _ids(1, 2, 3, 4, 5, 1, 2, 3)])
    drafts = drafter.propose([2, 2, 0])
    assert _lists(drafts) == [[4, 5], [], []]
    assert all(draft.q is None and draft.tree is None and draft.ids.dtype == torch.int64 for draft in drafts)
    drafter.observe([_ids(4, 9), _ids(7, 8, 7, 8, 7), _ids()])
    assert _lists(drafter.propose([3, 3, 1])) == [[], [8, 7, 8], [4]]


def test_proposing_twice_changes_nothing() -> None:
    drafter = Lookup()
    drafter.reset([_ids(1, 2, 3, 4, 5, 1, 2, 3)])
    assert _lists(drafter.propose([2])) == _lists(drafter.propose([2])) == [[4, 5]]


def test_greedy_decoding_with_it_is_greedy_decoding(tiny: Any) -> None:
    prompts = [torch.tensor([3, 1, 4, 1, 5, 3, 1, 4]), torch.tensor([2, 7, 2, 7, 2])]
    drafter = Lookup(min_share=0, min_match=1)
    whole = generate(tiny(), drafter, prompts, max_new_tokens=40, num_draft=4)
    plain = generate(tiny(), None, prompts, max_new_tokens=40)
    assert [row.tolist() for row in whole.ids] == [row.tolist() for row in plain.ids]
    assert whole.stats.accepted > 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_taking_tokens_back_leaves_what_never_observing_them_would_have_left(seed: int, shared: bool) -> None:
    r = random.Random(seed)
    prompt = [r.randrange(4) for _ in range(12)]
    parts = [[r.randrange(4) for _ in range(r.randrange(1, 5))] for _ in range(8)]
    gone = r.randrange(sum(map(len, parts)) + 1)

    def made() -> Lookup:
        store = OutputStore(STORE)
        for start in range(4):
            store.add("a", [(start + i * i) % 4 for i in range(40)])
        drafter = Lookup(min_share=0.2, store=store, scope="a") if shared else Lookup(min_share=0.2)
        drafter.reset([_ids(*prompt)])
        return drafter

    back, never = made(), made()
    for part in parts:
        back.propose([4])
        back.observe([_ids(*part)])
    back.rollback([gone])
    left = sum(map(len, parts)) - gone
    for part in parts:
        if left <= 0:
            break
        never.propose([4])
        never.observe([_ids(*part[:left])])
        left -= len(part)
    more = [r.randrange(4) for _ in range(6)]
    for drafter in (back, never):
        drafter.observe([_ids(*more)])
    assert _lists(back.propose([5])) == _lists(never.propose([5]))
    rows = [drafter._rows[0] for drafter in (back, never)]  # pyright: ignore[reportPrivateUsage]
    assert rows[0]._rates._seen == rows[1]._rates._seen  # pyright: ignore[reportPrivateUsage]


def test_outputs_are_shared_only_where_a_store_is_given() -> None:
    output = _ids(5, 6, 7, 8, 9, 10)
    for drafter, expected in ((Lookup(), []), (Lookup(store=OutputStore(STORE), scope="a"), [8, 9])):
        drafter.reset([_ids(1, 2)])
        drafter.observe([output])
        drafter.reset([_ids(5, 6, 7)])
        assert _lists(drafter.propose([2])) == [expected]


def test_a_prompt_is_not_stored() -> None:
    store = OutputStore(STORE)
    drafter = Lookup(store=store, scope="a")
    drafter.reset([_ids(5, 6, 7, 8, 9)])
    drafter.observe([_ids(20, 21, 22, 23)])
    drafter.finish()
    assert store.stats() == {"scopes": 1, "outputs": 1, "tokens": 4}
    assert store.propose("a", [5, 6, 7], 1) == []
    drafter.finish()
    assert store.stats()["outputs"] == 1


def test_rows_of_two_tenants_stay_apart() -> None:
    store = OutputStore(STORE)
    drafter = Lookup(store=store, scope=["a", "b"])
    drafter.reset([_ids(1), _ids(2)])
    drafter.observe([_ids(5, 6, 7, 8), _ids(5, 6, 7, 9)])
    drafter.reset([_ids(5, 6, 7), _ids(5, 6, 7)])
    assert _lists(drafter.propose([1, 1])) == [[8], [9]]
    other = Lookup(store=store, scope="c")
    other.reset([_ids(5, 6, 7)])
    assert _lists(other.propose([1])) == [[]]


def test_the_longer_match_is_followed_whether_of_the_request_or_of_the_store() -> None:
    store = OutputStore(STORE)
    store.add("a", [3, 4, 5, 6, 60])
    drafter = Lookup(store=store, scope="a", min_share=0)
    drafter.reset([_ids(5, 6, 50, 3, 4, 5, 6)])
    assert _lists(drafter.propose([1])) == [[60]]
    drafter.reset([_ids(3, 4, 5, 6, 50, 3, 4, 5, 6)])
    assert _lists(drafter.propose([1])) == [[50]]


def test_a_store_that_is_always_wrong_is_left() -> None:
    store = OutputStore(STORE)
    store.add("a", [1, 2, 3, 4])
    drafter = Lookup(store=store, scope="a")
    drafter.reset([_ids(9)])
    asked = list[int]()
    for turn in range(30):
        drafter.observe([_ids(1, 2, 3)])
        asked.append(_lists(drafter.propose([1]))[0] == [4])
        drafter.observe([_ids(20 + turn)])
    assert asked[0]
    assert not any(asked[-10:])


def test_a_failed_reset_leaves_the_rows_as_they_were() -> None:
    drafter = Lookup()
    drafter.reset([_ids(1, 2, 3, 4, 5, 1, 2, 3)])
    with pytest.raises(ShapeError, match="a prompt of"):
        drafter.reset([torch.zeros(1, 3, dtype=torch.int64)])
    assert _lists(drafter.propose([1])) == [[4]]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda d: d.propose([1]), "1 limits for 2 rows"),
        (lambda d: d.propose([1, -1]), "limits"),
        (lambda d: d.observe([_ids(1)]), "1 emitted rows for 2 rows"),
        (lambda d: d.rollback([0]), "1 counts for 2 rows"),
        (lambda d: d.rollback([0, 3]), "row 1 has"),
        (lambda d: d.rollback([-1, 0]), "row 0 has"),
    ],
)
def test_calls_that_do_not_fit_the_rows_are_refused(call: Any, says: str) -> None:
    drafter = Lookup()
    drafter.reset([_ids(1, 2), _ids(3)])
    drafter.observe([_ids(1, 2, 3), _ids(4, 5)])
    with pytest.raises(ConfigError, match=says):
        call(drafter)
    drafter.rollback([3, 2])


@pytest.mark.parametrize("tokens", [torch.zeros(2), torch.zeros(1, 2, dtype=torch.int64), _ids(1).int()])
def test_tensors_that_are_no_tokens_are_refused(tokens: Tensor) -> None:
    drafter = Lookup()
    drafter.reset([_ids(1)])
    with pytest.raises(ShapeError, match="int64"):
        drafter.observe([tokens])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"min_match": 0}, "min_match 0"),
        ({"min_share": 2}, "min_share 2"),
        ({"probes": 0}, "probes 0"),
        ({"max_tokens": 10}, "max_tokens 10"),
        ({"store": OutputStore()}, "a store without a scope"),
        ({"store": OutputStore(), "scope": ""}, "a store without a scope"),
        ({"scope": "a"}, "a scope without a store"),
    ],
)
def test_an_option_outside_its_range_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Lookup(**options)


@pytest.mark.parametrize("scope", [["a"], ["a", "b", "c"], ["a", ""]])
def test_scopes_that_do_not_fit_the_prompts_are_refused(scope: list[str]) -> None:
    with pytest.raises(ConfigError, match="2 names, one per prompt"):
        Lookup(store=OutputStore(), scope=scope).reset([_ids(1), _ids(2)])


def test_a_least_match_above_the_long_one_moves_the_long_one_up() -> None:
    options = Lookup(min_match=40).options
    assert (options.min_match, options.long_match, options.depth) == (40, 41, 41)
