"""A conversation in a bounded cache: what of it can be reused, and what goes when it gets too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remnant.errors import ConfigError

__all__ = ["Turn", "Turns", "common_prefix"]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    count = min(len(a), len(b))
    return next((i for i in range(count) if a[i] != b[i]), count)


@dataclass(frozen=True)
class Turn:
    """What to do for the next answer.

    Attributes:
        ids: the whole text that the answer follows.
        reuse: tokens of it that the cache holds already: crop it to them, then read the rest.
        evicted: turns that were dropped, counted from the oldest.
    """

    ids: tuple[int, ...]
    reuse: int
    evicted: int

    @property
    def fresh(self) -> tuple[int, ...]:
        """The tokens that must be read: at least one, whose logits the answer begins with."""
        return self.ids[self.reuse :]


class Turns:
    """One conversation: a system prompt that stays, and turns of which the oldest go first, whole.

    A turn is what a user and the model said, in any form of tokens. The caller may write the whole history anew before
    every answer (`rewrite`), as chat templates do: what the cache holds is compared token by token.

    Args:
        limit: tokens of the whole text at most, `L_max` of a plan.
        system: tokens of the system prompt.

    Raises:
        ConfigError: the system prompt alone is too long.

    Example: Turns(8, [1]).begin([2, 3], answer=2).ids -> (1, 2, 3)
    """

    def __init__(self, limit: int, system: Sequence[int] = ()) -> None:
        """See the class."""
        if limit < 1 or len(system) >= limit:
            raise ConfigError(f"a system prompt of {len(system)} tokens, {limit} in all", accepted="a shorter one")
        self.limit = limit
        self.system = tuple(system)
        self.turns: list[tuple[int, ...]] = []
        self.evicted = 0
        """Turns dropped so far."""
        self._cached: tuple[int, ...] = ()

    def rewrite(self, turns: Sequence[Sequence[int]], system: Sequence[int] | None = None) -> None:
        """Replace the history by the same one in other tokens; turns that were dropped must be left out."""
        self.turns = [tuple(turn) for turn in turns]
        self.system = self.system if system is None else tuple(system)

    def begin(self, message: Sequence[int], answer: int) -> Turn:
        """A new message: make room for it and its answer.

        Args:
            message: its tokens.
            answer: tokens that the answer may have.

        Raises:
            ConfigError: they do not fit even without any earlier turn; says by how many tokens.
        """
        least = len(self.system) + len(message) + answer
        if not message or answer < 1 or least > self.limit:
            raise ConfigError(
                f"a message of {len(message)} tokens and an answer of {answer} behind {len(self.system)}: "
                f"{max(0, least - self.limit)} too many",
                accepted=f"1 or more of each, up to {self.limit} in all",
                do="plan with a longer context, or give the message to an evicting cache",
            )
        dropped = 0
        while least + sum(map(len, self.turns)) > self.limit:
            self.turns.pop(0)
            dropped += 1
        self.evicted += dropped
        self.turns.append(tuple(message))
        ids = self._text()
        return Turn(ids, min(common_prefix(self._cached, ids), len(ids) - 1), dropped)

    def end(self, answer: Sequence[int], cached: int | None = None) -> None:
        """The answer is there and joins the turn of its message.

        Args:
            answer: its tokens, as emitted.
            cached: tokens of the whole text that the cache holds; left out, all but the last.

        Raises:
            ConfigError: there was no message, or the cache cannot hold that many.
        """
        if not self.turns:
            raise ConfigError("an answer without a message", do="call begin first")
        whole = (*self._text(), *answer)
        held = len(whole) - 1 if cached is None else cached
        if not 0 <= held <= len(whole):
            raise ConfigError(f"{held} tokens cached of {len(whole)}", accepted=f"0 to {len(whole)}")
        self.turns[-1] = (*self.turns[-1], *answer)
        self._cached = whole[:held]

    def forget(self) -> None:
        """The cache was emptied; the history stays."""
        self._cached = ()

    def _text(self) -> tuple[int, ...]:
        return (*self.system, *(token for turn in self.turns for token in turn))
