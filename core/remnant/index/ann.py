"""Approximate search for many vectors: a graph of neighbours by usearch, with what is not in it yet beside it.

Building the graph takes minutes for 10^5 vectors, so it is built in a thread, and until it is ready every vector is
compared. What is put afterwards is compared as well, until there is enough of it to be added in a thread again. So
each answer knows every vector; only the ones in the graph are found by its approximation.

Source: Malkov and Yashunin 2016, arXiv 1603.09320 (HNSW), as usearch implements it. Needs the extra `ann`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from remnant.index.dense import DenseScan, closest
from remnant.index.found import Found, Parts
from remnant.index.rows import numpy
from remnant.lazy import needs

MOST_BESIDE = 4096
"""Vectors beside the graph from which they are added to it."""

BREADTH = 128
"""Candidates that a search of the graph keeps, at least; four times as many as are asked for."""

_BLOCK = 64
_PAUSE = 0.0005  # s between blocks: whoever waits to search comes first
_PRECISION = "f16"
_THREADS = max(1, (os.cpu_count() or 1) // 2)


class AnnIndex:
    """Vectors in a graph and beside it; see `KeptIndex` and the module. Safe to share between threads.

    Args:
        dim: numbers per vector.
        most_beside: see `MOST_BESIDE`.
        on_built: called in the thread that has added to the graph, when nothing is left to add.

    Raises:
        MissingExtra: usearch is not installed.
    """

    name = "ann"

    def __init__(
        self, dim: int, *, most_beside: int = MOST_BESIDE, on_built: Callable[[], object] | None = None
    ) -> None:
        """See the class."""
        self.on_built = on_built
        self.dim, self._most = dim, most_beside
        self._lock = threading.RLock()
        self._building: threading.Thread | None = None
        self._latest: threading.Thread | None = None
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._graph: Any = _graph(self.dim)
        self._ids: list[str] = []
        self._key: dict[str, int] = {}
        self._beside = DenseScan(self.dim)
        self._put: set[str] = set()
        self._round = object()

    def __len__(self) -> int:
        """How many vectors there are."""
        return len(self._key) + len(self._beside)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, about."""
        return int(self._graph.memory_usage) + 250 * len(self._ids) + self._beside.nbytes

    @property
    def ready(self) -> bool:
        """Whether no thread is at work on the graph."""
        return self._building is None

    def load(self, rows: Sequence[tuple[str, bytes]]) -> None:
        """See `VectorIndex`; the graph is built in a thread."""
        with self._lock:
            self._begin()
            self._beside.load(rows)
            self._grow()

    def put(self, id: str, blob: bytes) -> None:
        """See `VectorIndex`."""
        with self._lock:
            self._beside.put(id, blob)
            self._put.add(id)
            self._unlink(id)
            self._grow()

    def drop(self, id: str) -> None:
        """See `VectorIndex`."""
        with self._lock:
            self._beside.drop(id)
            self._put.add(id)
            self._unlink(id)

    def search(self, query: bytes, k: int, also: Iterable[str] = ()) -> Found:
        """See `VectorIndex`; the smallest cosine is that of the vector found nearest to the query's opposite."""
        asked = list(also)
        with self._lock:
            near = self._beside.search(query, k, asked)
            if not self._key:
                return near
            vector = numpy().frombuffer(query, dtype="<f4")
            held = self._nearest(vector, k)
            of = {**near.of, **self._cosines(vector, [id for id in asked if id in self._key])}
            known = [*held.values(), *of.values(), *(-cosine for cosine in self._nearest(-vector, 1).values())]
        if near.seen:
            known += [near.low, near.high]
        best = closest({**held, **near.best})[:k]
        return Found(dict(best), of, min(known, default=0.0), max(known, default=0.0), near.seen + len(held))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the thread that works on the graph, and for what it calls once it is built (seconds)."""
        thread = self._latest
        if thread is threading.current_thread():
            return True
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def close(self) -> None:
        """Stop the thread; what is beside the graph stays there."""
        self._closed = True
        self.wait(10.0)

    def parts(self) -> Parts:
        """See `KeptIndex`: the ids of the keys and of what is beside the graph, and both as bytes."""
        with self._lock:
            ids = [id if self._key.get(id) == key else "" for key, id in enumerate(self._ids)]
            beside = self._beside.rows()
            return ([ids, [id for id, _ in beside]], [self._graph.save(), b"".join(blob for _, blob in beside)])

    def restore(self, parts: Parts) -> bool:
        """See `KeptIndex`."""
        try:
            (ids, beside), (blob, packed) = parts
            graph = _graph(self.dim)
            graph.load(blob)
            size = 4 * self.dim
            rows = [(id, packed[i * size : (i + 1) * size]) for i, id in enumerate(beside)]
            keys = {id: key for key, id in enumerate(ids) if id}
            fits = (graph.ndim, len(graph), len(packed)) == (self.dim, len(keys), len(rows) * size)
        except (ValueError, RuntimeError):
            return False
        with self._lock:
            if fits:
                self._begin()
                self._graph, self._ids, self._key = graph, list(ids), keys
                self._beside.load([(id, bytes(row)) for id, row in rows])
        return fits

    def _nearest(self, vector: Any, k: int) -> dict[str, float]:
        self._graph.expansion_search = max(BREADTH, 4 * k)
        matches = self._graph.search(vector, k)
        keys: list[int] = matches.keys.tolist()
        distances: list[float] = matches.distances.tolist()
        found = {self._ids[key]: (key, distance) for key, distance in zip(keys, distances, strict=True)}
        return {id: 1.0 - distance for id, (key, distance) in found.items() if self._key.get(id) == key}

    def _cosines(self, vector: Any, ids: Sequence[str]) -> dict[str, float]:
        if not ids:
            return {}
        keys = [self._key[id] for id in ids]
        held = numpy().stack(self._graph.get(keys, "f32"))
        return dict(zip(ids, (held @ vector).tolist(), strict=True))

    def _unlink(self, id: str) -> None:
        """Take a vector out of the graph; its key is not used again."""
        key = self._key.pop(id, None)
        if key is not None:
            self._graph.remove(key)

    def _grow(self) -> None:
        """Add what is beside the graph in a thread, if it is enough and none is at work."""
        if self._building is None and not self._closed and len(self._beside) > self._most:
            self._put.clear()
            rows = self._beside.rows()
            self._building = self._latest = threading.Thread(
                target=self._build, args=(rows, self._round), name="remnant-ann", daemon=True
            )
            self._building.start()

    def _build(self, rows: Sequence[tuple[str, bytes]], round: object) -> None:
        """Add vectors block by block, under the lock: the graph may move while it grows."""
        np = numpy()
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            vectors = np.frombuffer(b"".join(blob for _, blob in part), dtype="<f4").reshape(-1, self.dim)
            with self._lock:
                if self._closed or self._round is not round:
                    break
                first = len(self._ids)
                self._ids += [id for id, _ in part]
                self._graph.add(np.arange(first, first + len(part)), vectors, threads=_THREADS)
                for key, (id, _) in enumerate(part, first):
                    if id in self._put:
                        self._graph.remove(key)
                    else:
                        self._key[id] = key
                        self._beside.drop(id)
            time.sleep(_PAUSE)
        with self._lock:
            self._building = None
            built = self._round is round and not self._closed
            self._grow()
        if built and self.ready and self.on_built is not None:
            self.on_built()


def _graph(dim: int) -> Any:
    with needs("ann", wanted_by="an approximate index"):
        from usearch.index import Index
    return Index(ndim=dim, metric="ip", dtype=_PRECISION)
