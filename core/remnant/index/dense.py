"""Exact search by meaning: every vector of a scope in one matrix, scanned whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from remnant.index.found import Found
from remnant.index.rows import Rows, numpy


class DenseScan:
    """The vectors of one scope and one embedder, in memory; see `VectorIndex`.

    Args:
        dim: numbers per vector.
    """

    name = "exact"

    def __init__(self, dim: int) -> None:
        """See the class."""
        self.dim = dim
        self._rows = Rows(dim)

    def __len__(self) -> int:
        """How many vectors there are."""
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, about."""
        return self._rows.nbytes

    def load(self, rows: Sequence[tuple[str, bytes]]) -> None:
        """See `VectorIndex`."""
        self._rows.load(rows)

    def put(self, id: str, blob: bytes) -> None:
        """See `VectorIndex`."""
        self._rows.put(id, blob)

    def drop(self, id: str) -> None:
        """See `VectorIndex`."""
        self._rows.drop(id)

    def rows(self) -> list[tuple[str, bytes]]:
        """Every id with its vector."""
        return [(id, row.tobytes()) for id, row in zip(self._rows.ids, self._rows.matrix, strict=True)]

    def search(self, query: bytes, k: int, also: Iterable[str] = ()) -> Found:
        """See `VectorIndex`; looks at every vector."""
        self._rows.check(query)
        if not len(self._rows):
            return Found({}, {}, 0.0, 0.0)
        scores = self._rows.matrix @ numpy().frombuffer(query, dtype="<f4")
        rows = self._rows.row
        asked = [id for id in also if id in rows]
        of = dict(zip(asked, scores[[rows[id] for id in asked]].tolist(), strict=True)) if asked else {}
        best = {self._rows.ids[row]: score for row, score in top(scores, k)}
        return Found(dict(closest(best)), of, float(scores.min()), float(scores.max()), len(self._rows))


def top(scores: Any, k: int) -> list[tuple[int, float]]:
    """(place, score) of the `k` greatest of `[N]` scores, in no order."""
    np = numpy()
    k = max(0, min(k, len(scores)))
    places = np.argpartition(scores, len(scores) - k)[len(scores) - k :] if k < len(scores) else np.arange(k)
    return list(zip(places.tolist(), scores[places].tolist(), strict=True))


def closest(best: dict[str, float]) -> list[tuple[str, float]]:
    """Pairs of id and cosine, closest first, ties by id."""
    return sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))
