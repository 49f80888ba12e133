"""A process that shares a memory: it writes a number of facts and episodes, or hangs in the middle of distilling."""

import os
import sys
import time
from collections.abc import Sequence

from remnant.memory import DistilContext, Episode, Memory, Op
from remnant.memory.strategies.facts import Facts


class Hanging(Facts):
    """Says that it began, then takes for ever."""

    def distil(self, episodes: Sequence[Episode], context: DistilContext) -> Sequence[Op]:
        super().distil(episodes, context)
        os.write(1, b"distilling\n")
        time.sleep(600)
        return []


def main(address: str, schema: str, mode: str, name: str, number: str) -> None:
    settings = {"schema": schema} if schema else {}
    strategy = Hanging() if mode == "hang" else Facts()
    memory = Memory.open(address, strategy, scope="tenant-a", write="background", **settings)
    for n in range(int(number)):
        memory.add(f"fact {n} by {name}")
        episode = memory.open_episode("task")
        memory.observe(episode.id, {"role": "user", "content": f"lesson {n} by {name}"})
        memory.close_episode(episode.id, "success")
    assert memory.flush(60)
    memory.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
