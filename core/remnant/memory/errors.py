"""Errors of agent memory, below `RemnantError`.

RemnantError
├── StoreError          the store cannot be read or written: locked, full, read-only, corrupt
├── ConflictError       somebody changed what this operation was planned on
│   └── JobLost         somebody else took a distillation over; its effect is theirs
├── EmbedderError       the embedder failed, or its vectors do not fit the stored ones
├── ModelError          a chat model cannot answer
│   └── StructuredError no valid structured answer after every attempt; keeps the attempts
├── RolloutsFailed      every rollout of a group raised; keeps the attempts
└── ScriptError         a scripted model was asked something that its script does not hold
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from remnant.errors import RemnantError


class StoreError(RemnantError):
    """The store cannot be read or written."""


class ConflictError(RemnantError):
    """A record is not in the state that an operation was planned on."""


class JobLost(ConflictError):
    """A distillation that somebody else took over, or that is no longer wanted."""


class EmbedderError(RemnantError):
    """An embedder that failed, or that returns vectors of another size than the stored ones."""


class ModelError(RemnantError):
    """A chat model that cannot answer."""


class StructuredError(ModelError):
    """A chat model that gave no valid answer.

    Args:
        attempts: (reply, what was wrong with it) of every attempt, in order.
    """

    def __init__(self, attempts: list[tuple[str, str]]) -> None:
        """See the class."""
        last = attempts[-1][1] if attempts else "nothing was asked"
        super().__init__(f"no valid answer after {len(attempts)} attempts: {last}")
        self.attempts = attempts


class RolloutsFailed(RemnantError):
    """A group of rollouts that all raised.

    Args:
        attempts: how each ended, in order.
    """

    def __init__(self, attempts: Sequence[Any]) -> None:
        """See the class."""
        first = f"{type(attempts[0].error).__name__}: {attempts[0].error}" if attempts else "there was none"
        super().__init__(f"all {len(attempts)} rollouts failed, the first with {first}")
        self.attempts = tuple(attempts)


class ScriptError(RemnantError):
    """A prompt that no line of a `ScriptedChatModel` answers."""


def other_size(model: str, given: int, stored: int | None) -> EmbedderError:
    """The error for vectors that do not fit the stored ones."""
    return EmbedderError(
        f"embedder {model!r} gives {given} numbers",
        accepted=f"{stored}, the size of the vectors stored under that name",
        do="give the new embedder another model_id; records are embedded anew beside the old vectors",
    )
