"""`kill -9` of a real process: nothing acknowledged is lost, each episode is distilled once."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from remnant.memory import Memory

Make = Callable[..., Memory]
CHILD = Path(__file__).with_name("crash_child.py")


def _start(path: Path, mode: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(CHILD), str(path), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _kill(child: "subprocess.Popen[str]") -> list[str]:
    os.kill(child.pid, signal.SIGKILL)
    assert child.stdout is not None
    said = [line.strip() for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    child.wait()
    child.stdout.close()
    return said


def _until_written(brood: "subprocess.Popen[str]", seconds: float) -> list[str]:
    """Kill the process that was forked, some time after its first write was acknowledged."""
    assert brood.stdout is not None
    said: list[str] = []
    while len({line.startswith("pid ") for line in said}) < 2:
        said.append(brood.stdout.readline().strip())
    time.sleep(seconds)
    os.kill(next(int(line.split()[1]) for line in said if line.startswith("pid ")), signal.SIGKILL)
    return said


def _sources(memory: Memory) -> Counter[str]:
    records = memory.records(statuses=("active", "archived", "quarantined"), limit=10**6)
    return Counter(source.source_id for record in records for source in record.provenance)


def test_killed_in_the_middle_of_distilling(make: Make, path: Path):
    child = _start(path, "hang")
    assert child.stdout is not None
    lines = {child.stdout.readline().split()[0], child.stdout.readline().split()[0]}
    assert lines == {"episode", "distilling"}
    (job,) = make(write="manual").store.jobs("tenant-a")
    assert job[1] == "running"
    _kill(child)
    memory = make()
    assert memory.flush(10)
    assert _sources(memory) == {job[0]: 1}
    assert memory.store.jobs("tenant-a") == [(job[0], "done", 0, "")]
    make().flush(10)
    assert _sources(memory) == {job[0]: 1}


def test_episode_left_open_is_closed_as_unknown(make: Make, path: Path):
    child = _start(path, "open")
    assert child.stdout is not None
    id = child.stdout.readline().strip()
    still = make(write="manual").store.episode("tenant-a", id)
    assert still is not None
    assert still.closed_at is None  # its process lives
    _kill(child)
    memory = make()
    found = memory.store.episode("tenant-a", id)
    assert found is not None
    assert (found.verdict, found.source, len(found.steps)) == ("unknown", "recovery", 1)
    memory.flush(10)
    assert [hit.text for hit in memory.recall("thought")] == ["half a thought"]


def test_killed_fifty_times_while_writing_and_distilling(make: Make, path: Path):
    """By two broods at once, so that the living distil what the dead left."""
    command = [sys.executable, str(CHILD), str(path), "brood"]
    broods = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    acknowledged: list[str] = []
    for trial in range(25):
        for brood in broods:
            assert brood.stdin is not None
            brood.stdin.write("go\n")
            brood.stdin.flush()
        for brood in broods:
            acknowledged += _until_written(brood, 0.004 * trial)
    for brood in broods:
        acknowledged += [line.strip() for line in brood.communicate()[0].splitlines()]
    assert sum(line.startswith("pid ") for line in acknowledged) == 50
    acknowledged = [line for line in acknowledged if not line.startswith("pid ")]
    memory = make()
    assert memory.flush(30)
    episodes = {line.split()[1] for line in acknowledged if line.startswith("episode ")}
    ids = [line for line in acknowledged if not line.startswith("episode ")]
    assert len(memory.store.get("tenant-a", ids)) == len(ids) > 6
    counts = _sources(memory)
    assert {id: counts[id] for id in episodes} == dict.fromkeys(episodes, 1)
    assert set(counts.values()) <= {1}
    c = sqlite3.connect(path)
    assert c.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    c.execute("INSERT INTO word_index (word_index, rank) VALUES ('integrity-check', 1)")


@pytest.mark.parametrize(
    "damage", [b"this is no database, whatever its name says" * 99, b"SQLite format 3\x00" + b"\xff" * 5000]
)
def test_corrupt_file_is_a_typed_error(make: Make, path: Path, damage: bytes):
    from remnant.memory import StoreError

    path.write_bytes(damage)
    with pytest.raises(StoreError, match=r"memory\.db"):
        make()
    assert path.read_bytes() == damage


def test_other_programs_database_is_left_alone(make: Make, path: Path):
    from remnant.memory import StoreError

    c = sqlite3.connect(path)
    c.execute("CREATE TABLE theirs (x)")
    c.close()
    with pytest.raises(StoreError, match="another program"):
        make()
