"""Forgetting: nothing of it can be found, not even in the bytes of the files."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from remnant.errors import ConfigError
from remnant.memory import Add, HashEmbedder, Memory, Merge, Record, Update

Make = Callable[..., Memory]
WORD = "zyxomonth"


def _bytes(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file())


def _holds(folder: Path, *texts: str) -> list[str]:
    data = _bytes(folder).lower()
    return [text for text in texts if text.encode() in data or text.encode("utf-16-le") in data]


def test_no_byte_is_left(make: Make, tmp_path: Path):
    memory = make(embedder=HashEmbedder())
    memory.add([f"note {number} about the weather and the sea" for number in range(300)])
    episode = memory.open_episode(f"find {WORD}task")
    memory.observe(episode.id, {"role": "user", "content": f"the word is {WORD}"})
    memory.close_episode(episode.id, "success")
    (hit,) = memory.recall(WORD, k=1)
    memory.apply([Update(hit.id, {"content": f"changed {WORD}second"})], f"because {WORD}third", "me")
    assert _holds(tmp_path, WORD)
    vector = (
        sqlite3.connect(tmp_path / "memory.db").execute("SELECT vector FROM vectors WHERE id = ?", (hit.id,)).fetchone()
    )
    receipt = memory.forget(hit.id)
    assert (receipt.ids, receipt.versions, receipt.vectors, receipt.words, receipt.steps) == ((hit.id,), 2, 1, 1, 1)
    assert receipt.episodes == (episode.id,)
    assert receipt.clean
    assert _holds(tmp_path, WORD, WORD[:6]) == []
    assert vector[0] not in _bytes(tmp_path)
    assert memory.recall(WORD) == [] or WORD not in memory.recall(WORD)[0].text
    assert memory.get(hit.id) is None
    assert memory.audit(hit.id) == []


def test_word_index_forgets_the_terms(memory: Memory, path: Path):
    ids = memory.add([WORD, "weather"])
    memory.forget(ids[0])
    c = sqlite3.connect(path)
    c.execute("CREATE VIRTUAL TABLE temp.terms USING fts5vocab(main, word_index, row)")
    assert not [term for (term,) in c.execute("SELECT term FROM terms") if term.startswith("zyx")]
    c.execute("INSERT INTO word_index (word_index, rank) VALUES ('integrity-check', 1)")
    c.close()


def test_other_records_stay_whole(memory: Memory, path: Path):
    ids = memory.add([f"note {number}" for number in range(50)])
    memory.forget(ids[:25])
    assert {hit.id for hit in memory.recall("note", k=50)} == set(ids[25:])
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_receipt_names_what_was_made_of_it(memory: Memory):
    ids = memory.add(["one", "two"])
    merged = memory.apply([Merge(tuple(ids), Record("both"))], "r", "a").ids
    made = next(id for id in merged if id not in ids)
    assert memory.forget(ids[0]).derived == (made,)
    assert memory.forget("no such").ids == ()


def test_forgotten_episode_is_never_learnt_again(memory: Memory):
    episode = memory.open_episode("task")
    memory.observe(episode.id, {"role": "user", "content": WORD})
    memory.close_episode(episode.id)
    memory.forget(memory.recall(WORD)[0].id)
    with pytest.raises(ConfigError, match="does not exist"):
        memory.feedback(episode.id, success=True)
    stub = memory.store.episode(memory.scope, episode.id)
    assert stub is not None
    assert (stub.erased, stub.task, stub.steps) == (True, "", ())
    memory.flush(1)
    assert memory.recall(WORD) == []


def test_undo_does_not_bring_back_what_was_forgotten(memory: Memory):
    change = memory.apply([Add(Record("one")), Add(Record("two"))], "r", "a")
    memory.forget(change.ids[0])
    memory.undo(change)
    assert memory.get(change.ids[0]) is None
    assert memory.get(change.ids[1]).status == "deleted"  # type: ignore[union-attr]


def test_other_scope_forgets_nothing(memory: Memory):
    (id,) = memory.add("mine")
    assert memory.scoped("tenant-b").forget(id).ids == ()
    assert memory.get(id)


def test_reader_in_another_process_makes_it_unclean_and_compact_cleans(memory: Memory, path: Path, tmp_path: Path):
    (id,) = memory.add(WORD)
    reader = sqlite3.connect(path)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM records").fetchall()
    memory.store._files.get().execute("PRAGMA busy_timeout = 100")  # type: ignore[attr-defined]
    assert not memory.forget(id).clean
    reader.close()
    assert memory.store.compact()
    assert _holds(tmp_path, WORD) == []
