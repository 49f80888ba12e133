"""A stream of tasks, one after another, with a memory that learns from each: how many are done."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from remnant.memory import (
    Add,
    DistilContext,
    Episode,
    Event,
    Hit,
    IndexText,
    Memory,
    ModelError,
    Op,
    Query,
    Record,
    Strategy,
    render_data,
)
from remnant.memory.record import Outcome as Verdict
from remnant.memory.strategies.trace import transcript
from remnant.testbed.agents.mind import Mind
from remnant.testbed.agents.solver import solve
from remnant.testbed.agents.world import Run, World

NONE, RAW = "none", "raw"
BUDGET = 400
"""Tokens of notes per task."""


class Trajectories:
    """The control: every trajectory is stored as it was and shown whole, without any distilling."""

    name = RAW
    version = "1"

    def index_text(self, record: Record) -> IndexText:
        """The task."""
        return IndexText(record.trigger or record.content, record.trigger or record.content)

    def select(self, query: Query, hits: Sequence[Hit]) -> Sequence[Hit]:
        """As ranked."""
        return hits

    def render(self, hits: Sequence[Hit]) -> str:
        """A block of data."""
        return render_data(hits)

    def distil(self, episodes: Sequence[Episode], context: DistilContext) -> Sequence[Op]:
        """One record per episode."""
        return [
            Add(Record(transcript(episode), trigger=episode.task, kind="experience", trust="agent"))
            for episode in episodes
        ]


@dataclass(frozen=True)
class Settings:
    """One experiment.

    Args:
        tasks: in the stream.
        k: notes per task at most.
        drift_at: see `World`.
        misjudges: chance that a verdict is wrong.
        prepare: called with the memory before the first task.
    """

    tasks: int = 60
    k: int = 4
    drift_at: int | None = None
    misjudges: float = 0.0
    prepare: Callable[[Memory, World], None] | None = None


@dataclass(frozen=True)
class Outcome:
    """What one stream gave.

    Args:
        done: per task, whether it was done.
        steps: per task, how many actions it took.
        stats: the memory's counts at the end.
    """

    done: tuple[bool, ...]
    steps: tuple[int, ...]
    stats: dict[str, Any]


def run_stream(strategy: str | Strategy, seed: int, settings: Settings = Settings()) -> Outcome:
    """Work through a stream of tasks.

    Args:
        strategy: how the memory learns; `none` has no memory.
        seed: of the world, the tasks and every chance.
        settings: the experiment.
    """
    world = World(seed, settings.drift_at)
    done: list[bool] = []
    steps: list[int] = []
    with open_memory(strategy, seed, settings) as memory:
        faults: list[str] = []
        memory.events.subscribe(lambda event: _note(event, faults))
        if settings.prepare is not None:
            settings.prepare(memory, world)
        for number, task in enumerate(world.tasks(settings.tasks)):
            rng = random.Random(f"solver {seed} {number}")
            run, told = Run(world, task, number), list[str]()
            attempt(memory if strategy != NONE else None, run, rng, told, settings)
            done.append(run.done)
            steps.append(len(told))
        stats = memory.stats()
    if faults:  # a strategy that does not learn must not pass for one that learns nothing useful
        raise ModelError(f"{len(faults)} distillations failed, the first with: {faults[0]}")
    return Outcome(tuple(done), tuple(steps), stats)


def attempt(
    memory: Memory | None,
    run: Run,
    rng: random.Random,
    told: list[str],
    settings: Settings,
    *,
    verdict: Verdict | None = None,
    as_of: int | None = None,
    **options: Any,
) -> None:
    """One try with what memory knows, journaled; `options` go to `open_episode`.

    Args:
        memory: None works without one.
        run: the try.
        rng: the solver's chance.
        told: gets the steps.
        settings: the experiment.
        verdict: how the episode is closed; None is by what the world says, wrong at the rate of the settings.
        as_of: the state of memory that is read.
        options: `group`, `metadata`.
    """
    if memory is None:
        solve(run, "", rng, told.append)
        return
    episode = memory.open_episode(run.task.text, **options)
    hits = memory.recall(episode, k=settings.k, budget_tokens=BUDGET, as_of=as_of)

    def tell(line: str) -> None:
        told.append(line)
        memory.observe(episode.id, {"role": "assistant", "content": line})

    used = solve(run, memory.render(hits), rng, tell)
    memory.used(episode.id, sorted(used & {hit.id for hit in hits}))
    wrong = rng.random() < settings.misjudges
    memory.close_episode(episode.id, verdict or ("success" if run.done != wrong else "failure"), "world")


def _note(event: Event, faults: list[str]) -> None:
    if event.name == "distil_failed":
        faults.append(str(event.data.get("error")))


def open_memory(strategy: str | Strategy, seed: int, settings: Settings) -> Memory:
    """An empty memory for one stream, with the scripted model behind it."""
    chosen = "facts" if strategy == NONE else strategy
    return Memory.open(":memory:", chosen, scope="workshop", llm=Mind(seed), write="inline", strict=True)
