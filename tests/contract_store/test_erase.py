"""Forgetting in every backend: no table tells anything any more, and the receipt says what a server keeps."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remnant.memory import Add, HashEmbedder, Memory, Merge, Record, Update

WORD = "zyxomonth"


def _rows(place: Any) -> list[str]:
    """Every value of every table, as text."""
    if not place.is_server:
        c = sqlite3.connect(place.where["path_or_url"])
        tables = [name for (name,) in c.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()]
        return [str(value) for table in tables for row in c.execute(f"SELECT * FROM '{table}'") for value in row]
    import psycopg

    with psycopg.connect(place.where["path_or_url"]) as c:
        tables = c.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (place.where["schema"],)).fetchall()
        sql = f'SELECT t::text FROM "{place.where["schema"]}".%s t'
        return [text for (table,) in tables for (text,) in c.execute((sql % f'"{table}"').encode()).fetchall()]


def _holding(place: Any, text: str) -> list[str]:
    return [value for value in _rows(place) if text in value.lower()]


def _fill(memory: Memory, word: str = WORD) -> str:
    """A record that is everywhere: journal, versions, words, vectors, reasons; its id."""
    memory.add([f"note {number} about the sea" for number in range(20)])
    episode = memory.open_episode(f"find {word}task", metadata={"about": f"{word}meta"})
    memory.observe(episode.id, {"role": "user", "content": f"the word is {word}"})
    memory.close_episode(episode.id, "success")
    (hit,) = memory.recall(word, k=1, episode=episode.id)
    memory.apply([Update(hit.id, {"content": f"changed {word}second"})], f"because {word}third", "me")
    return hit.id


def test_no_row_tells_anything(shared: Any):
    memory = shared.memory(embedder=HashEmbedder())
    id = _fill(memory)
    assert len(_holding(shared, WORD)) >= 5
    receipt = memory.forget(id)
    assert (receipt.ids, receipt.versions, receipt.vectors, receipt.words, receipt.steps) == ((id,), 2, 1, 1, 1)
    assert len(receipt.episodes) == 1
    assert _holding(shared, WORD[:7]) == []
    assert [value for value in _rows(shared) if id in value] == []
    assert receipt.clean is not shared.is_server
    assert bool(receipt.remains) is shared.is_server
    assert WORD not in str(memory.recall(WORD))
    assert memory.get(id) is None
    assert memory.store.stamp(memory.scope)[0] > 0


def test_receipts_agree(shared: Any):
    memory = shared.memory()
    ids = memory.add(["one", "two", "three"])
    merged = memory.apply([Merge(tuple(ids[:2]), Record("both"))], "r", "a").ids
    made = next(id for id in merged if id not in ids)
    receipt = memory.forget([ids[0], "none", ids[0], ids[2]])
    assert (receipt.ids, receipt.derived) == ((ids[0], ids[2]), (made,))
    assert (receipt.versions, receipt.words, receipt.episodes) == (3, 1, ())
    nothing = memory.forget("none")
    assert (nothing.ids, nothing.clean) == ((), True)


def test_counts_of_words_follow(backend: Any):
    memory = backend.memory()
    ids = memory.add([f"tea number{n}" for n in range(30)])
    memory.forget(ids[:28])
    memory.apply([Add(Record("coffee"))], "r", "a")
    assert {hit.id for hit in memory.recall("tea", k=50)} == set(ids[28:])
    assert memory.recall("coffee")[0].score > 0


def test_no_byte_is_left_in_the_files_of_a_server(server: Any, postgres: Any):
    import psycopg

    memory = server.memory(store=server.store(vacuum="full"), embedder=HashEmbedder())
    id = _fill(memory, word := "qaxolotlq")
    assert _files(postgres, word)
    receipt = memory.forget(id)
    assert receipt.clean
    assert [place for place in receipt.remains if "log" in place]
    with psycopg.connect(postgres.get_uri(), autocommit=True) as c:
        c.execute("CHECKPOINT")
    assert _files(postgres, word) == []
    assert memory.recall("sea", k=1)


def _files(postgres: Any, text: str) -> list[str]:
    """Files of tables and indexes, all databases, that hold a text; written out first."""
    import psycopg

    with psycopg.connect(postgres.get_uri(), autocommit=True) as c:
        c.execute("CHECKPOINT")
    files = [path for path in (Path(postgres.pgdata) / "base").rglob("*") if path.is_file()]
    return [str(path) for path in files if text.encode() in path.read_bytes()]


def test_somebody_who_still_reads_makes_it_unclean(server: Any):
    import psycopg

    memory = server.memory(store=server.store(vacuum="full"))
    (id,) = memory.add(WORD)
    with psycopg.connect(server.where["path_or_url"]) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT 1")
        assert not memory.forget(id).clean
    assert memory.store.compact()
    with psycopg.connect(server.where["path_or_url"]) as reader:
        reader.execute(f'LOCK TABLE "{server.where["schema"]}".records'.encode())
        assert not memory.store.compact()


def test_who_notes_a_use_waits_for_an_erasure(shared: Any, put: Callable[..., Any]):
    stores = [shared.store(), shared.store()]
    put(stores[0], *((f"r{n}", "tea") for n in range(40)))
    stop = threading.Event()

    def note() -> None:
        while not stop.is_set():
            stores[1].shown("tenant-a", [f"r{n}" for n in range(40)], "e")

    thread = threading.Thread(target=note)
    thread.start()
    for n in range(0, 40, 10):
        stores[0].erase("tenant-a", [f"r{k}" for k in range(n, n + 10)])
    stop.set()
    thread.join()
    assert stores[0].page("tenant-a") == []
    assert not [value for value in _counters(shared) if value]


def _counters(place: Any) -> list[Any]:
    """Counters of records that are gone."""
    if not place.is_server:
        return sqlite3.connect(place.where["path_or_url"]).execute("SELECT id FROM utility").fetchall()
    import psycopg

    with psycopg.connect(place.where["path_or_url"]) as c:
        return c.execute(f'SELECT id FROM "{place.where["schema"]}".utility'.encode()).fetchall()


@pytest.mark.parametrize("vacuum", ["often", ""])
def test_vacuum_is_a_choice(server: Any, vacuum: str):
    with pytest.raises(ValueError, match="plain"):
        server.store(vacuum=vacuum)
