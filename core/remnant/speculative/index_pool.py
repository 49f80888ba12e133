"""Indexes for hosts that know their requests by nothing but the tokens: rows move, pause and come back."""

from __future__ import annotations

from collections.abc import Sequence

from remnant.speculative.match import MatchOptions, at_least
from remnant.speculative.suffix import SuffixIndex

__all__ = ["IndexPool"]


class IndexPool:
    """Finds, for every row of a batch, the index that was built for the same text.

    An index is used for a row only where all its tokens are the beginning of the row's, so that a row can never be
    answered from another request's text. Indexes that no row claimed are kept for requests that were paused, the least
    recently used ones going first.

    Args:
        options: of every index.
        spare: indexes kept besides those of the newest batch.
        spare_tokens: tokens that those hold together at most.

    Raises:
        ConfigError: `spare` or `spare_tokens` is negative.
    """

    def __init__(self, options: MatchOptions | None = None, spare: int = 16, spare_tokens: int = 1 << 18) -> None:
        """See the class."""
        at_least("spare", spare, 0)
        at_least("spare_tokens", spare_tokens, 0)
        self._options, self._spare, self._spare_tokens = options, spare, spare_tokens
        self._rows: dict[int, SuffixIndex] = {}
        self._idle: list[SuffixIndex] = []  # least recently used first

    def sync(self, histories: Sequence[Sequence[int] | None]) -> list[SuffixIndex | None]:
        """Indexes that hold exactly these histories.

        Args:
            histories: per row its whole history, ints or a numpy int32 array; None for a row that is not to be drafted
                for now, whose index then waits.

        Returns:
            Per row its index, None where there was no history.

        Raises:
            ConfigError: a token is not an integer from 0 to 2**31 - 1.
        """
        before, self._rows = self._rows, {}
        late = list[int]()
        for row, history in enumerate(histories):
            index = before.get(row)
            if history is None:
                continue
            if index is not None and index.holds(history):
                self._rows[row] = before.pop(row)
            else:
                late.append(row)
        self._idle += before.values()
        for row in late:
            self._rows[row] = self._claim(histories[row] or ())
        for row, index in self._rows.items():
            index.sync(histories[row] or ())
        self._trim()
        return [self._rows.get(row) for row in range(len(histories))]

    def _claim(self, history: Sequence[int]) -> SuffixIndex:
        """The idle index that holds most of the beginning of a history, or a new one."""
        fitting = [index for index in self._idle if index.holds(history)]
        if not fitting:
            return SuffixIndex((), self._options)
        index = max(fitting, key=len)
        self._idle.remove(index)
        return index

    def _trim(self) -> None:
        held = sum(map(len, self._idle))
        while self._idle and (len(self._idle) > self._spare or held > self._spare_tokens):
            held -= len(self._idle.pop(0))

    def __len__(self) -> int:
        """Indexes held, idle ones included."""
        return len(self._rows) + len(self._idle)
