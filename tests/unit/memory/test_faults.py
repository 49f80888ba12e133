"""What goes wrong around a memory: full and read-only disks, damage, clocks, models that hang or talk nonsense."""

import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.memory import HashEmbedder, Memory, Record, ScriptedChatModel, StoreError
from remnant.memory.worker import distil_next

Make = Callable[..., Memory]
CHILD = Path(__file__).with_name("faults_child.py")


def _child(*arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, str(CHILD), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("size", [300_000, 700_000])
def test_a_full_disk_is_a_typed_error_and_nothing_acknowledged_is_lost(make: Make, path: Path, size: int):
    said = _child("full", str(path), str(size))
    ids = [line for line in said if " " not in line]
    (fault,) = [line for line in said if line.startswith("full ")]
    assert "memory.db" in fault
    assert said[-1] == "found 1"  # it still answers, and refuses an episode that it cannot journal
    memory = make()
    assert len(memory.store.get("tenant-a", ids)) == len(ids) > 2
    assert memory.add("there is room again")
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_file_that_may_only_be_read_is_recalled_from(make: Make):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        path = Path(folder) / "memory.db"
        with Memory.open(path, scope="tenant-a", write="manual") as memory:
            memory.add("tea is green")
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        said = _child("reading", str(path))
        Path(folder).chmod(0o755)
    assert said[0] == "found ['tea is green']"
    assert said[1].startswith("refused ")


def test_damage_in_the_middle_is_a_typed_error_and_reads_fail_open(make: Make, path: Path):
    texts = [f"tea number {number} " + "z" * 200 for number in range(300)]
    with Memory.open(path, scope="tenant-a", write="manual") as memory:
        memory.add(texts)
    data = bytearray(path.read_bytes())
    for number in range(0, 300, 7):
        for found in re.finditer(f"tea number {number} ".encode(), bytes(data)):
            page = found.start() // 4096 * 4096
            data[page : page + 4096] = b"\xff" * 4096
    path.write_bytes(data)
    memory = make(strict=False, write="manual")
    seen: list[str] = []
    memory.events.subscribe(lambda event: seen.append(event.name))
    for number in range(0, 300, 50):
        hits = memory.recall(f"tea number {number}")
        assert all(hit.text in texts for hit in hits)
    assert "recall_failed" in seen
    with pytest.raises(StoreError, match=r"memory\.db"):
        memory.records()


def test_the_clock_may_jump(make: Make):
    now = [1_000_000_000.0]
    memory = make(clock=lambda: now[0], strategy="facts")
    for jump in (0.0, -500_000_000.0, 400_000_000.0, -3.0):
        now[0] += jump
        memory.add(f"tea at {now[0]}")
        episode = memory.open_episode(f"task at {now[0]}")
        memory.observe(episode.id, {"role": "user", "content": f"coffee at {now[0]}"})
        memory.close_episode(episode.id, "success")
    times = [change.time for change in reversed(memory.changes())]
    assert times == sorted(times)
    assert len({change.number for change in memory.changes()}) == 8
    assert len(memory.recall("tea", k=10)) == 4
    assert len(memory.recall("coffee", k=10)) == 4
    assert all(state == "done" for _, state, _, _ in memory.store.jobs("tenant-a"))
    second = memory.changes()[-2].number
    assert len(memory.recall("tea coffee", k=10, as_of=second)) == 2


class Hanging:
    """A model that answers when it is let go."""

    model_id = "hanging"

    def __init__(self) -> None:
        self.go, self.asked = threading.Event(), threading.Event()

    def generate(self, messages: Any, *, schema: Any = None, **options: Any) -> Any:
        self.asked.set()
        assert self.go.wait(30)
        raise TimeoutError("no answer in time")

    async def agenerate(self, messages: Any, *, schema: Any = None, **options: Any) -> Any:
        raise AssertionError("distilling is the worker's")


def test_a_model_that_hangs_delays_nothing_but_its_own_lesson(make: Make):
    model = Hanging()
    memory = make(strategy="tim", llm=model, write="background")
    episode = memory.open_episode("task")
    memory.observe(episode.id, {"role": "user", "content": "tea is green"})
    begun = time.monotonic()
    memory.close_episode(episode.id, "success")
    assert model.asked.wait(10)
    memory.add("milk is white")
    assert memory.recall("milk")[0].text == "milk is white"
    assert memory.flush(0.2) is False
    assert time.monotonic() - begun < 10
    model.go.set()
    deadline = time.monotonic() + 10
    while not memory.store.jobs("tenant-a")[0][2] and time.monotonic() < deadline:
        time.sleep(0.01)
    (_, _, attempts, error) = memory.store.jobs("tenant-a")[0]
    assert attempts >= 1
    assert "no answer in time" in error


@pytest.mark.parametrize("reply", ["", "I cannot.", '{"thoughts": 7}', "{" * 50, "```json\n[]\n```", "\x00\ud800"])
@pytest.mark.parametrize("strategy", ["facts", "reasoningbank", "tim", "arcmemo", "reme"])
def test_nonsense_writes_nothing_and_is_kept_for_later(make: Make, strategy: str, reply: str):
    memory = make(strategy=strategy, llm=ScriptedChatModel([("", reply)]), write="manual")
    episode = memory.open_episode("task")
    memory.observe(episode.id, {"role": "assistant", "content": "tea is green"})
    memory.close_episode(episode.id, "success")
    assert distil_next(memory.context)
    assert memory.records(statuses=("active", "quarantined", "archived")) == []
    ((_, state, attempts, error),) = memory.store.jobs("tenant-a")
    assert (state, attempts) == ("queued", 1)
    assert "no valid answer" in error


def test_an_embedder_of_another_size_loses_nothing(make: Make):
    with make(embedder=HashEmbedder(16)) as memory:
        memory.add("tea is green")
    wider = HashEmbedder(32)
    wider.model_id = "hash-16"
    from remnant.memory import EmbedderError

    with pytest.raises(EmbedderError, match="16"):
        make(embedder=wider).recall("tea")
    renamed = make(embedder=HashEmbedder(32))
    assert renamed.reindex() == 1
    assert renamed.recall("tea")[0].parts
    assert make(embedder=HashEmbedder(16)).recall("tea")[0].text == "tea is green"


SYNTAX = st.sampled_from(
    ['"', "AND", "OR", "NOT", "NEAR(", ")", "*", "^", ":", "-", "a-b:c", "what's C++?", "{", "col:x", "\\", "%"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(SYNTAX, st.text(max_size=8)), max_size=8).map(" ".join))
def test_no_query_breaks_the_word_search(query: str):
    memory = _shared()
    hits = memory.recall(query, k=3)
    assert len(hits) <= 3
    if "tea" in query.casefold().split():
        assert hits


_MEMORIES: list[Memory] = []


def _shared() -> Memory:
    if not _MEMORIES:
        _MEMORIES.append(Memory.open(":memory:", scope="fuzz", write="manual", strict=True))
        _MEMORIES[0].add(["tea is green", Record("milk", trigger="what's C++?"), '"quoted" AND NOT'])
    return _MEMORIES[0]
