"""What an index over vectors is, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Found:
    """What a search saw.

    Args:
        best: id -> cosine of the closest ids, closest first.
        of: id -> cosine of the ids that were asked for.
        low: smallest cosine of all; an index that does not look at all gives the smallest it knows of.
        high: greatest cosine of all, likewise.
        seen: vectors that were compared with the query.
    """

    best: Mapping[str, float]
    of: Mapping[str, float]
    low: float
    high: float
    seen: int = 0


Parts = tuple[Sequence[Sequence[str]], Sequence[bytes | bytearray]]
"""An index as lists of ids and as bytes; see `KeptIndex`."""


class VectorIndex(Protocol):
    """The vectors of one scope and one embedder, in memory; a copy, made anew from the store at any time.

    Vectors are unit vectors, float32, little endian, as `pack` makes them. Not safe to share between
    threads without a lock.
    """

    name: str
    """What it is called in `Memory.open(..., index=name)`."""

    dim: int
    """Numbers per vector."""

    def __len__(self) -> int:
        """How many vectors there are."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes in memory, about."""
        ...

    def load(self, rows: Sequence[tuple[str, bytes]]) -> None:
        """Hold these vectors and no others.

        Raises:
            ShapeError: a blob has another size.
        """
        ...

    def put(self, id: str, blob: bytes) -> None:
        """Hold one vector more, or another one for an id that is here."""
        ...

    def drop(self, id: str) -> None:
        """Hold a vector no more; an id that is not here changes nothing."""
        ...

    def search(self, query: bytes, k: int, also: Iterable[str] = ()) -> Found:
        """The best `k`, the cosines of the ids asked for, and the range.

        Raises:
            ShapeError: the query has another size.
        """
        ...


@runtime_checkable
class KeptIndex(VectorIndex, Protocol):
    """An index that takes so long to build that it is built in a thread, and kept in a file beside the store."""

    on_built: Callable[[], object] | None
    """Called in that thread when it is done."""

    def parts(self) -> Parts:
        """All that it holds, for `sidecar.write`."""
        ...

    def restore(self, parts: Parts) -> bool:
        """Hold what `parts` gave and nothing else; False, and nothing changed, if it does not fit together."""
        ...

    def close(self) -> None:
        """Stop the thread."""
        ...
