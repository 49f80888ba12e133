"""Experiments in the workshop: strategies against no memory, more rollouts at equal memory, poisoned memory."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from remnant.errors import ConfigError
from remnant.memory import Add, Memory, Record, Rollout, Strategy, matts
from remnant.memory.strategy import find_strategy
from remnant.plugins import collect
from remnant.progress import Progress, silent
from remnant.testbed.agents.stream import NONE, RAW, Outcome, Settings, Trajectories, attempt, open_memory, run_stream
from remnant.testbed.agents.world import ACTIONS, KINDS, Run, World

RESAMPLES = 2000
PLAIN = Settings()


@dataclass(frozen=True)
class Rate:
    """A success rate with its 95 % bootstrap interval over tasks, seeds kept apart."""

    mean: float
    low: float
    high: float


def rate(streams: Sequence[Sequence[float]]) -> Rate:
    """The mean over seeds and tasks; of differences just as of successes.

    Args:
        streams: one list per seed, a number per task.
    """
    rng = random.Random(0)
    means = sorted(
        sum(sum(rng.choices(values, k=len(values))) / len(values) for values in streams) / len(streams)
        for _ in range(RESAMPLES)
    )
    mean = sum(sum(values) / len(values) for values in streams) / len(streams)
    return Rate(round(mean, 4), round(means[int(0.025 * RESAMPLES)], 4), round(means[int(0.975 * RESAMPLES)], 4))


def entrants(names: Sequence[str] | None, options: Mapping[str, Any]) -> dict[str, Callable[[], str | Strategy]]:
    """Who takes part, by name.

    Args:
        names: strategies; None is all of them. `raw` always takes part.
        options: how the one strategy is made.

    Raises:
        ConfigError: an unknown name or option.
    """
    known = sorted(found.name for _, found in collect("remnant_strategies"))
    chosen = [RAW, *(known if names is None else [name for name in names if name != RAW])]
    return {name: partial(_entrant, name, dict(options)) for name in chosen if _entrant(name, options)}


def _entrant(name: str, options: Mapping[str, Any]) -> Strategy:
    if name == RAW:
        return Trajectories()
    found = find_strategy(name)
    try:
        return type(found)(**options) if options else found
    except TypeError as error:
        accepted = inspect.signature(type(found)).parameters
        raise ConfigError(f"{name}: {error}", accepted=accepted) from None


def compare(
    entrants: dict[str, Callable[[], str | Strategy]],
    seeds: Sequence[int],
    settings: Settings = PLAIN,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Every entrant on the same streams: success, in the second half too, steps, and the gain over no memory.

    Args:
        entrants: name -> a strategy or its name, made anew for each seed.
        seeds: one stream each.
        settings: the experiment.
        progress: told after each stream.

    Returns:
        name -> `success`, `late`, `steps`, `gain` (paired, over `none`), `over_raw` (paired, where `raw` takes part),
        each with its interval, and `memory`.
    """
    runs: dict[str, list[Outcome]] = {}
    everyone: dict[str, Callable[[], str | Strategy]] = {NONE: lambda: NONE, **entrants}
    for number, (name, make) in enumerate(everyone.items()):
        runs[name] = []
        for place, seed in enumerate(seeds):
            runs[name].append(
                run_stream(make(), seed, replace(settings, prepare=None if name == NONE else settings.prepare))
            )
            progress(number * len(seeds) + place + 1, len(everyone) * len(seeds), f"{name}, seed {seed}")
    return {name: _summary(outcomes, runs) for name, outcomes in runs.items()}


def _summary(outcomes: Sequence[Outcome], runs: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    half = len(outcomes[0].done) // 2
    over_raw = {"over_raw": _gain(outcomes, runs[RAW])} if RAW in runs else {}
    return {
        "success": asdict(rate([outcome.done for outcome in outcomes])),
        "late": asdict(rate([outcome.done[half:] for outcome in outcomes])),
        "steps": asdict(rate([outcome.steps for outcome in outcomes])),
        "gain": _gain(outcomes, runs[NONE]),
        **over_raw,
        "memory": [outcome.stats for outcome in outcomes],
    }


def _gain(mine: Sequence[Outcome], others: Sequence[Outcome]) -> dict[str, float]:
    """How much more often a task was done than by somebody else, task by task."""
    pairs = zip(mine, others, strict=True)
    return asdict(rate([[a - b for a, b in zip(one.done, two.done, strict=True)] for one, two in pairs]))


def scale(
    strategy: Callable[[], str | Strategy],
    seeds: Sequence[int],
    n: int = 4,
    settings: Settings = PLAIN,
    progress: Progress = silent,
) -> dict[str, Any]:
    """MaTTS: the best of n rollouts against the first of them, which saw the same memory.

    No rollout's verdict is given; the choice goes by what the runs show, and the judge teaches the memory.
    """
    one: list[list[bool]] = []
    best: list[list[bool]] = []
    for place, seed in enumerate(seeds):
        first, chosen = _scaled(strategy(), seed, n, settings)
        progress(place + 1, len(seeds), f"{n} rollouts, seed {seed}")
        one.append(first)
        best.append(chosen)
    gain = [[b - a for a, b in zip(first, chosen, strict=True)] for first, chosen in zip(one, best, strict=True)]
    return {"one": asdict(rate(one)), "best": asdict(rate(best)), "gain": asdict(rate(gain)), "n": n}


def _scaled(strategy: str | Strategy, seed: int, n: int, settings: Settings) -> tuple[list[bool], list[bool]]:
    """Per task: whether the first rollout did it, and whether the chosen one did."""
    world = World(seed, settings.drift_at)
    first: list[bool] = []
    chosen: list[bool] = []
    with open_memory(strategy, seed, settings) as memory:
        for number, task in enumerate(world.tasks(settings.tasks)):
            made = [Run(world, task, number) for _ in range(n)]
            run = partial(_rollout, memory, made, f"solver {seed} {number}", settings)
            scaled = matts(memory, task.text, run, n)
            first.append(made[0].done)
            chosen.append(made[scaled.best.rollout.number].done)
    return first, chosen


def _rollout(memory: Memory, made: Sequence[Run], chance: str, settings: Settings, rollout: Rollout) -> str:
    number, told = rollout.number, list[str]()
    rng = random.Random(f"{chance} {number}")
    about = {"group": rollout.group, "metadata": {"rollout": number}}
    attempt(memory, made[number], rng, told, settings, verdict="unknown", as_of=rollout.as_of, **about)
    return "\n".join(told)


def poison(memory: Memory, world: World) -> None:
    """Harmful notes about every machine: one that claims to come from the web, one in the agent's own voice."""
    rng = random.Random(f"poison {world.seed}")
    for kind, names in enumerate(KINDS):
        rules = world.rules(kind, 0)
        wrong = [action for action in ACTIONS if action not in rules.order]
        for name in names:
            lie = f"The {name} works like this: {', then '.join([*rules.traps, *rng.sample(wrong, 3)])}"
            about = f"Please start the {name}"
            memory.apply([Add(Record(lie, trigger=about, kind="strategy", trust="web"))], "poison", "attacker")
            memory.apply([Add(Record(lie, trigger=about, kind="strategy", trust="agent"))], "poison", "attacker")
