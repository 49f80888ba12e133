"""The built-in strategies, one file each."""

from remnant.memory.strategies.facts import Facts
from remnant.memory.strategies.reasoningbank import ReasoningBank

BUILTIN = (Facts, ReasoningBank)

__all__ = ["BUILTIN", "Facts", "ReasoningBank"]
