"""TiM's index: vectors that point the same way share a bucket, and only few buckets are looked at.

Source: Liu et al. 2023, arXiv 2311.08719, section 3.2, after Reformer (Kitaev et al. 2020, arXiv 2001.04451):
bucket `h(x) = argmax([xR; -xR])` with R random, `[dim, buckets / 2]`. Differs: several tables; the buckets next best
are looked at as well (multi-probe), until there are enough candidates; a small set is scanned whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from remnant.errors import ConfigError
from remnant.index.dense import closest, top
from remnant.index.found import Found
from remnant.index.rows import Rows, numpy

TABLES = 4
"""Independent hashings; a neighbour that one of them misses is found in another."""

PER_BUCKET = 64
"""Vectors per bucket when the number of buckets follows from that of vectors; twice as many hash anew."""

SHARE = 0.04
"""Share of all vectors that a search looks at, at least."""

SMALL = 5000
"""Below this many vectors a search looks at all of them."""

_BLOCK = 8192


class Hyperplanes:
    """The hash: random directions from a seed, the same in every process.

    Args:
        dim: numbers per vector.
        buckets: per table, even.
        tables: how many hashes a vector has.
        seed: of the directions.
    """

    def __init__(self, dim: int, buckets: int, tables: int, seed: int) -> None:
        """See the class."""
        self.buckets, self.tables = buckets, tables
        rng = numpy().random.default_rng([seed, dim, buckets, tables])
        self._r = rng.standard_normal((dim, tables * buckets // 2)).astype("<f4")

    def affinity(self, vectors: Any) -> Any:
        """How much vectors `[N, dim]` belong to each bucket: `[xR; -xR]`, `[N, tables, buckets]` float32."""
        np = numpy()
        along = (vectors @ self._r).reshape(len(vectors), self.tables, self.buckets // 2)
        return np.concatenate((along, -along), axis=2)

    def buckets_of(self, vectors: Any) -> Any:
        """The bucket of vectors `[N, dim]` in each table, `[N, tables]` int64."""
        np = numpy()
        parts = [self.affinity(vectors[i : i + _BLOCK]).argmax(axis=2) for i in range(0, len(vectors), _BLOCK)]
        return np.concatenate(parts) if parts else np.zeros((0, self.tables), dtype=np.int64)


class LshIndex:
    """Buckets of vectors by their direction; see `VectorIndex` and the module.

    Args:
        dim: numbers per vector.
        buckets: per table, even, 2 or more; None grows with the vectors, `PER_BUCKET` in each.
        tables: independent hashings.
        seed: of the random directions: the same seed gives the same buckets.
        share: share of all vectors that a search looks at, at least; 0 to 1.
        small: below this many vectors a search looks at all of them.

    Raises:
        ConfigError: a setting is outside its range.
    """

    name = "lsh"

    def __init__(
        self,
        dim: int,
        *,
        buckets: int | None = None,
        tables: int = TABLES,
        seed: int = 0,
        share: float = SHARE,
        small: int = SMALL,
    ) -> None:
        """See the class."""
        if buckets is not None and (buckets < 2 or buckets % 2):
            raise ConfigError(f"{buckets} buckets", accepted="an even number, 2 or more")
        if tables < 1:
            raise ConfigError(f"{tables} tables", accepted="1 or more")
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"share {share}", accepted="0 to 1")
        self.dim, self._tables, self._seed = dim, tables, seed
        self._fixed, self._share, self._small = buckets, share, small
        self._rows = Rows(dim)
        self._rehash()

    def __len__(self) -> int:
        """How many vectors there are."""
        return len(self._rows)

    @property
    def buckets(self) -> int:
        """Buckets per table."""
        return self._planes.buckets

    @property
    def nbytes(self) -> int:
        """Bytes in memory, about: the vectors, and 100 for each row and table."""
        return self._rows.nbytes + 100 * self._tables * len(self._rows) + self._planes.buckets * self._tables * 300

    def load(self, rows: Sequence[tuple[str, bytes]]) -> None:
        """See `VectorIndex`."""
        self._rows.load(rows)
        self._rehash()

    def put(self, id: str, blob: bytes) -> None:
        """See `VectorIndex`; hashes everything anew when the buckets have become too full."""
        self._rows.check(blob)
        if (row := self._rows.row.get(id)) is not None:
            self._leave(row)
        row = self._rows.put(id, blob)
        if self._fixed is None and len(self._rows) > 2 * PER_BUCKET * self.buckets:
            self._rehash()
            return
        codes: list[int] = self._planes.buckets_of(self._rows.matrix[row : row + 1])[0].tolist()
        self._enter(row, codes)

    def drop(self, id: str) -> None:
        """See `VectorIndex`."""
        row = self._rows.row.get(id)
        if row is None:
            return
        last = len(self._rows) - 1
        self._leave(row)
        if row != last:
            self._enter(row, self._leave(last))
        self._rows.drop(id)

    def search(self, query: bytes, k: int, also: Iterable[str] = ()) -> Found:
        """See `VectorIndex`; looks at the buckets nearest to the query, best first, until there are enough."""
        np = numpy()
        self._rows.check(query)
        if not len(self._rows):
            return Found({}, {}, 0.0, 0.0)
        vector = np.frombuffer(query, dtype="<f4")
        places: Any = np.arange(len(self._rows)) if len(self._rows) < self._small else self._candidates(vector, k)
        scores = self._rows.matrix[places] @ vector
        best = {self._rows.ids[int(places[place])]: score for place, score in top(scores, k)}
        rows = [(id, self._rows.row[id]) for id in also if id in self._rows.row]
        cosines: list[float] = (self._rows.matrix[[row for _, row in rows]] @ vector).tolist() if rows else []
        of = {id: cosine for (id, _), cosine in zip(rows, cosines, strict=True)}
        known = [float(scores.min()), float(scores.max()), *cosines]
        return Found(dict(closest(best)), of, min(known), max(known), len(places))

    def bucket(self, vector: bytes, table: int = 0) -> int:
        """The bucket of a vector, stored or not, in one table.

        Example: LshIndex(2).bucket(pack([[1.0, 0.0]])[0]) -> 15
        """
        self._rows.check(vector)
        return int(self._planes.buckets_of(numpy().frombuffer(vector, dtype="<f4")[None])[0, table])

    def members(self, vector: bytes, tables: int = 1) -> list[str]:
        """Ids of the stored vectors that share a bucket with this one in one of the first tables, closest first.

        One table is the paper's group of thoughts; more of them find neighbours beyond its border.
        """
        np = numpy()
        self._rows.check(vector)
        unit = np.frombuffer(vector, dtype="<f4")
        codes: list[int] = self._planes.buckets_of(unit[None])[0].tolist()
        rows = sorted(set[int]().union(*(self._sets[t].get(codes[t], ()) for t in range(min(tables, self._tables)))))
        cosines: list[float] = (self._rows.matrix[rows] @ unit).tolist() if rows else []
        return [id for id, _ in closest({self._rows.ids[row]: c for row, c in zip(rows, cosines, strict=True)})]

    def _candidates(self, vector: Any, k: int) -> Any:
        """Rows to compare: the buckets in order of how much less the query belongs to them than to its own.

        The bucket opposite to the query's own is looked at as well: what is in it has the smallest cosines.
        """
        np = numpy()
        affinity = self._planes.affinity(vector[None])[0]
        order: list[int] = np.argsort(affinity - affinity.max(axis=1, keepdims=True), axis=None)[::-1].tolist()
        wanted = min(len(self._rows), max(4 * k, int(self._share * len(self._rows))))
        rows = set(self._sets[order[-1] // self.buckets].get(order[-1] % self.buckets, ()))
        for place in order:
            if len(rows) >= wanted:
                break
            rows |= self._sets[place // self.buckets].get(place % self.buckets, _NONE)
        return np.fromiter(rows, dtype=np.int64, count=len(rows))

    def _rehash(self) -> None:
        wanted = self._fixed or max(16, len(self._rows) // PER_BUCKET // 2 * 2)
        self._planes = Hyperplanes(self.dim, wanted, self._tables, self._seed)
        self._codes: list[list[int]] = self._planes.buckets_of(self._rows.matrix).tolist()
        self._sets: list[dict[int, set[int]]] = [{} for _ in range(self._tables)]
        for row, codes in enumerate(self._codes):
            for held, code in zip(self._sets, codes, strict=True):
                held.setdefault(code, set()).add(row)

    def _enter(self, row: int, codes: list[int]) -> None:
        if row == len(self._codes):
            self._codes.append(codes)
        self._codes[row] = codes
        for held, code in zip(self._sets, codes, strict=True):
            held.setdefault(code, set()).add(row)

    def _leave(self, row: int) -> list[int]:
        """Take a row out of its buckets; which they were. The last row's place goes with it."""
        codes = self._codes[row]
        for held, code in zip(self._sets, codes, strict=True):
            held[code].discard(row)
            if not held[code]:
                del held[code]
        if row == len(self._codes) - 1:
            self._codes.pop()
        return codes


_NONE: frozenset[int] = frozenset()
