"""The built-in strategies, one file each."""

from remnant.memory.strategies.facts import Facts
from remnant.memory.strategies.reasoningbank import ReasoningBank
from remnant.memory.strategies.tim import Tim

BUILTIN = (Facts, ReasoningBank, Tim)

__all__ = ["BUILTIN", "Facts", "ReasoningBank", "Tim"]
