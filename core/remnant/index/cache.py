"""A cache that is bounded by bytes: what was used longest ago goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Something that knows how much memory it takes."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory, about."""
        ...


K = TypeVar("K")
V = TypeVar("V", bound=Sized)


class ByteCache(Generic[K, V]):
    """Things by key, within a number of bytes; the one used last stays even if it alone is larger.

    Args:
        most: bytes of all together.
    """

    def __init__(self, most: int) -> None:
        """See the class."""
        self.most = most
        self._held: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held, each as large as it was when it was last put."""
        return self._bytes

    def get(self, key: K) -> V | None:
        """What is held under a key, as used last; None if nothing is."""
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key][0]

    def put(self, key: K, value: V) -> V:
        """Hold a thing, and let go of what no longer fits; put again what has grown."""
        self.pop(key)
        self._held[key] = value, value.nbytes
        self._bytes += value.nbytes
        while self._bytes > self.most and len(self._held) > 1:
            self.pop(next(iter(self._held)))
        return value

    def pop(self, key: K) -> None:
        """Let go of a thing, if it is here."""
        if key in self._held:
            self._bytes -= self._held.pop(key)[1]

    def clear(self) -> None:
        """Let go of everything."""
        self._held.clear()
        self._bytes = 0

    def __len__(self) -> int:
        """How many things there are."""
        return len(self._held)

    def __iter__(self) -> Iterator[tuple[K, V]]:
        """Key and thing, the one used longest ago first."""
        return iter([(key, value) for key, (value, _) in self._held.items()])
