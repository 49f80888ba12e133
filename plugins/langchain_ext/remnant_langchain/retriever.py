"""A memory as a retriever of LangChain: what it recalls, as documents with their source."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import Field, PrivateAttr, field_validator

from remnant.memory.memory import Memory
from remnant.memory.record import DEFAULT_SCOPE, Hit, Record
from remnant_langchain.models import as_embedder


class OverMemory(BaseRetriever):
    """What retrievers over a memory share; nothing is opened before the first question.

    Args:
        memory: an open memory, or what `Memory.open` takes: a path or an address.
        scope: whose memory; for a path `default` where nothing is said, as for the middleware.
        strategy: what chooses among what is found; for a path.
        embedder: searches by meaning too: embeddings of LangChain or of ours; for a path.
        kinds: only records of these kinds.
        place: only records at this place and below it.
    """

    memory: Any
    scope: str | dict[str, str] | None = None
    strategy: str = "facts"
    embedder: Any = Field(default=None, exclude=True)
    kinds: tuple[str, ...] | None = None
    place: str = ""

    _opened: Memory | None = PrivateAttr(default=None)
    _owned: bool = PrivateAttr(default=False)
    _lock: Any = PrivateAttr(default_factory=Lock)

    def __init__(self, memory: Memory | str | Path, **fields: Any) -> None:
        """See the class."""
        super().__init__(**{"memory": memory, **fields})

    @field_validator("memory")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if not isinstance(value, (Memory, str, Path)):
            raise ValueError(f"memory {value!r}; accepted: a Memory, a path or an address")
        return str(value) if isinstance(value, Path) else value

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether it can be written down: over a path, yes."""
        return True

    def open(self) -> Memory:
        """The memory that is asked; opened on the first call."""
        with self._lock:
            if self._opened is None:
                self._opened = self._found()
            return self._opened

    async def aopen(self) -> Memory:
        """See `open`; in a thread, where it has to be opened."""
        return self._opened or await asyncio.to_thread(self.open)

    def close(self) -> None:
        """Close the memory if it was opened here; the next question opens it again."""
        with self._lock:
            if self._owned and self._opened is not None:
                self._opened.close()
            self._opened = None

    def _found(self) -> Memory:
        if isinstance(self.memory, Memory):
            return self.memory if self.scope is None else self.memory.scoped(self.scope)
        self._owned = True
        scope: str | Mapping[str, str] = DEFAULT_SCOPE if self.scope is None else self.scope
        # The file may be an agent's: what it left open or queued is for the agent to settle, with its model.
        settings: dict[str, Any] = {"write": "manual", "recover": False, "embedder": as_embedder(self.embedder)}
        return Memory.open(self.memory, self.strategy, scope=scope, **settings)


class MemoryRetriever(OverMemory):
    """Recalls from a memory.

    A document's text is the record's, its id the record's id; its metadata tell `score`, `kind`, `trust`,
    `status`, where it came from (`provenance`), and when it holds (`valid_from`, `valid_to`). They are data:
    text that a tool or the web said may stand among them, marked so by `trust`.

    Nothing is opened before the first question, so a retriever over a path can be made, copied and written
    down anywhere.

    Args:
        memory, scope, strategy, embedder, kinds, place: see `OverMemory`.
        k: documents at most.
        budget_tokens: tokens of all documents together at most.
        as_of: memory as it was after a change (an integer) or at a time.

    `k`, `budget_tokens`, `kinds`, `place` and `as_of` may be given with each call as well, as in
    `retriever.invoke("a question", k=3)`.

    Raises:
        ConfigError: on the first question, what `Memory.open` raises.
    """

    k: int = Field(default=4, ge=1)
    budget_tokens: int | None = Field(default=None, ge=1)
    as_of: int | float | datetime | None = None

    def __init__(self, memory: Memory | str | Path, **fields: Any) -> None:
        """See the class."""
        super().__init__(memory, **fields)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        return list(map(as_document, self.open().recall(query, **self._asked(options))))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        memory = await self.aopen()
        return list(map(as_document, await memory.arecall(query, **self._asked(options))))

    def _asked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What is asked of the memory: the fields, unless the call says otherwise."""
        names = ("k", "budget_tokens", "kinds", "place", "as_of")
        for name in options:
            if name not in names:
                raise TypeError(f"invoke() got an unexpected option {name!r}; accepted: {', '.join(names)}")
        return {name: options.get(name, getattr(self, name)) for name in names}


def as_document(hit: Hit) -> Document:
    """What was recalled, as a document."""
    return record_document(hit.record, hit.score)


def record_document(record: Record, score: float | None) -> Document:
    """A record as a document; without a score it was not searched for."""
    return Document(
        id=record.id,
        page_content=record.content,
        metadata={
            "score": score,
            "kind": record.kind,
            "trigger": record.trigger,
            "trust": record.trust,
            "status": record.status,
            "place": record.place,
            "provenance": [dict(vars(source)) for source in record.provenance],
            "parents": list(record.parents),
            "valid_from": record.valid_from,
            "valid_to": record.valid_to,
            "created_at": record.created_at,
            "version": record.version,
        },
    )
