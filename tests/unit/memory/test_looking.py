"""Looking at a store without changing it, and the questions that a person's tools ask of it."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from remnant.errors import ConfigError
from remnant.memory import Add, Memory, Record, StoreError
from remnant.memory.memory import open_store

Make = Callable[..., Memory]


def test_scopes_are_listed_wherever_they_have_something(make: Make):
    assert make().store.scopes() == []
    make(scope="b").add("a record")
    make(scope="a").open_episode("an episode only")
    gone = make(scope="c")
    gone.forget(gone.add("a change only"))
    assert gone.store.scopes() == ["a", "b", "c"]
    assert gone.store.scopes(limit=2) == ["a", "b"]


@pytest.mark.parametrize("newest", [False, True])
def test_pages_hold_every_record_once_in_either_direction(make: Make, newest: bool):
    memory = make()
    make(scope="other").add([f"other {n}" for n in range(5)])
    for n in range(23):
        memory.apply([Add(Record(f"text {n}", status=("active", "archived", "quarantined")[n % 3]))], "", "")
    seen: list[str] = []
    statuses = ("quarantined", "active")
    while page := memory.store.page(
        "tenant-a", statuses=statuses, after=seen[-1] if seen else "", limit=4, newest=newest
    ):
        assert {record.status for record in page} <= set(statuses)
        seen += [record.id for record in page]
    assert len(seen) == 15  # 8 active, 7 quarantined
    assert seen == sorted(set(seen), reverse=newest)


def test_what_an_episode_taught_is_found_whatever_became_of_it(make: Make):
    memory = make()
    episode = memory.open_episode("task")
    memory.observe(episode.id, {"role": "user", "content": "one"})
    memory.observe(episode.id, {"role": "user", "content": "two"})
    memory.close_episode(episode.id, "success")
    memory.add("not from it")
    ids = sorted(record.id for record in memory.records() if record.provenance)
    assert len(ids) == 2
    memory.undo(memory.changes()[-1])
    assert memory.store.learnt("tenant-a", episode.id) == ids
    assert memory.store.learnt("tenant-b", episode.id) == memory.store.learnt("tenant-a", "no such") == []


def test_read_only_store_reads_what_others_go_on_writing_and_refuses_every_write(make: Make, path: Path):
    writer = make()
    writer.add("the sky is blue")
    before = path.read_bytes()
    reader = Memory.open("", scope="tenant-a", store=open_store(path, read_only=True), recover=False, write="manual")
    assert [hit.text for hit in reader.recall("sky")] == ["the sky is blue"]
    writer.add("the sky is wide")
    assert len(reader.recall("sky")) == 2
    id = reader.records()[0].id
    for write in (lambda: reader.add("new"), lambda: reader.forget(id), lambda: reader.open_episode("task")):
        with pytest.raises(StoreError, match="readonly"):
            write()
    assert reader.records()[0].id == id
    reader.close()
    assert path.read_bytes() == before  # what was added lies in the log


def test_read_only_makes_no_file(tmp_path: Path):
    with pytest.raises(StoreError, match="no file"):
        open_store(tmp_path / "typo.db", read_only=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("version", "message"), [(0, "not a memory"), (99, "update remnant")])
def test_read_only_does_not_migrate(path: Path, version: int, message: str):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (a)")
        connection.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=message):
        open_store(path, read_only=True)
    assert path.read_bytes() == before


def test_store_in_a_folder_that_cannot_be_written_is_read(
    make: Make, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    memory = make()
    memory.add("the sky is blue")
    memory.close()
    folder = tmp_path / "shelf"
    folder.mkdir()
    shutil.copy(path, folder)
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != folder)  # root may write everywhere
    store = open_store(folder / path.name, read_only=True)
    assert [record.content for record in store.page("tenant-a")] == ["the sky is blue"]
    assert [file.name for file in folder.iterdir()] == [path.name]
    store.close()


def test_recover_off_leaves_the_episodes_of_dead_processes_open(make: Make, path: Path):
    code = "import sys; from remnant.memory import Memory; Memory.open(sys.argv[1], scope='tenant-a').open_episode('t')"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    looking = make(recover=False)
    (found,) = looking.store.episodes("tenant-a")
    assert found.closed_at is None
    assert looking.scoped("tenant-a").store.episodes("tenant-a") == [found]
    assert make().store.episodes("tenant-a")[0].closed_at is not None


def test_unknown_address_names_those_that_are_known():
    with pytest.raises(ConfigError, match=r"unknown backend 'mongodb'.*sqlite"):
        open_store("mongodb://x")
