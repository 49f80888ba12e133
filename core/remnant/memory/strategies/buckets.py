"""TiM's hash keys as words of the word index: thoughts that point the same way share words that nobody writes.

So a bucket is looked up, kept, taken back and forgotten like any other word of a record, in every store, and the
thoughts that share most keys with a new one come first.

Source: Liu et al. 2023, arXiv 2311.08719, section 3.2; the hash itself is `remnant.index.lsh.Hyperplanes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TABLES = 4
"""Independent hashings of a thought."""

BUCKETS = 128
"""Buckets of each."""

PROBES = 2
"""Buckets of each hashing that a lookup asks for: a near neighbour often fell into the second best."""


def keys(vectors: Sequence[Sequence[float]]) -> list[tuple[str, ...]]:
    """The keys of vectors, one per table.

    Example: keys([[1.0, 0.0]])[0][0] -> "lsh2t0b17", or another bucket of the first table
    """
    return [_words(places[:, -1:], len(vector)) for places, vector in zip(_places(vectors), vectors, strict=True)]


def probes(vector: Sequence[float]) -> tuple[str, ...]:
    """The keys under which thoughts near a vector lie."""
    return _words(_places([vector])[0][:, -PROBES:], len(vector))


def _places(vectors: Sequence[Sequence[float]]) -> Any:
    """Buckets in ascending order of affinity, `[N, tables, buckets]`."""
    if not vectors:
        return []
    from remnant.index.lsh import Hyperplanes
    from remnant.index.rows import numpy

    planes = Hyperplanes(len(vectors[0]), BUCKETS, TABLES, seed=0)
    return planes.affinity(numpy().asarray(vectors, dtype="<f4")).argsort(axis=2, kind="stable")


def _words(places: Any, dim: int) -> tuple[str, ...]:
    """Keys name the vectors' size: those of another embedder mean something else."""
    return tuple(f"lsh{dim}t{table}b{int(place)}" for table, row in enumerate(places) for place in row)
