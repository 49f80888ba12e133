"""A process that is killed: it opens a memory, journals, and hangs or dies in the middle of distilling."""

import os
import sys
import time
from collections.abc import Sequence

from remnant.memory import DistilContext, Episode, Memory, Op
from remnant.memory.strategies.facts import Facts


def say(text: str) -> None:
    """One write per line: two threads speak."""
    os.write(1, f"{text}\n".encode())


class Hanging(Facts):
    """Says that it began, then takes for ever."""

    def distil(self, episodes: Sequence[Episode], context: DistilContext) -> Sequence[Op]:
        ops = super().distil(episodes, context)
        say("distilling")
        time.sleep(600)
        return ops


def main(path: str, mode: str) -> None:
    strategy = Hanging() if mode == "hang" else Facts()
    memory = Memory.open(path, strategy, scope="tenant-a", write="manual" if mode == "open" else "background")
    if mode == "open":
        episode = memory.open_episode("left open")
        memory.observe(episode.id, {"role": "user", "content": "half a thought"})
        say(episode.id)
        time.sleep(600)
    for number in range(10**6):
        if mode == "write":
            say(memory.add(f"fact number {number} of {os.getpid()}")[0])
        episode = memory.open_episode(f"task {number}")
        memory.observe(episode.id, {"role": "user", "content": f"lesson {number} from {os.getpid()}"})
        memory.close_episode(episode.id, "success")
        say(f"episode {episode.id}")
        if mode == "hang":
            time.sleep(600)


def brood(path: str) -> None:
    """Fork a process that writes for each line that is read; imports cost once."""
    Memory.open(":memory:", scope="warm", write="manual").close()
    for _ in sys.stdin:
        pid = os.fork()
        if not pid:
            main(path, "write")
        say(f"pid {pid}")
        os.waitpid(pid, 0)


if __name__ == "__main__":
    if sys.argv[2] == "brood":
        brood(sys.argv[1])
        sys.exit()
    main(*sys.argv[1:])
