"""Which text stands in which row of a batch, where rows carry no names and move: told by how each text ended before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Histories", "History"]

_TAIL, _HEAD = 32, 64


class Growing(Protocol):
    """What is kept of a text."""

    def extend(self, tokens: Any, /) -> Any:
        """The text goes on."""
        ...


T = TypeVar("T", bound=Growing)


@dataclass(eq=False)
class History(Generic[T]):
    """One text and what is kept of it.

    Attributes:
        index: what is kept.
        prompt: tokens when it was first seen, the first answered ones excluded.
        length: tokens that the index has.
        row: where it stood in the last step.
        step: the step in which it was last seen.
        head: its first tokens, as bytes.
        key: where it is filed.
    """

    index: T
    prompt: int
    length: int = 0
    row: int = -1
    step: int = -1
    head: bytes = b""
    key: tuple[int, bytes] = (0, b"")


class Histories(Generic[T]):
    """Texts that grow at their ends, each found again in constant time.

    A step adds `new` tokens to a row, so in front of them the row ends as some text did: same length, same last tokens.
    A text that was swapped to another row, or left the batch and came back, is found in the same way. Texts that are
    alike in all that are one text for this purpose; a wrong one costs accepted drafts, never a wrong token.

    Args:
        make: makes the index of a text from its prompt, `[n]` int32.
        most: texts that are kept at once.
        most_tokens: of all texts together.
        gone: told of a text before it is dropped.
        left: told of a text that has left the batch; it may come back.
    """

    def __init__(
        self,
        make: Callable[[Any], T],
        most: int,
        most_tokens: int,
        gone: Callable[[History[T]], None] | None = None,
        left: Callable[[History[T]], None] | None = None,
    ) -> None:
        """See the class."""
        self._make, self._most, self._most_tokens, self._gone, self._left = make, most, most_tokens, gone, left
        self._filed: dict[tuple[int, bytes], list[History[T]]] = {}
        self._live: dict[int, History[T]] = {}  # in the batch, as far as is known; the first one was seen first
        self._idle: dict[int, History[T]] = {}  # not in it; the first one has left first
        self.tokens = 0
        self.step = 0
        self.built = 0

    def __len__(self) -> int:
        """Texts that are kept."""
        return len(self._live) + len(self._idle)

    def __iter__(self) -> Iterator[History[T]]:
        """All that are kept, those that have left the batch first."""
        return iter([*self._idle.values(), *self._live.values()])

    def begin(self) -> None:
        """A step of the batch begins; within it, no two rows have the same text.

        What was not seen in the step before has left.
        """
        self.step += 1
        while self._live:
            history = next(iter(self._live.values()))
            if history.step >= self.step - 1:
                return
            self._idle[id(history)] = self._live.pop(id(history))
            if self._left is not None:
                self._left(history)

    def take(self, row: int, tokens: Any, new: int) -> History[T] | None:
        """The text in a row, with its index brought up to date.

        Args:
            row: its place in the batch.
            tokens: `[n]` int32 array, the whole text.
            new: how many of them this step added.

        Returns:
            The text; None where there is no room for one more.
        """
        known = max(0, len(tokens) - new)
        found = self._find(row, tokens, known)
        if found is None:
            found = self._create(tokens, known)
        if found is None:
            return None
        found.row, found.step = row, self.step
        self._forget(found)  # it makes no room for itself
        self._live[id(found)] = found
        if not self._room(len(tokens) - known, 0):
            self._drop(found)
            return None
        found.index.extend(tokens[known:])
        self.tokens += len(tokens) - known
        found.length = len(tokens)
        self._file(found, tokens)
        return found

    def _find(self, row: int, tokens: Any, known: int) -> History[T] | None:
        key = _key(tokens, known)
        found: History[T] | None = None
        for history in self._filed.get(key, ()):
            same = tokens[: len(history.head) // tokens.itemsize].tobytes() == history.head
            if same and history.step < self.step and (found is None or history.row == row):
                found = history
        return found

    def _create(self, tokens: Any, known: int) -> History[T] | None:
        if not self._room(known, 1):
            return None
        self.built += 1
        made = History(self._make(tokens[:known]), known, known, head=tokens[: min(_HEAD, known)].tobytes())
        self._live[id(made)] = made
        self.tokens += known
        return made

    def _file(self, history: History[T], tokens: Any) -> None:
        self._unfile(history)
        history.key = _key(tokens, history.length)
        self._filed.setdefault(history.key, []).append(history)

    def _unfile(self, history: History[T]) -> None:
        filed = self._filed.get(history.key, [])
        if history in filed:
            filed.remove(history)
            if not filed:
                del self._filed[history.key]

    def _room(self, tokens: int, texts: int) -> bool:
        """Make room, by texts that have left the batch."""
        while self.tokens + tokens > self._most_tokens or len(self) + texts > self._most:
            oldest = next(iter(self._idle.values()), None)
            if oldest is None:
                return False
            self._drop(oldest)
        return True

    def _drop(self, history: History[T]) -> None:
        if self._gone is not None:
            self._gone(history)
        self._unfile(history)
        self._forget(history)
        self.tokens -= history.length

    def _forget(self, history: History[T]) -> None:
        self._live.pop(id(history), None)
        self._idle.pop(id(history), None)


def _key(tokens: Any, length: int) -> tuple[int, bytes]:
    return length, tokens[max(0, length - _TAIL) : length].tobytes()
