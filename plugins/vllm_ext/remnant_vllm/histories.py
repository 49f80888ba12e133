"""Which text stands in which row of a batch, where rows carry no names and move: told by how each text ended before."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Histories", "History"]

_TAIL, _HEAD, _WIDE = 32, 64, 4


class Growing(Protocol):
    """What is kept of a text."""

    def extend(self, tokens: Any, /) -> Any:
        """The text goes on, by `array("i")`."""
        ...


T = TypeVar("T", bound=Growing)


@dataclass(eq=False, slots=True)
class History(Generic[T]):
    """One text and what is kept of it.

    Attributes:
        index: what is kept.
        prompt: tokens when it was first seen, the first answered ones excluded.
        length: tokens that the index has.
        row: where it stood in the last step.
        step: the step in which it was last seen.
        live: whether it is in the batch, as far as is known.
        head: its first tokens, as bytes.
        tail: its last ones.
    """

    index: T
    prompt: int
    length: int = 0
    row: int = -1
    step: int = -1
    live: bool = False
    head: bytes = b""
    tail: bytes = b""


class Histories(Generic[T]):
    """Texts that grow at their ends, each found again in constant time.

    A step adds `new` tokens to a row, so in front of them the row ends as some text did: same length, same last tokens.
    Mostly it is the text that stood there before. One that was swapped to another row, or left the batch and came back,
    is found by its end. Texts that are alike in that and in how they begin are one text for this purpose; a wrong one
    costs accepted drafts, never a wrong token.

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
        self._live: dict[int, History[T]] = {}  # in the batch, as far as is known
        self._idle: dict[int, History[T]] = {}  # not in it; the first one has left first
        self._rows: dict[int, History[T]] = {}  # by the row where it stood last
        self._filed: dict[tuple[int, bytes], list[History[T]]] = {}  # idle ones by their ends
        self._moving: dict[tuple[int, bytes], list[History[T]]] | None = None  # live ones, made when a row has moved
        self._seen = 0
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
        if self._seen < len(self._live):
            for history in [h for h in self._live.values() if h.step < self.step]:
                self._leave(history)
        self.step += 1
        self._seen, self._moving = 0, None

    def take(self, row: int, text: Any, length: int, new: int) -> History[T] | None:
        """The text in a row, with its index brought up to date.

        Args:
            row: its place in the batch.
            text: `[length or more]` int32 array.
            length: tokens of it.
            new: how many of them this step added.

        Returns:
            The text; None where there is no room for one more.
        """
        known = length - new if length > new else 0
        end = text[known - _TAIL if known > _TAIL else 0 : length].tobytes()
        cut = (known - length) * _WIDE
        added = array("i", end[cut:])
        found = self._rows.get(row)
        if found is None or not self._is(found, known, end, text):
            found = self._find(known, end[:cut], text) or self._create(known, end[:cut], text)
            if found is None:
                return None
            self._stand(found, row)
        found.step = self.step
        if self.tokens + len(added) > self._most_tokens and not self._room(len(added), 0):
            self._drop(found)
            return None
        found.index.extend(added)
        self.tokens += len(added)
        found.length, found.tail = length, end[-_TAIL * _WIDE :]
        self._seen += 1
        return found

    def _is(self, history: History[T], known: int, end: bytes, text: Any) -> bool:
        return (
            history.length == known
            and end.startswith(history.tail)
            and history.step < self.step
            and text[: len(history.head) // _WIDE].tobytes() == history.head
        )

    def _find(self, known: int, before: bytes, text: Any) -> History[T] | None:
        if self._moving is None:
            self._moving = {}
            for history in self._live.values():
                self._moving.setdefault((history.length, history.tail), []).append(history)
        key = (known, before)
        for history in (*self._moving.get(key, ()), *self._filed.get(key, ())):
            if self._is(history, known, before, text):
                return history
        return None

    def _create(self, known: int, before: bytes, text: Any) -> History[T] | None:
        if not self._room(known, 1):
            return None
        self.built += 1
        made = History(self._make(text[:known]), known, known, head=text[: min(_HEAD, known)].tobytes(), tail=before)
        self.tokens += known
        return made

    def _stand(self, history: History[T], row: int) -> None:
        """It is in the batch, in this row."""
        if not history.live:
            self._forget(history)
            self._live[id(history)] = history
            history.live = True
        elif self._rows.get(history.row) is history:
            del self._rows[history.row]
        history.row = row
        self._rows[row] = history

    def _leave(self, history: History[T]) -> None:
        """It has left the batch, and can be found by its end if it comes back."""
        self._forget(history)
        self._idle[id(history)] = history
        self._filed.setdefault((history.length, history.tail), []).append(history)
        if self._left is not None:
            self._left(history)

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
        self._forget(history)
        self.tokens -= history.length

    def _forget(self, history: History[T]) -> None:
        """Take it out of all books."""
        history.live = False
        self._live.pop(id(history), None)
        if self._rows.get(history.row) is history:
            del self._rows[history.row]
        if self._idle.pop(id(history), None) is not None:
            alike = self._filed[history.length, history.tail]
            alike.remove(history)
            if not alike:
                del self._filed[history.length, history.tail]
