"""The indexes over vectors of the scopes used last: made from the store, kept in step with it, bounded in bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from remnant.errors import ShapeError
from remnant.index import sidecar
from remnant.index.cache import ByteCache
from remnant.index.choose import AUTO, chosen, make_index
from remnant.index.found import Found, KeptIndex, VectorIndex
from remnant.memory.errors import StoreError, other_size

if TYPE_CHECKING:
    from remnant.memory.context import Context

MOST_BYTES = 1 << 30
"""Memory for the indexes of all scopes, 1 GiB: about 600,000 vectors of 384 numbers. The longest unused go first."""


@runtime_checkable
class Beside(Protocol):
    """A store that lies in files and lets a cache lie beside them, which it deletes when the scope forgets."""

    def sidecar(self, scope: str, model: str) -> Path | None:
        """Where the index of a scope and embedder may be kept; None if nothing may be written."""
        ...


@runtime_checkable
class Searches(Protocol):
    """A store that searches by itself where a scope is too large to be held in every process."""

    def nearest(self, scope: str, model: str, query: bytes, k: int, also: Iterable[str] = ()) -> Found | None:
        """See `VectorIndex.search`; None where its vectors are to be read and compared here.

        Raises:
            EmbedderError: the stored vectors have another size than the query's.
        """
        ...


class _Held:
    """One scope's index and the state of the store that it shows."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.index: VectorIndex | None = None
        self.stamp: tuple[int, int] = (-1, -1)

    @property
    def nbytes(self) -> int:
        return self.index.nbytes if self.index is not None else 0


class Scans:
    """Search by meaning in the scopes of one store, by any number of threads.

    Args:
        most_bytes: see `MOST_BYTES`.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        """None yet."""
        self._lock = threading.Lock()
        self._held: ByteCache[tuple[str, str], _Held] = ByteCache(most_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, about."""
        return self._held.nbytes

    def search(self, c: Context, vector: bytes, k: int, also: Sequence[str]) -> Found | None:
        """See `VectorIndex.search`; None if the scope has no vectors.

        Raises:
            EmbedderError: the stored vectors have another size than the query's.
        """
        assert c.embedder is not None
        key = (c.scope, c.embedder.model_id)
        if c.index == AUTO and isinstance(c.store, Searches):
            there = c.store.nearest(*key, vector, k, also)
            if there is not None:
                return there
        with self._lock:
            held = self._held.get(key) or self._held.put(key, _Held())
        with held.lock:
            index = self._current(c, held, len(vector) // 4)
            found = index.search(vector, k, also) if len(index) else None
        with self._lock:
            if self._held.get(key) is held:
                self._held.put(key, held)  # as large as it is now
        return found

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            indexes = [held.index for _, held in self._held]
            self._held.clear()
        for index in indexes:
            if isinstance(index, KeptIndex):
                index.close()

    def _current(self, c: Context, held: _Held, dim: int) -> VectorIndex:
        """The index, brought to the present state of the store."""
        assert c.embedder is not None
        model, stamp = c.embedder.model_id, c.store.stamp(c.scope)
        try:
            if held.index is None or held.stamp[0] != stamp[0]:
                held.index = self._made(c, held, dim, stamp)
            elif held.stamp != stamp:
                self._catch_up(c, held.index, held.stamp[1])
                if chosen(c.index, len(held.index), held.index.name) != held.index.name:
                    held.index = self._made(c, held, dim, stamp)
            if held.index.dim != dim:
                raise ShapeError(f"vectors of {dim} numbers", accepted=f"{held.index.dim}, as stored")
        except ShapeError as error:
            held.index = None
            raise other_size(model, dim, c.store.dimension(c.scope, model)) from error
        held.stamp = stamp
        return held.index

    def _made(self, c: Context, held: _Held, dim: int, stamp: tuple[int, int]) -> VectorIndex:
        assert c.embedder is not None
        kept = self._kept(c, held, dim, stamp)
        if kept is not None:
            return kept
        rows = [(id, blob) for id, blob in c.store.vectors(c.scope, c.embedder.model_id) if blob is not None]
        index = make_index(chosen(c.index, len(rows)), dim)
        self._watch(c, held, index)
        index.load(rows)
        c.emit("index_chosen", index=index.name, vectors=len(index), kept=False)
        return index

    def _kept(self, c: Context, held: _Held, dim: int, stamp: tuple[int, int]) -> VectorIndex | None:
        """The index that lies beside the store, if it fits; changes since it was written are taken in."""
        path = _place(c)
        found = sidecar.read(path) if path is not None else None
        if found is None:
            return None
        made_of, ids, blobs = found
        name, change = str(made_of.get("index")), int(made_of.get("change", -1))
        count = int(made_of.get("count", -1))
        if c.index not in (AUTO, name):
            return None
        if made_of != _made_of(c, name, dim, (stamp[0], change), count) or not 0 <= change <= stamp[1]:
            return None
        index = make_index(name, dim)
        if not isinstance(index, KeptIndex) or not index.restore((ids, blobs)) or len(index) != count:
            return None
        self._catch_up(c, index, change)
        if chosen(c.index, len(index), name) != name:
            return None
        self._watch(c, held, index)
        c.emit("index_chosen", index=name, vectors=len(index), kept=True)
        return index

    def _catch_up(self, c: Context, index: VectorIndex, since: int) -> None:
        assert c.embedder is not None
        for id, blob in c.store.vectors(c.scope, c.embedder.model_id, since):
            index.drop(id) if blob is None else index.put(id, blob)

    def _watch(self, c: Context, held: _Held, index: VectorIndex) -> None:
        """Write the index beside the store when it is built; nobody waits for it, and it may fail."""
        path = _place(c)
        if path is None or not isinstance(index, KeptIndex):
            return

        def keep() -> None:
            try:
                with held.lock:
                    if held.index is not index:
                        return
                    stamp, count, parts = held.stamp, len(index), index.parts()
                sidecar.write(path, _made_of(c, index.name, index.dim, stamp, count), *parts)
                if c.store.stamp(c.scope)[0] != stamp[0]:  # something was erased meanwhile: it must not stay here
                    path.unlink(missing_ok=True)
            except (OSError, StoreError) as error:
                path.unlink(missing_ok=True)
                c.emit("index_not_kept", error=str(error))

        index.on_built = keep


def _place(c: Context) -> Path | None:
    assert c.embedder is not None
    return c.store.sidecar(c.scope, c.embedder.model_id) if isinstance(c.store, Beside) else None


def _made_of(c: Context, index: str, dim: int, stamp: tuple[int, int], count: int) -> dict[str, object]:
    """What must be the same for a file to be the index of what is in the store."""
    assert c.embedder is not None
    model, (epoch, change) = c.embedder.model_id, stamp
    return {"index": index, "model": model, "dim": dim, "epoch": epoch, "change": change, "count": count}
