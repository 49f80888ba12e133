"""`remnant testbed agents`: does an agent get better with a memory, in a world with known answers?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from remnant.cli._output import Json, answer, print_table
from remnant.cli._parse import parse_options
from remnant.progress import Progress


def agents(
    strategy: Annotated[
        list[str] | None, typer.Option(help="A strategy; may be repeated; left out, all. Raw trajectories take part.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the one strategy as key=value; may be repeated.")
    ] = None,
    tasks: Annotated[int, typer.Option(min=2, help="Tasks in a stream.")] = 60,
    seeds: Annotated[int, typer.Option(min=1, help="Streams, each with a world of its own.")] = 5,
    rollouts: Annotated[int, typer.Option(min=1, max=64, help="Above 1: the best of so many against the first.")] = 1,
    k: Annotated[int, typer.Option("--k", min=1, help="Notes per task at most.")] = 4,
    misjudges: Annotated[float, typer.Option(min=0.0, max=1.0, help="Chance that a verdict is wrong.")] = 0.0,
    drift_at: Annotated[int | None, typer.Option(min=0, help="Half of the machines change from this task on.")] = None,
    poisoned: Annotated[bool, typer.Option("--poison", help="Begin with harmful notes in memory.")] = False,
    as_json: Json = False,
) -> None:
    """Success of a scripted agent over a stream of tasks: without memory, and as a strategy learns.

    A simulation: solver and model are scripts that read and err; see remnant.testbed.agents.
    """
    from remnant.errors import ConfigError
    from remnant.testbed.agents.stream import RAW, Settings
    from remnant.testbed.agents.trial import compare, entrants, poison, scale

    options = parse_options(option or [])
    if options and len(strategy or []) != 1:
        raise ConfigError("options for no or several strategies", do="name one with --strategy")
    chosen = entrants(strategy or None, options)
    settings = Settings(tasks, k, drift_at, misjudges, poison if poisoned else None)

    def work(progress: Progress) -> dict[str, Any]:
        if rollouts == 1:
            return compare(chosen, range(seeds), settings, progress)
        learning = {name: make for name, make in chosen.items() if name != RAW}
        return {name: scale(make, range(seeds), rollouts, settings, progress) for name, make in learning.items()}

    answer(as_json, work, _show)


def _show(found: dict[str, Any]) -> None:
    names = [name for name in next(iter(found.values())) if name not in ("memory", "n")]
    print_table(["strategy", *names], [[who, *(_cell(row[name]) for name in names)] for who, row in found.items()])


def _cell(rate: dict[str, float]) -> str:
    return f"{rate['mean']:.3f} ({rate['low']:.3f} to {rate['high']:.3f})"
