"""Consolidation and adding once: what says the same becomes one, keeps all sources, and can be taken back."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remnant.errors import ConfigError
from remnant.memory import HashEmbedder, Memory, Provenance, Record
from remnant.memory.dedupe import same_facts

Make = Callable[..., Memory]


def note(text: str, source: str, **more: Any) -> Record:
    return Record(text, provenance=(Provenance("session", source),), **more)


def sources(record: Record) -> set[str]:
    return {source.source_id for source in record.provenance}


def test_equal_texts_become_one_with_all_sources_and_undo_brings_them_back(memory: Memory):
    ids = memory.add([note("Tea is  green.", "s1", keywords=("a",)), note("TEA IS GREEN.", "s2", keywords=("b",))])
    memory.add("Milk is white.")
    before = memory.records()
    change = memory.consolidate()
    assert [r.content.casefold() for r in memory.records()] in (
        ["milk is white.", t] for t in ("tea is green.", "tea is  green.")
    )
    merged = memory.recall("tea")[0].record
    assert (sources(merged), set(merged.parents), set(merged.keywords)) == ({"s1", "s2"}, set(ids), {"a", "b"})
    assert {r.id for r in memory.records(statuses=["archived"])} == set(ids)
    assert memory.consolidate().number == 0
    memory.undo(change)
    assert [(r.id, r.content, r.status) for r in memory.records()] == [(r.id, r.content, r.status) for r in before]


@pytest.mark.parametrize("embedder", [None, HashEmbedder()])
def test_near_texts_become_one_unless_facts_differ(make: Make, embedder: Any):
    memory = make(embedder=embedder)
    long = "Ann said that the old lighthouse at the end of the pier was painted white again last summer"
    memory.add([note(long, "s1"), note(f"{long}.", "s2"), note(f"{long} by 2 men", "s3")])
    memory.add([note(long.replace("was painted", "was not painted"), "s4"), note(long.replace("Ann", "Bob"), "s5")])
    memory.add(note(f"{long}?", "s6"))
    memory.consolidate(0.8)
    kept = sorted((sorted(sources(r)) for r in memory.records()), key=str)
    assert ["s1", "s2", "s5"] in kept  # a word that begins a text is not known to be a name
    assert ["s3"] in kept
    assert ["s4"] in kept
    assert ["s6"] in kept


def test_without_similarity_only_equal_texts(make: Make):
    memory = make(embedder=HashEmbedder())
    memory.add(["tea is green today", "tea is green today!", "Tea is green today"])
    memory.consolidate(None)
    assert len(memory.records()) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "thought"}, {"place": "a"}, {"trust": "agent"}, {"outcome": "failure"}, {"payload": {"a": 1}},
        {"trigger": "when asked"}, {"valid_from": 20.0},
    ],
)  # fmt: skip
def test_what_differs_stays_apart(memory: Memory, other: dict[str, Any]):
    memory.add([Record("tea", valid_to=10.0), Record("tea", **{"valid_to": None, **other})])
    memory.consolidate()
    assert memory.stats()["active"] == 2


def test_a_merged_record_is_true_as_long_as_any_of_them(memory: Memory):
    memory.add([Record("tea", valid_from=1.0, valid_to=5.0), Record("tea", valid_from=3.0)])
    memory.consolidate()
    (merged,) = memory.records()
    assert (merged.valid_from, merged.valid_to) == (1.0, None)


def test_closeness_is_not_carried_from_one_to_the_next(make: Make):
    memory = make()
    words = [f"w{chr(97 + i)}" for i in range(20)]
    memory.add([" ".join(words[i : i + 16]) for i in range(3)])
    memory.consolidate(15 / 17 - 0.01)
    assert memory.stats()["active"] == 2


def test_other_scopes_are_left_alone(make: Make, memory: Memory):
    other = make(scope="tenant-b")
    other.add(["tea", "tea"])
    memory.add(["tea", "tea"])
    memory.consolidate()
    assert (memory.stats()["active"], other.stats()["active"]) == (1, 2)


def test_a_similarity_outside_is_refused(memory: Memory):
    for bad in (0.0, 1.1):
        with pytest.raises(ConfigError, match="similarity"):
            memory.consolidate(bad)


async def test_async_twins(make: Make):
    memory = make(embedder=HashEmbedder())
    ids = await memory.aadd(["tea", "tea"])
    assert (await memory.aadd("Tea", once=True))[0] in ids
    change = await memory.aconsolidate()
    assert len(memory.records()) == 1
    assert len(change.ids) == 3


def test_added_once(memory: Memory):
    (first,) = memory.add(note("Tea is green.", "s1"), once=True)
    ids = memory.add([note("tea  is green.", "s2"), "Milk.", "milk.", note("Tea is red.", "s1")], once=True)
    assert ids[0] == first
    assert ids[1] == ids[2]
    assert len(set(ids)) == 3
    assert memory.stats()["active"] == 3
    assert sources(memory.records()[0]) == {"s1", "s2"}
    assert memory.add("milk.", once=True) == [ids[1]]
    latest = memory.changes()[0].number
    memory.add("Milk.", once=True)
    assert memory.changes()[0].number == latest
    assert memory.add([], once=True) == []


def test_added_once_where_something_differs(memory: Memory):
    first = memory.add("tea", once=True)
    for other in (Record("tea", kind="thought"), Record("tea", payload={"a": 1}), Record("tea", valid_to=1e12)):
        assert memory.add(other, once=True) != first
    assert len(memory.add(["tea", "tea"])) == 2
    assert memory.stats()["active"] == 6


@given(st.text(), st.text())
def test_facts_are_compared_both_ways(a: str, b: str):
    assert same_facts(a, b) == same_facts(b, a)
    assert same_facts(a, a)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("I have 2 cats", "I have 3 cats", False),
        ("I like it", "I don't like it", False),
        ("I met Ann", "I met Bob", False),
        ("It rains.", "It rains?", False),
        ("It rains a lot", "It rains very much", True),
    ],
)
def test_what_closeness_does_not_see(a: str, b: str, same: bool):
    assert same_facts(a, b) is same
