"""Exact search by meaning: every vector of a scope in one matrix, scanned whole.

Needs numpy, which comes with the extra `vectors`; nothing here is imported before vectors are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remnant.errors import ShapeError
from remnant.lazy import needs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Found:
    """What a scan saw.

    Args:
        best: id -> cosine of the closest ids, closest first.
        of: id -> cosine of the ids that were asked for.
        low: smallest cosine of all.
        high: greatest cosine of all.
    """

    best: Mapping[str, float]
    of: Mapping[str, float]
    low: float
    high: float


def pack(vectors: Iterable[Sequence[float]]) -> list[bytes]:
    """Vectors as unit vectors, float32, little endian, one blob each; a zero vector stays zero.

    Raises:
        ShapeError: a vector is empty, not flat, of another size than the first, or not finite.
        MissingExtra: numpy is not installed.
    """
    np = _numpy()
    packed: list[bytes] = []
    for vector in vectors:
        row = np.asarray(vector, dtype="<f4")
        if row.ndim != 1 or not row.size or not np.isfinite(row).all():
            raise ShapeError(f"a vector of shape {row.shape}", accepted="one row of finite numbers")
        if packed and row.nbytes != len(packed[0]):
            raise ShapeError(f"vectors of {len(packed[0]) // 4} and {row.size} numbers", accepted="one size")
        length = float(np.linalg.norm(row))
        packed.append((row / length if length else row).astype("<f4").tobytes())
    return packed


class DenseScan:
    """The vectors of one scope and one embedder, in memory; changed row by row.

    Args:
        dim: numbers per vector.
    """

    def __init__(self, dim: int) -> None:
        """See the class."""
        self.dim = dim
        self._ids: list[str] = []
        self._row: dict[str, int] = {}
        self._matrix: NDArray[np.float32] = _numpy().zeros((0, dim), dtype="<f4")

    def __len__(self) -> int:
        """How many vectors there are."""
        return len(self._ids)

    def load(self, rows: Sequence[tuple[str, bytes]]) -> None:
        """Hold these vectors and no others.

        Raises:
            ShapeError: a blob has another size.
        """
        np = _numpy()
        for _, blob in rows:
            self._check(blob)
        self._ids = [id for id, _ in rows]
        self._row = {id: row for row, id in enumerate(self._ids)}
        blob = b"".join(blob for _, blob in rows)
        self._matrix = np.frombuffer(bytearray(blob), dtype="<f4").reshape(-1, self.dim)

    def put(self, id: str, blob: bytes) -> None:
        """Hold one vector more, or another one for an id that is here."""
        np = _numpy()
        self._check(blob)
        row = self._row.setdefault(id, len(self._ids))
        if row == len(self._ids):
            self._ids.append(id)
        if row >= len(self._matrix):
            grown = np.zeros((max(64, 2 * row), self.dim), dtype="<f4")
            grown[: len(self._matrix)] = self._matrix
            self._matrix = grown
        self._matrix[row] = np.frombuffer(blob, dtype="<f4")

    def drop(self, id: str) -> None:
        """Hold a vector no more; the last row takes its place."""
        row = self._row.pop(id, None)
        if row is None:
            return
        last = self._ids.pop()
        if row < len(self._ids):
            self._ids[row], self._row[last] = last, row
            self._matrix[row] = self._matrix[len(self._ids)]

    def search(self, query: bytes, k: int, also: Iterable[str] = ()) -> Found:
        """The cosines of the query with everything: the best `k`, those asked for, and the range.

        Raises:
            ShapeError: the query has another size.
        """
        np = _numpy()
        self._check(query)
        count = len(self._ids)
        if not count:
            return Found({}, {}, 0.0, 0.0)
        scores: Any = self._matrix[:count] @ np.frombuffer(query, dtype="<f4")
        top: Any = np.argpartition(-scores, k - 1)[:k] if k < count else np.arange(count)
        rows: list[int] = top.tolist()
        best = [(self._ids[row], float(scores[row])) for row in rows]
        best.sort(key=lambda pair: (-pair[1], pair[0]))
        of = {id: float(scores[self._row[id]]) for id in also if id in self._row}
        return Found(dict(best), of, float(scores.min()), float(scores.max()))

    def _check(self, blob: bytes) -> None:
        if len(blob) != 4 * self.dim:
            raise ShapeError(f"a vector of {len(blob) / 4:g} numbers", accepted=f"{self.dim} numbers")


def _numpy() -> Any:
    with needs("vectors", wanted_by="remnant.index.dense"):
        import numpy
    return numpy
