"""A process that shares a memory: it writes facts and episodes, hangs while it distils, or ends the queue."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from remnant.memory import Add, DistilContext, Episode, Memory, Op, Record
from remnant.memory.strategies.facts import Facts


class Lessons(Facts):
    """Keeps the first step of each episode as it is."""

    name = "lessons"

    def distil(self, episodes: Sequence[Episode], context: DistilContext) -> Sequence[Op]:
        return [Add(Record(str(episode.steps[0]["content"]))) for episode in episodes]


class Hanging(Lessons):
    """Says that it began, then takes for ever."""

    def distil(self, episodes: Sequence[Episode], context: DistilContext) -> Sequence[Op]:
        os.write(1, b"distilling\n")
        time.sleep(600)
        return []


def main(address: str, schema: str, mode: str, name: str, number: str) -> None:
    settings: dict[str, Any] = {"schema": schema} if schema else {}
    strategy = Hanging() if mode == "hang" else Lessons()
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
