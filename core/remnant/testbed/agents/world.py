"""The workshop: machines that are started by three actions in an order nobody is told.

Each kind of machine has its own order and one action that raises an alarm, which costs time. A task names a
machine by one of the names of its kind, in changing words, so that a note must be found and understood.
Everything follows from the seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

KINDS: tuple[tuple[str, ...], ...] = (
    ("kiln", "furnace"),
    ("pump", "siphon"),
    ("lathe", "borer"),
    ("antenna", "mast"),
    ("loom", "weaver"),
    ("crane", "hoist"),
    ("centrifuge", "separator"),
    ("turbine", "rotor"),
)
ACTIONS = (
    "pull the lever",
    "turn the dial",
    "open the valve",
    "press the button",
    "flip the switch",
    "drain the tank",
    "lock the brake",
    "raise the shield",
)
STAGES, TRAPS = 3, 1
TRIES = 15
"""Actions per machine before time is up."""

ALARM = 6
"""Actions that an alarm costs."""

_OPENINGS = ("Please start", "We need you to start", "Somebody has to start")
_LOOKS = ("old", "blue", "noisy", "spare")
_PLACES = ("in the north hall", "behind the office", "on the roof", "in the cellar")
_ENDS = ("before noon", "for the night shift", "for the visitors")


@dataclass(frozen=True)
class Task:
    """What is asked, and which kinds of machine it is about.

    Args:
        text: the wording an agent sees.
        machines: (kind's number, the name used) in the order of the work.
    """

    text: str
    machines: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Rules:
    """How one kind of machine works: actions in order, and those that raise an alarm."""

    order: tuple[str, ...]
    traps: frozenset[str]


class World:
    """One workshop.

    Args:
        seed: fixes the rules and the stream of tasks.
        drift_at: from this task on, every second kind works in a new order; None is never.
    """

    def __init__(self, seed: int, drift_at: int | None = None) -> None:
        """See the class."""
        self.seed, self.drift_at = seed, drift_at
        first, later = random.Random(f"rules {seed}"), random.Random(f"drift {seed}")
        self._rules = [_rules(first) for _ in KINDS]
        self._changed = [_rules(later) if kind % 2 else rules for kind, rules in enumerate(self._rules)]

    def rules(self, kind: int, number: int) -> Rules:
        """How a kind works when a task comes up."""
        drifted = self.drift_at is not None and number >= self.drift_at
        return (self._changed if drifted else self._rules)[kind]

    def tasks(self, count: int, *, composed: float = 0.25) -> list[Task]:
        """The stream of tasks.

        Args:
            count: how many.
            composed: share of tasks about two machines.
        """
        rng = random.Random(f"tasks {self.seed}")
        return [_task(rng, 2 if rng.random() < composed else 1) for _ in range(count)]


class Run:
    """One try at a task; every action is answered by a line of text.

    Args:
        world: whose rules hold.
        task: what is to be done.
        number: the task's place in the stream.
    """

    def __init__(self, world: World, task: Task, number: int) -> None:
        """See the class."""
        self.task = task
        self._rules = [world.rules(kind, number) for kind, _ in task.machines]
        self._stage = [0] * len(task.machines)
        self._left = [TRIES] * len(task.machines)

    @property
    def done(self) -> bool:
        """Every machine runs."""
        return all(stage == STAGES for stage in self._stage)

    @property
    def at(self) -> int | None:
        """The place of the machine to work on; None when the run is over."""
        place = next((place for place, stage in enumerate(self._stage) if stage < STAGES), None)
        return None if place is None or self._left[place] <= 0 else place

    def act(self, action: str) -> str:
        """Do an action on the machine to work on; what happens."""
        place = self.at
        assert place is not None, "the run is over"
        rules, self._left[place] = self._rules[place], self._left[place] - 1
        if action in rules.traps:
            self._left[place] -= ALARM
            return "alarm, time is lost"
        if action != rules.order[self._stage[place]]:
            return "nothing happens"
        self._stage[place] += 1
        return "it runs, done" if self._stage[place] == STAGES else f"good, stage {self._stage[place]} of {STAGES}"


def _rules(rng: random.Random) -> Rules:
    drawn = rng.sample(ACTIONS, STAGES + TRAPS)
    return Rules(tuple(drawn[:STAGES]), frozenset(drawn[STAGES:]))


def _task(rng: random.Random, machines: int) -> Task:
    kinds = rng.sample(range(len(KINDS)), machines)
    named = tuple((kind, rng.choice(KINDS[kind])) for kind in kinds)
    parts = [f"the {rng.choice(_LOOKS)} {name} {rng.choice(_PLACES)}" for _, name in named]
    return Task(f"{rng.choice(_OPENINGS)} {' and then '.join(parts)} {rng.choice(_ENDS)}.", named)
