"""Which index a scope gets: comparing everything while that is quick, a graph of neighbours above."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import cast

from remnant.errors import unknown
from remnant.index.found import VectorIndex

AUTO = "auto"

MANY = 200_000
"""Vectors from which `auto` takes the approximate index, if usearch is installed: exact search takes about 40 ms."""

SLACK = 0.2
"""Share by which a scope must grow or shrink beyond the limit until its index is changed for the other."""


def check_index(name: str) -> str:
    """The name, if there is such an index; `auto` chooses by size.

    Raises:
        ConfigError: there is none.
        MissingExtra: it needs a package that is not installed.
    """
    if name == AUTO:
        return name
    known = _known()
    if name not in known:
        raise unknown("index", name, [AUTO, *known])
    known[name](1)  # what it needs is asked for now, not when something is recalled
    return name


def chosen(setting: str, count: int, present: str | None = None) -> str:
    """The index for so many vectors.

    Args:
        setting: a name, or `auto`.
        count: vectors.
        present: the one that is there; kept near the limit.
    """
    if setting != AUTO:
        return setting
    limit = MANY * {None: 1.0, "exact": 1.0 + SLACK}.get(present, 1.0 - SLACK)
    return "ann" if count > limit and find_spec("usearch") is not None else "exact"


def make_index(name: str, dim: int) -> VectorIndex:
    """An empty index; see `check_index` for what it raises."""
    check_index(name)
    return _known()[name](dim)


def _known() -> dict[str, Callable[[int], VectorIndex]]:
    from remnant.plugins import collect

    return {item.name: cast("Callable[[int], VectorIndex]", item) for _, item in collect("remnant_indexes")}
