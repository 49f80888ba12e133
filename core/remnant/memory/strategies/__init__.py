"""The built-in strategies, one file each."""

from remnant.memory.strategies.arcmemo import ArcMemo
from remnant.memory.strategies.facts import Facts
from remnant.memory.strategies.reasoningbank import ReasoningBank
from remnant.memory.strategies.reme import ReMe
from remnant.memory.strategies.tim import Tim

BUILTIN = (ArcMemo, Facts, ReMe, ReasoningBank, Tim)

__all__ = ["BUILTIN", "ArcMemo", "Facts", "ReMe", "ReasoningBank", "Tim"]
