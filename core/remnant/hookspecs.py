"""Every hook of Remnant on one screen.

A plugin is a module with some of these functions, each decorated with `hookimpl`, and one entry
point in the group `remnant`. Each hook takes nothing and returns a sequence; every item has a
`name`. Import heavy things inside the function: hooks are called only when their items are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from remnant.systems import System

PROJECT = "remnant"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def remnant_policies() -> Sequence[type[Any]]:  # pyright: ignore[reportReturnType]
    """KV policies: classes after `remnant.kv.Policy`; one file each."""


@hookspec
def remnant_drafters() -> Sequence[type[Any]]:  # pyright: ignore[reportReturnType]
    """Drafters for speculative decoding: classes after `remnant.speculative.Drafter`; one file each."""


@hookspec
def remnant_strategies() -> Sequence[type[Any]]:  # pyright: ignore[reportReturnType]
    """Agent-memory strategies: classes after `remnant.memory.Strategy`: index_text, select, render, distil."""


@hookspec
def remnant_indexes() -> Sequence[type[Any]]:  # pyright: ignore[reportReturnType]
    """Indexes over vectors: classes after `remnant.index.VectorIndex`, made with the number of numbers per vector."""


@hookspec
def remnant_systems() -> Sequence[System]:  # pyright: ignore[reportReturnType]
    """Rows of `remnant systems`: a published system, its state and the command that shows it."""
