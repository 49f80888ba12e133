"""Vectors of one size in one matrix, with the id of each row: what every index over vectors stands on.

Needs numpy, which comes with the extra `vectors`; nothing here is imported before vectors are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from remnant.errors import ShapeError
from remnant.lazy import needs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def pack(vectors: Iterable[Sequence[float]]) -> list[bytes]:
    """Vectors as unit vectors, float32, little endian, one blob each; a zero vector stays zero.

    Raises:
        ShapeError: a vector is empty, not flat, of another size than the first, or not finite.
        MissingExtra: numpy is not installed.
    """
    np = numpy()
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


class Rows:
    """Vectors by id, packed without gaps: the last row takes the place of one that goes.

    Args:
        dim: numbers per vector.
    """

    def __init__(self, dim: int) -> None:
        """None yet."""
        self.dim = dim
        self.ids: list[str] = []
        self.row: dict[str, int] = {}
        self._held: NDArray[np.float32] = numpy().zeros((0, dim), dtype="<f4")

    def __len__(self) -> int:
        """How many vectors there are."""
        return len(self.ids)

    @property
    def matrix(self) -> NDArray[np.float32]:
        """`[N, dim]` float32, a view."""
        return self._held[: len(self.ids)]

    @property
    def nbytes(self) -> int:
        """Bytes in memory, about: vectors, and 150 for each id and its row."""
        return self._held.nbytes + 150 * len(self.ids)

    def load(self, rows: Sequence[tuple[str, bytes]]) -> None:
        """Hold these vectors and no others.

        Raises:
            ShapeError: a blob has another size.
        """
        for _, blob in rows:
            self.check(blob)
        self.ids = [id for id, _ in rows]
        self.row = {id: row for row, id in enumerate(self.ids)}
        blob = b"".join(blob for _, blob in rows)
        # A copy of numpy's own: it asks the system for large pages, which a scan goes through a fifth faster.
        self._held = numpy().frombuffer(blob, dtype="<f4").reshape(-1, self.dim).copy()

    def put(self, id: str, blob: bytes) -> int:
        """Hold one vector more, or another one for an id that is here; its row."""
        np = numpy()
        self.check(blob)
        row = self.row.setdefault(id, len(self.ids))
        if row == len(self.ids):
            self.ids.append(id)
        if row >= len(self._held):
            grown = np.zeros((max(64, 2 * row), self.dim), dtype="<f4")
            grown[: len(self._held)] = self._held
            self._held = grown
        self._held[row] = np.frombuffer(blob, dtype="<f4")
        return row

    def drop(self, id: str) -> int | None:
        """Hold a vector no more; the row that is free, or now holds what was in the last one."""
        row = self.row.pop(id, None)
        if row is None:
            return None
        last = self.ids.pop()
        if row < len(self.ids):
            self.ids[row], self.row[last] = last, row
            self._held[row] = self._held[len(self.ids)]
        return row

    def check(self, blob: bytes) -> None:
        """Refuse a vector of another size.

        Raises:
            ShapeError: it has one.
        """
        if len(blob) != 4 * self.dim:
            raise ShapeError(f"a vector of {len(blob) / 4:g} numbers", accepted=f"{self.dim} numbers")


def numpy() -> Any:
    """The module, or the error that names the extra.

    Raises:
        MissingExtra: it is not installed.
    """
    with needs("vectors", wanted_by="search by meaning"):
        import numpy
    return numpy
