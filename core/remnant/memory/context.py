"""What every operation of one memory shares, and how it asks for vectors in sync and in async code.

An operation that needs vectors is a generator that yields `Ask` and is sent unit vectors; `drive`
runs it with the embedder's sync half, `adrive` with the async one while the store's work is done in
a thread. So there is one implementation of each operation and the event loop is never blocked.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from remnant.errors import ShapeError
from remnant.index.dense import DenseScan
from remnant.index.rows import pack
from remnant.memory.errors import EmbedderError
from remnant.memory.events import Events
from remnant.memory.llm import ChatModel, Costs, Embedder
from remnant.memory.record import estimate_tokens, new_id
from remnant.memory.store import RecordStore
from remnant.memory.strategy import Strategy
from remnant.memory.widen import NARROW, Widen

T = TypeVar("T")

MOST_SCANS = 16
"""Scopes whose vectors are kept in memory; the one used longest ago goes first."""


@dataclass(frozen=True)
class Ask:
    """Texts that an operation wants embedded."""

    texts: Sequence[str]
    kind: Literal["query", "document"]


Steps = Generator[Ask, "list[bytes]", T]


class Scans:
    """The dense indexes of the scopes used last, kept in step with the store."""

    def __init__(self) -> None:
        """None yet."""
        self._lock = threading.Lock()
        self._scans: OrderedDict[tuple[str, str], tuple[tuple[int, int], DenseScan]] = OrderedDict()

    def search(self, c: Context, vector: bytes, k: int, also: Sequence[str]) -> Any:
        """See `DenseScan.search`; None if the scope has no vectors.

        Raises:
            EmbedderError: the stored vectors have another size than the query's.
        """
        with self._lock:
            scan = self._current(c, len(vector) // 4)
            return scan.search(vector, k, also) if len(scan) else None

    def _current(self, c: Context, dim: int) -> DenseScan:
        assert c.embedder is not None
        key, stamp = (c.scope, c.embedder.model_id), c.store.stamp(c.scope)
        held = self._scans.pop(key, None)
        scan = held[1] if held else DenseScan(dim)
        try:
            if held is None or held[0][0] != stamp[0]:
                rows = c.store.vectors(c.scope, key[1])
                scan.load([(id, blob) for id, blob in rows if blob is not None])
            elif held[0] != stamp:
                for id, blob in c.store.vectors(c.scope, key[1], held[0][1]):
                    scan.drop(id) if blob is None else scan.put(id, blob)
            if scan.dim != dim:
                raise ShapeError(f"vectors of {dim} numbers", accepted=f"{scan.dim}, as stored")
        except ShapeError as error:
            raise other_size(key[1], dim, c.store.dimension(c.scope, key[1])) from error
        self._scans[key] = (stamp, scan)
        while len(self._scans) > MOST_SCANS:
            self._scans.popitem(last=False)
        return scan


@dataclass(frozen=True)
class Context:
    """One memory: a store seen through one scope, and what works on it.

    Args:
        store: holds everything.
        scope: bound into every call of the store.
        strategy: see `Strategy`.
        llm: the memory's chat model, or None.
        embedder: None searches by words only.
        weight: share of the meaning in the ranking, 0 to 1.
        secrets: what becomes of credentials: `redact`, `refuse` or `keep`.
        clock: seconds since 1970.
        count_tokens: for budgets.
        strict: reads raise faults of the store instead of finding nothing.
        widen: how far recall follows links, unless it is told.
    """

    store: RecordStore
    scope: str
    strategy: Strategy
    llm: ChatModel | None = None
    embedder: Embedder | None = None
    weight: float = 0.5
    secrets: Literal["redact", "refuse", "keep"] = "redact"
    clock: Callable[[], float] = time.time
    count_tokens: Callable[[str], int] = estimate_tokens
    strict: bool = False
    widen: Widen = NARROW
    events: Events = field(default_factory=Events)
    costs: Costs = field(default_factory=Costs)
    scans: Scans = field(default_factory=Scans)

    def new_id(self) -> str:
        """A new id by this memory's clock."""
        return new_id(self.clock())

    def emit(self, name: str, **data: Any) -> None:
        """Tell what happened."""
        self.events.emit(name, self.scope, **data)


def other_size(model: str, given: int, stored: int | None) -> EmbedderError:
    """The error for vectors that do not fit the stored ones."""
    return EmbedderError(
        f"embedder {model!r} gives {given} numbers",
        accepted=f"{stored}, the size of the vectors stored under that name",
        do="give the new embedder another model_id; records are embedded anew beside the old vectors",
    )


def drive(steps: Steps[T], embedder: Embedder | None) -> T:
    """Run an operation to its end with the embedder's sync half."""
    done, value = _advance(steps, None)
    while not done:
        try:
            given: list[bytes] | Exception = _packed(value, _some(embedder).embed(value.texts, kind=value.kind))
        except Exception as error:
            given = error
        done, value = _advance(steps, given)
    return value


async def adrive(steps: Steps[T], embedder: Embedder | None) -> T:
    """Run an operation to its end with the embedder's async half; the rest runs in a thread."""
    done, value = await asyncio.to_thread(_advance, steps, None)
    while not done:
        try:
            vectors = await _some(embedder).aembed(value.texts, kind=value.kind)
            given: list[bytes] | Exception = _packed(value, vectors)
        except Exception as error:
            given = error
        done, value = await asyncio.to_thread(_advance, steps, given)
    return value


def _advance(steps: Steps[Any], given: list[bytes] | Exception | None) -> tuple[bool, Any]:
    """One step: (False, what is asked) or (True, the result). `StopIteration` cannot cross a future."""
    try:
        if given is None:
            return False, next(steps)
        if isinstance(given, Exception):
            fault = EmbedderError(f"the embedder failed: {type(given).__name__}: {given}")
            fault.__cause__ = given
            return False, steps.throw(fault)
        return False, steps.send(given)
    except StopIteration as done:
        return True, done.value


def _packed(ask: Ask, vectors: Sequence[Sequence[float]]) -> list[bytes]:
    if len(vectors) != len(ask.texts):
        raise ShapeError(f"{len(vectors)} vectors for {len(ask.texts)} texts", accepted="one each")
    return pack(vectors)


def _some(embedder: Embedder | None) -> Embedder:
    assert embedder is not None, "only an operation with an embedder asks for vectors"
    return embedder
