"""A process in trouble: its disk is full after some bytes, or it may only read."""

import contextlib
import os
import resource
import signal
import sys

from remnant.memory import Memory, StoreError


def full(path: str, size: int) -> None:
    """Write until no more bytes fit into a file; say what was acknowledged, then whether memory still answers."""
    memory = Memory.open(path, scope="tenant-a", write="manual")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    for number in range(10**6):
        try:
            print(memory.add(f"fact number {number} " + "x" * 500)[0], flush=True)
        except StoreError as error:
            print("full", error, flush=True)
            break
    print("found", len(memory.recall("fact number 0", k=1)), flush=True)
    with contextlib.suppress(StoreError):
        memory.open_episode("a task " + "y" * size)
        print("impossible", flush=True)


def reading(path: str) -> None:
    """Recall from and write to a file that belongs to somebody else."""
    Memory.open(":memory:", scope="warm", write="manual").close()  # the library may lie where only root reads
    if os.getuid() == 0:
        os.setuid(65534)
    memory = Memory.open(path, scope="tenant-a", write="manual")
    print("found", [hit.text for hit in memory.recall("tea", episode=None)], flush=True)
    try:
        memory.add("more")
    except StoreError as error:
        print("refused", error, flush=True)


if __name__ == "__main__":
    full(sys.argv[2], int(sys.argv[3])) if sys.argv[1] == "full" else reading(sys.argv[2])
