"""The built-in strategies, one file each."""

from remnant.memory.strategies.facts import Facts

BUILTIN = (Facts,)

__all__ = ["BUILTIN", "Facts"]
