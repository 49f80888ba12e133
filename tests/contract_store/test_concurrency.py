"""Many threads, processes and stores on one memory: nothing is lost, each distillation counts once."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from array import array
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from remnant.memory import ConflictError, Episode, RecordStore, Update
from remnant.memory.owner import owner
from remnant.memory.worker import LEASE

A = "tenant-a"
CHILD = Path(__file__).with_name("child.py")


def _start(place: Any, mode: str, name: str, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(CHILD), *place.arguments(), mode, name, str(number)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_four_processes_write_at_once(shared: Any):
    running = [_start(shared, "write", str(n), 6) for n in range(4)]
    faults = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, faults
    store = shared.store()
    records = store.page(A)
    assert len({record.content for record in records}) == len(records) == 48
    assert Counter(state for _, state, _, _ in store.jobs(A)) == {"done": 24}
    sources = Counter(source.source_id for record in records for source in record.provenance)
    assert sorted(sources.values()) == [1] * 24
    changes = store.changes(A)[::-1]
    assert len(changes) == 48
    assert all(a.number < b.number and a.time <= b.time for a, b in itertools.pairwise(changes))
    assert sorted(id for change in changes for id in change.ids) == sorted(record.id for record in records)
    assert {id for id, _ in store.words(A, ["fact", "lesson"], 99)} == {record.id for record in records}


def test_killed_in_the_middle_of_distilling(shared: Any):
    child = _start(shared, "hang", "x", 1)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "distilling"
    store = shared.store()
    ((key, state, _, _),) = store.jobs(A)
    assert state == "running"
    assert store.claim(A, owner(), LEASE) is None  # its process lives
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    others = [_start(shared, "end", "y", 0) for _ in range(2)]
    faults = [process.communicate(timeout=120)[1] for process in others]
    assert [process.returncode for process in others] == [0, 0], faults
    assert store.jobs(A) == [(key, "done", 0, "")]
    assert [r.content for r in store.page(A) if r.provenance] == ["lesson 0 by x"]


def test_workers_share_a_queue(shared: Any):
    stores = [shared.store() for _ in range(4)]
    for n in range(24):
        stores[0].open_episode(Episode(f"e{n}", A, "task"), owner())
        stores[0].close_episode(A, f"e{n}", "success", "rule", queue=True)
    barrier = threading.Barrier(4)
    done: list[str] = []

    def work(store: RecordStore) -> None:
        barrier.wait()
        while job := store.claim(A, owner(), 60):
            store.commit(A, [], actor="s", reason="r", job=job)
            done.append(job.key)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, stores))
    assert sorted(done) == sorted(f"e{n}" for n in range(24))
    assert {state for _, state, _, _ in stores[0].jobs(A)} == {"done"}


def test_what_was_left_behind_is_taken_over_once(shared: Any):
    stores = [shared.store() for _ in range(4)]
    gone = f"{owner().rpartition(':')[0]}:0"
    for n in range(8):
        stores[0].open_episode(Episode(f"e{n}", A, "task"), owner())
        stores[0].close_episode(A, f"e{n}", "success", "rule", queue=True)
        assert stores[0].claim(A, gone, 60)
    barrier = threading.Barrier(4)

    def work(store: RecordStore) -> list[str]:
        barrier.wait()
        return [job.key for _ in range(8) if (job := store.claim(A, owner(), 60))]

    with ThreadPoolExecutor(4) as pool:
        taken = [key for keys in pool.map(work, stores) for key in keys]
    assert sorted(taken) == [f"e{n}" for n in range(8)]


def test_one_record_changed_by_many(shared: Any):
    memories = [shared.memory() for _ in range(4)]
    (id,) = memories[0].add("counter")
    numbers: list[int] = []

    def work(memory: Any) -> None:
        for n in range(5):
            while True:
                try:
                    numbers.append(memory.apply([Update(id, {"content": f"counter {n}"})], "r", "a").number)
                    break
                except ConflictError:
                    continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, memories))
    history = memories[0].audit(id)
    assert [record.version for _, record in history] == list(range(1, 22))
    assert [change.number for change, _ in history[1:]] == sorted(numbers)
    assert len(set(numbers)) == 20


def test_a_reader_that_follows_misses_nothing(shared: Any, write: Callable[..., Any]):
    """A change that becomes visible after one with a higher number would never be seen."""
    stores = [shared.store() for _ in range(3)]
    vector = array("f", [1.0, 0.0]).tobytes()
    stop = threading.Event()

    def work(number: int) -> None:
        for n in range(15):
            id = f"r{number}-{n}"
            stores[number].commit(A, [write(id, id, vectors={"m": vector})], actor="a", reason="r")

    def follow() -> set[str]:
        reader, held, at = shared.store(), set[str](), 0
        while True:
            last = stop.is_set()
            now = reader.stamp(A)[1]
            held |= {id for id, blob in reader.vectors(A, "m", at) if blob is not None}
            at = now
            if last:
                return held

    with ThreadPoolExecutor(4) as pool:
        following = pool.submit(follow)
        list(pool.map(work, range(3)))
        stop.set()
        assert following.result() == {f"r{number}-{n}" for number in range(3) for n in range(15)}


def test_counters_of_many_add_up(shared: Any, put: Callable[..., Any]):
    stores = [shared.store() for _ in range(4)]
    put(stores[0], *((f"r{n}", "tea") for n in range(5)))

    def work(number: int) -> None:
        ids = [f"r{n}" for n in range(5)]
        for n in range(6):
            episode = f"e{number}-{n}"
            stores[number].open_episode(Episode(episode, A, "task"), owner())
            stores[number].shown(A, ids if number % 2 else ids[::-1], episode)
            stores[number].close_episode(A, episode, "success", "rule", queue=False)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    found = stores[0].get(A, [f"r{n}" for n in range(5)]).values()
    assert [(r.utility.retrieved, r.utility.used, r.utility.helped) for r in found] == [(24, 24, 24)] * 5


def test_steps_of_many_are_numbered_without_gaps(shared: Any):
    stores = [shared.store() for _ in range(3)]
    stores[0].open_episode(Episode("e", A, "task"), owner())
    with ThreadPoolExecutor(3) as pool:
        numbers = list(pool.map(lambda n: stores[n % 3].add_step(A, "e", {"n": n}), range(30)))
    found = stores[0].episode(A, "e")
    assert sorted(numbers) == list(range(30))
    assert found is not None
    assert {step["n"] for step in found.steps} == set(range(30))
