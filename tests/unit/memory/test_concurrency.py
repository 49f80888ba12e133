"""Many threads, many processes, one file."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from remnant.memory import HashEmbedder, Memory, Update

Make = Callable[..., Memory]

PROCESS = """
import sys
from remnant.memory import Memory
memory = Memory.open(sys.argv[1], scope=sys.argv[3], write="background")
for number in range(20):
    memory.add(f"fact {number} by {sys.argv[2]}")
    episode = memory.open_episode("task")
    memory.observe(episode.id, {"role": "user", "content": f"lesson {number} by {sys.argv[2]}"})
    memory.close_episode(episode.id, "success")
assert memory.flush(60)
memory.close()
"""


def test_eight_processes_write_at_once(path: Path, make: Make):
    commands = [[sys.executable, "-c", PROCESS, str(path), str(n), f"scope-{n % 2}"] for n in range(8)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    faults = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 8, faults
    for scope in ("scope-0", "scope-1"):
        memory = make(scope=scope)
        records = memory.records(limit=1000)
        assert len(records) == 4 * 40
        assert len({record.content for record in records}) == 4 * 40
        assert {state for _, state, _, _ in memory.store.jobs(scope)} == {"done"}


def test_threads_share_a_memory(make: Make):
    memory = make(write="background", embedder=HashEmbedder())
    (id,) = memory.add("counter 0")

    def work(number: int) -> None:
        memory.add(f"fact {number}")
        memory.recall("fact", k=3)
        episode = memory.open_episode(f"task {number}")
        memory.observe(episode.id, {"role": "user", "content": f"lesson {number}"})
        memory.close_episode(episode.id)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(50)))
    assert memory.flush(30)
    assert memory.stats() == {"active": 101, "pending": 0}
    for number in range(50):
        (hit,) = memory.recall(f"lesson {number}", k=1)
        assert hit.text == f"lesson {number}"
        episode = memory.store.episode("tenant-a", hit.record.provenance[0].source_id)
        assert episode is not None
        assert episode.task == f"task {number}"
    assert memory.get(id)


def test_one_record_changed_by_many(make: Make):
    memory = make()
    (id,) = memory.add("counter 0")
    barrier = threading.Barrier(4)
    done: list[int] = []

    def work(_: int) -> None:
        barrier.wait()
        for _ in range(5):
            while True:
                try:
                    done.append(memory.apply([Update(id, {"kind": "thought"})], "r", "a").number)
                    break
                except Exception as error:
                    assert "version" in str(error)  # noqa: PT017

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(set(done)) == 20
    assert [record.version for _, record in memory.audit(id)] == list(range(1, 22))


def test_async_twins_do_not_block_the_loop(make: Make):
    memory = make(write="background", embedder=SlowEmbedder())
    gaps: list[float] = []

    async def ticks() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.001)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    async def run() -> None:
        ticking = asyncio.create_task(ticks())
        ids = await memory.aadd(["tea is green", "milk is white"])
        hits = await asyncio.gather(*(memory.arecall("green tea", k=1) for _ in range(8)))
        assert {hit[0].id for hit in hits} == {ids[0]}
        episode = await memory.aopen_episode("task")
        await memory.aobserve(episode.id, {"role": "user", "content": "coffee is black"})
        await memory.aused(episode.id, ids[:1])
        await memory.aclose_episode(episode.id, "success")
        assert await memory.aflush(10)
        await memory.afeedback(episode.id, success=False)
        assert await memory.aflush(10)
        change = await memory.aapply([Update(ids[0], {"content": "tea is black"})], "r", "a")
        await memory.aundo(change)
        assert (await memory.aforget(ids[1])).clean
        record = await memory.aget(ids[0])
        assert record is not None
        assert (record.content, record.utility.harmed) == ("tea is green", 1)
        ticking.cancel()

    asyncio.run(run())
    gaps.sort()
    assert gaps[len(gaps) // 2] < 0.02  # the median: single gaps belong to the machine


class SlowEmbedder(HashEmbedder):
    """Its sync half would freeze the loop; only the async one may be called here."""

    def embed(self, texts, *, kind):  # type: ignore[no-untyped-def]
        if threading.current_thread() is threading.main_thread():
            raise AssertionError("the sync half was called on the event loop")
        return super().embed(texts, kind=kind)

    async def aembed(self, texts, *, kind):  # type: ignore[no-untyped-def]
        await asyncio.sleep(0.05)
        return HashEmbedder.embed(self, texts, kind=kind)


def test_connections_of_threads_that_ended_are_closed(make: Make, path: Path):
    """Each event loop has threads of its own; an application with many loops must not run out of files."""
    memory = make()
    memory.add("tea without milk")
    for _ in range(40):
        thread = threading.Thread(target=memory.recall, args=("tea",))
        thread.start()
        thread.join()
    held = [link for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link) == str(path.resolve())]
    assert len(held) <= 4
