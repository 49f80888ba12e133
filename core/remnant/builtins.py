"""What Remnant itself brings, through the hooks that every plugin uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from remnant.hookspecs import hookimpl
from remnant.lazy import needs

if TYPE_CHECKING:
    from remnant.systems import System


@hookimpl
def remnant_policies() -> Sequence[type[Any]]:
    """The eighteen KV policies; needs torch."""
    with needs("torch", wanted_by="remnant.kv"):
        from remnant.kv.policies import BUILTIN
    return BUILTIN


@hookimpl
def remnant_drafters() -> Sequence[type[Any]]:
    """The built-in drafters; needs torch."""
    with needs("torch", wanted_by="remnant.speculative"):
        from remnant.speculative.drafters import BUILTIN
    return BUILTIN


@hookimpl
def remnant_strategies() -> Sequence[type[Any]]:
    """The built-in strategies of agent memory."""
    from remnant.memory.strategies import BUILTIN

    return BUILTIN


@hookimpl
def remnant_indexes() -> Sequence[type[Any]]:
    """The built-in indexes over vectors; each needs its packages only when it is made."""
    from remnant.index.ann import AnnIndex
    from remnant.index.dense import DenseScan
    from remnant.index.lsh import LshIndex

    return DenseScan, AnnIndex, LshIndex


@hookimpl
def remnant_systems() -> Sequence[System]:
    """The published systems that Remnant implements or will implement."""
    from remnant.systems import SYSTEMS

    return SYSTEMS
