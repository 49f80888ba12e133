"""What every operation of one memory shares, and how it asks for vectors in sync and in async code.

An operation that needs vectors is a generator that yields `Ask` and is sent unit vectors; `drive`
runs it with the embedder's sync half, `adrive` with the async one while the store's work is done in
a thread. So there is one implementation of each operation and the event loop is never blocked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from remnant.errors import ShapeError
from remnant.index.choose import AUTO
from remnant.index.rows import pack
from remnant.memory.errors import EmbedderError
from remnant.memory.events import Events
from remnant.memory.llm import ChatModel, Costs, Embedder
from remnant.memory.record import estimate_tokens, new_id
from remnant.memory.scans import Scans
from remnant.memory.store import RecordStore
from remnant.memory.strategy import Strategy
from remnant.memory.widen import NARROW, Widen

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """Texts that an operation wants embedded."""

    texts: Sequence[str]
    kind: Literal["query", "document"]


Steps = Generator[Ask, "list[bytes]", T]


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
    index: str = AUTO
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
