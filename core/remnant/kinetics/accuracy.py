"""Accuracies that somebody measured, read from a table, and priced."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from remnant.errors import ConfigError
from remnant.kinetics.choose import Option, Purse, most_trials, option
from remnant.kinetics.reading import Reading, parse_reading
from remnant.kinetics.samples import coverage
from remnant.kinetics.shape import Shape

__all__ = ["Measurement", "measured", "read_measurements"]

_COLUMNS = "model, policy, y and either N, accuracy or n, c (one row per problem; a column problem may name it)"


@dataclass(frozen=True)
class Measurement:
    """What is known of one model, policy and length.

    Attributes:
        model: its name.
        policy: what was read.
        y: tokens per answer.
        accuracies: answers -> fraction of problems solved.
        counts: of each problem, (samples drawn, samples right).
    """

    model: str
    policy: Reading
    y: int
    accuracies: Mapping[int, float]
    counts: tuple[tuple[int, int], ...] = ()

    @property
    def most(self) -> int:
        """Most answers whose coverage the counts tell; 0 without counts."""
        return min((n for n, _ in self.counts), default=0)

    def at(self, N: int) -> float:
        """Fraction solved with N answers: as measured, else the mean coverage@N of the problems.

        Raises:
            ConfigError: neither tells it.
        """
        if N in self.accuracies:
            return self.accuracies[N]
        if not self.counts:
            raise ConfigError(f"no accuracy at N={N}", accepted=[str(n) for n in sorted(self.accuracies)])
        return sum(coverage(n, c, N) for n, c in self.counts) / len(self.counts)


def read_measurements(path: Path) -> list[Measurement]:
    """Read a table of accuracies: a JSON list of objects, or CSV with a line of names.

    Args:
        path: rows with `model`, `policy` (as typed, `block:1024:16:16`), `y`, and either `N` with `accuracy`
            (fraction of 1), or `n` and `c`: samples drawn and samples right of one problem each.

    Raises:
        ConfigError: not readable, a column too many or too few, a number out of range, the same thing said twice.
    """
    accuracies: dict[tuple[str, Reading, int], dict[int, float]] = {}
    counts: dict[tuple[str, Reading, int], list[tuple[int, int]]] = {}
    problems: set[tuple[Any, ...]] = set()
    for number, row in enumerate(_rows(path), 1):
        where = f"row {number} of {path.name}"
        names = set(row) - {"problem"}
        if names not in ({"model", "policy", "y", "N", "accuracy"}, {"model", "policy", "y", "n", "c"}):
            raise ConfigError(f"{where} has columns {', '.join(sorted(map(str, row)))}", accepted=_COLUMNS)
        key = (str(row["model"]), parse_reading(str(row["policy"])), _count(row, "y", where))
        known = accuracies.setdefault(key, {})
        if "accuracy" in row:
            N = _count(row, "N", where)
            if N in known:
                raise ConfigError(f"{where} repeats N={N} of {key[0]}, {key[1].label}, y={key[2]}", do="remove one")
            known[N] = _fraction(row, where)
            continue
        if (problem := row.get("problem")) not in (None, ""):
            if (*key, problem) in problems:
                raise ConfigError(f"{where} repeats problem {problem!r}", do="remove one")
            problems.add((*key, problem))
        n, c = _count(row, "n", where), _count(row, "c", where, least=0)
        coverage(n, c, 1)  # refuses c > n
        counts.setdefault(key, []).append((n, c))
    return [Measurement(*key, known, tuple(counts.get(key, ()))) for key, known in accuracies.items()]


def measured(
    purse: Purse, shapes: Sequence[Shape], table: Iterable[Measurement], trials: Sequence[int]
) -> list[Option]:
    """Price what was measured, within the budget or not; nothing is interpolated.

    Args:
        purse: the budget.
        shapes: models; rows of others are passed over.
        table: measurements.
        trials: numbers of answers to take from counts, beside the most that the budget pays.
    """
    named = {shape.name: shape for shape in shapes}
    found: list[Option] = []
    for one in table:
        shape = named.get(one.model)
        if shape is None:
            continue
        wanted = set(one.accuracies)
        if one.counts:
            paid = min(one.most, most_trials(purse, shape, one.policy, one.y))
            wanted |= {N for N in (*trials, paid) if 1 <= N <= one.most}
        found += [option(purse, shape, one.policy, one.y, N, "measured", one.at(N)) for N in sorted(wanted)]
    return found


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        data: Any = json.loads(text) if path.suffix.lower() == ".json" else list(csv.DictReader(text.splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"accuracies {str(path)!r} are not readable: {error}", accepted="JSON or CSV") from None
    rows = cast("list[Any]", data) if isinstance(data, list) else []
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"accuracies {str(path)!r} hold no rows", accepted=f"objects or lines with {_COLUMNS}")
    return rows


def _count(row: Mapping[str, Any], name: str, where: str, least: int = 1) -> int:
    given = row[name]
    try:
        value = int(str(given))
    except ValueError:
        value = least - 1
    if value < least:
        raise ConfigError(f"{where}: {name} is {given!r}", accepted=f"a whole number from {least} on")
    return value


def _fraction(row: Mapping[str, Any], where: str) -> float:
    try:
        value = float(str(row["accuracy"]))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"{where}: accuracy is {row['accuracy']!r}", accepted="a fraction from 0 to 1")
    return value
