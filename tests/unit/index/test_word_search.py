"""Words of a file: the ranking is that of FTS5 over all documents, and follows every change to the file."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.index import match_expression, postings
from remnant.memory import Forget, Memory, Record, SqliteStore, Update
from remnant.memory.sqlite import words as search

WORDS = ["runs", "running", "Ran", "naïve", "naive", "tea", "teas", "日本", "snake_case", *(f"w{i}" for i in range(40))]


def _texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    weights = [1 / (i + 1) for i in range(len(WORDS))]
    return [" ".join(rng.choices(WORDS, weights, k=rng.randint(1, 12))) + f" unique{i}" for i in range(count)]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory.open(tmp_path / "m.db", scope="a", write="manual", strict=True) as made:
        made.add(_texts(400))
        yield made


def _by_fts5(memory: Memory, terms: list[str]) -> dict[str, float]:
    """BM25 as FTS5 counts it, over every document of the file."""
    sql = """SELECT r.id, -bm25(word_index, 0.0, 1.0) FROM word_index JOIN records r ON r.number = word_index.rowid
             WHERE word_index MATCH ?"""
    with memory.store._files.read() as c:  # type: ignore[attr-defined]
        return dict(c.execute(sql, (f"words : ({match_expression(terms)})",)).fetchall())


def _same(found: list[tuple[str, float]], expected: dict[str, float]) -> None:
    assert dict(found) == {id: pytest.approx(expected[id]) for id, _ in found}
    assert [score for _, score in found] == pytest.approx(sorted(expected.values(), reverse=True)[: len(found)])


@pytest.mark.parametrize("many", [-1, 10**9], ids=["numpy", "python"])
@pytest.mark.parametrize("limit", [5, 1000])
def test_scores_are_those_of_fts5(memory, monkeypatch, many, limit):
    monkeypatch.setattr(postings, "MANY", many)
    monkeypatch.setattr(postings, "MORE", many)
    for terms in (
        ["runs"],
        ["w3", "unique7"],
        ["tea", "naive", "absent"],
        ["日", "本"],
        [f"unique{i}" for i in range(9)],
    ):
        found, expected = memory.store.words("a", terms, limit), _by_fts5(memory, terms)
        assert len(found) == min(limit, len(expected)) > 0
        _same(found, expected)
    assert memory.store.words("a", ["absent"], limit) == memory.store.words("a", ["²"], limit) == []


CHANGE = st.tuples(st.sampled_from(["add", "update", "archive", "forget", "erase", "undo"]), st.integers(0, 999))


@settings(max_examples=25, deadline=None)
@given(st.lists(CHANGE, max_size=12), st.sampled_from([3, 1000]))
def test_it_follows_the_file_through_any_changes(changes: list[tuple[str, int]], most_fresh: int):
    with pytest.MonkeyPatch.context() as patch, Memory.open(":memory:", scope="a", write="manual") as memory:
        patch.setattr(search, "MOST_FRESH", most_fresh)
        memory.add(_texts(20))
        for name, number in changes:
            ids = [record.id for record in memory.records()]
            id = ids[number % len(ids)] if ids else ""
            if name == "add" or not ids:
                memory.add(_texts(1 + number % 4, seed=number))
            elif name == "update":
                memory.apply([Update(id, {"content": _texts(1, seed=number)[0]})], "r", "a")
            elif name == "archive":
                memory.apply([Update(id, {"status": "archived"})], "r", "a")
            elif name == "forget":
                memory.apply([Forget(id)], "r", "a")
            elif name == "erase":
                memory.forget(id)
            else:
                last = memory.changes(limit=1)
                try:
                    memory.undo(last[0])
                except ValueError:  # it was erased
                    continue
            terms = ["runs", "tea", "w1", f"unique{number % 4}"]
            _same(memory.store.words("a", terms, 1000), _by_fts5(memory, terms))
            assert len(memory.store.words("a", terms, 1000)) == len(_by_fts5(memory, terms))


def test_what_others_wrote_into_the_file_changes_nothing(memory):
    before = memory.store.words("a", ["w0", "unique7"], 1000)
    other = memory.scoped("b")
    other.add([f"w0 unique7 other{number}" for number in range(100)])
    assert memory.store.words("a", ["w0", "unique7"], 1000) == before
    memory.store._words.close()  # type: ignore[attr-defined]
    assert memory.store.words("a", ["w0", "unique7"], 1000) == before
    assert {id for id, _ in other.store.words("b", ["w0", "unique7"], 500)} == {r.id for r in other.records()}
    assert memory.store.words("c", ["w0"], 5) == []


def test_a_scope_s_own_word_finds_nothing_of_another_scope(memory):
    from remnant.memory.rows import tenant_word

    memory.scoped("b").add("w0")
    assert memory.store.words("a", [tenant_word("b")], 5) == []


def test_a_name_of_several_words_is_asked_for_word_by_word(memory):
    assert memory.store.words("a", ["snake_case"], 900) == memory.store.words("a", ["case", "snake"], 900) != []


def test_a_place_is_ranked_by_itself(memory):
    memory.add([Record("tea tea", place="x/y"), Record("tea runs", place="x"), Record("tea", place="xy")])
    inside = {r.content for r in memory.records() if r.lies_in("x")}
    found = memory.store.words("a", ["tea", "runs"], 10, "x")
    assert {memory.get(id).content for id, _ in found} == inside == {"tea tea", "tea runs"}
    alone = Memory.open(":memory:", scope="a", write="manual")
    alone.add([Record("tea tea", place="x/y"), Record("tea runs", place="x")])
    assert [s for _, s in found] == pytest.approx([s for _, s in alone.store.words("a", ["tea", "runs"], 10, "x")])
    memory.apply([Update(found[0][0], {"content": "gone"})], "r", "a")
    assert [id for id, _ in memory.store.words("a", ["tea", "runs"], 10, "x")] == [found[1][0]]
    alone.close()


def test_a_change_by_another_connection_is_seen_and_bytes_stay_bounded(memory, tmp_path):
    memory.store.words("a", ["w0", "tea"], 5)
    other = SqliteStore(tmp_path / "m.db")
    with Memory.open("x", store=other, scope="a", write="manual") as writer:
        (id,) = writer.add("tea tea tea")
    assert id in {found for found, _ in memory.store.words("a", ["tea"], 1000)}
    few = search.WordSearch(most_bytes=2000)
    for word in WORDS[9:30]:
        with memory.store._files.read() as c:
            found = few.found(c, "a", [word], 1000)
        _same(found, _by_fts5(memory, [word]))
    assert few._postings.nbytes <= 2000
    assert len(few._postings) > 1
