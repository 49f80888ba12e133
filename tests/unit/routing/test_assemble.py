"""What each mode puts into a prompt, and in which order."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remnant.routing import Assembled, Cost, Mode, Order, RouteDecision, Settings, Unit, assemble

UNITS = [Unit(f"u{i}", f"c{i // 2}", f"text number {i}", f"2024-01-{i // 2 + 1:02}") for i in range(8)]
SMALL = Settings(recent=2, conversations=2)


def _decision(mode: Mode, k: int = 0, *, reorder: bool = False, order: Order = Order.CHRONOLOGICAL) -> RouteDecision:
    return RouteDecision(mode, "", Cost(), 1.0, k, reorder=reorder, order=order)


def _search(*ids: str) -> Any:
    def search(n: int) -> Sequence[tuple[str, float]]:
        return [(id, 1.0 - i / 10) for i, id in enumerate(ids)][:n]

    return search


def _never(n: int) -> Any:
    raise AssertionError("searched")


def _ids(found: Assembled) -> list[str]:
    return [unit.id for unit in found.units]


def test_full_holds_everything_and_none_nothing() -> None:
    assert _ids(assemble(_decision(Mode.FULL), UNITS, _never)) == [u.id for u in UNITS]
    assert _ids(assemble(_decision(Mode.NONE), UNITS, _never)) == []


def test_blocks_hold_whole_conversations() -> None:
    found = assemble(_decision(Mode.BLOCK_EXTRACT), UNITS, _never)
    assert [c.id for c in found.conversations] == ["c0", "c1", "c2", "c3"]
    assert found.conversations[1].text == "text number 2\ntext number 3"
    assert found.conversations[1].date == "2024-01-02"


def test_retrieved_blocks_are_the_conversations_of_the_best_units_in_order_of_time() -> None:
    found = assemble(_decision(Mode.RETRIEVE_THEN_BLOCK, 2), UNITS, _search("u7", "u6", "u1", "u2"), SMALL)
    assert [c.id for c in found.conversations] == ["c0", "c3"]
    assert _ids(found) == ["u0", "u1", "u6", "u7"]
    assert (found.found, found.top) == (("u7", "u6", "u1"), 1.0)


def test_where_words_find_too_few_conversations_the_newest_fill_the_blocks() -> None:
    found = assemble(_decision(Mode.RETRIEVE_THEN_BLOCK, 3), UNITS, _search("u1"), SMALL)
    assert [c.id for c in found.conversations] == ["c0", "c2", "c3"]
    assert assemble(_decision(Mode.RETRIEVE_THEN_BLOCK, 1), UNITS, _search(), SMALL).conversations[0].id == "c3"


def test_passages_stand_with_the_best_at_both_ends() -> None:
    decision = _decision(Mode.RAG, 5, reorder=True, order=Order.RELEVANCE)
    found = assemble(decision, UNITS, _search("u4", "u0", "u6", "u2", "u5", "u1"))
    assert _ids(found) == ["u4", "u6", "u5", "u2", "u0"]
    assert found.found == ("u4", "u0", "u6", "u2", "u5")


def test_timely_questions_get_passages_by_time_with_the_best_conversation_last() -> None:
    found = assemble(_decision(Mode.RAG, 4), UNITS, _search("u3", "u6", "u0", "u2"))
    assert _ids(found) == ["u0", "u6", "u2", "u3"]


def test_the_newest_conversations_follow_the_passages_verbatim() -> None:
    decision = _decision(Mode.RECENT_PLUS_RAG, 3, reorder=True, order=Order.RELEVANCE)
    found = assemble(decision, UNITS, _search("u6", "u5", "u1", "u0", "u2", "u3"), SMALL)
    assert _ids(found) == ["u1", "u2", "u0", "u4", "u5", "u6", "u7"]
    assert found.top == 1.0, "the gate looks at the best of all, verbatim or not"


def test_what_says_the_same_is_said_once_by_the_newest() -> None:
    units = [Unit("old", "c0", "Ann likes tea"), Unit("x", "c0", "snow"), Unit("new", "c1", "Ann likes tea!")]
    found = assemble(_decision(Mode.RAG, 2), units, _search("old", "new", "x"))
    assert (_ids(found), found.found, found.dropped) == (["x", "new"], ("new", "x"), 0)
    assert assemble(_decision(Mode.RAG, 2), units, _search("old", "new", "x"), alike=None).found == ("old", "new")


def test_weak_passages_may_be_left_out() -> None:
    found = assemble(_decision(Mode.RAG, 4), UNITS, _search("u0", "u1", "u2", "u3"), tau=0.5)
    assert (found.found, found.dropped) == (("u0", "u1"), 2)


def test_what_the_index_lacks_is_kept_verbatim() -> None:
    found = assemble(_decision(Mode.RAG, 1), UNITS, _search("u1", "u7"), unindexed=["u7"])
    assert _ids(found) == ["u1", "u7"]


def test_an_index_that_knows_more_than_the_history_adds_nothing() -> None:
    assert _ids(assemble(_decision(Mode.RAG, 2), UNITS, _search("gone", "u1"))) == ["u1"]
    assert assemble(_decision(Mode.RAG, 2), UNITS, _search("gone")).top is None


def test_text_names_a_conversation_where_it_changes() -> None:
    found = assemble(_decision(Mode.FULL), UNITS[:3], _never)
    assert found.text == "[c0 2024-01-01]\ntext number 0\ntext number 1\n[c1 2024-01-02]\ntext number 2"
    assert found.tokens == 12


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.NONE])
@given(st.lists(st.sampled_from(UNITS), unique_by=lambda u: u.id), st.integers(1, 6), st.booleans())
def test_every_unit_appears_once(mode: Mode, ranked: list[Unit], k: int, reorder: bool) -> None:
    order = Order.RELEVANCE if reorder else Order.CHRONOLOGICAL
    decision = _decision(mode, k, reorder=reorder, order=order)
    found = assemble(decision, UNITS, _search(*(u.id for u in ranked)), SMALL)
    assert len(set(_ids(found))) == len(_ids(found))
    assert set(found.found) <= set(_ids(found)) <= {u.id for u in UNITS}
    if mode is Mode.RAG:
        assert len(found.found) == min(k, len(ranked))
