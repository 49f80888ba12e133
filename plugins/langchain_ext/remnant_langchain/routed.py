"""A retriever that asks first whether to retrieve at all: a small memory is read whole."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
    adispatch_custom_event,
    dispatch_custom_event,
)
from langchain_core.documents import Document
from pydantic import Field, PrivateAttr, field_validator

from remnant.memory.memory import Memory
from remnant.memory.record import Hit, Record
from remnant.routing import (
    Answer,
    Assembled,
    Budgets,
    ContextRouter,
    Conversation,
    Index,
    Mode,
    Model,
    Request,
    RouteDecision,
    Settings,
    Unit,
    assemble,
    blocks,
    count_tokens,
    wanted,
)
from remnant_langchain._quotes import Recent, aextracted, extracted
from remnant_langchain.models import as_llm
from remnant_langchain.retriever import OverMemory, record_document

_BLOCKS = (Mode.BLOCK_EXTRACT, Mode.RETRIEVE_THEN_BLOCK)


@dataclass(frozen=True)
class _History:
    """The records that may be shown, oldest first."""

    stamp: tuple[int, int]
    records: Mapping[str, Record]
    units: tuple[Unit, ...]

    def now(self, moment: float) -> tuple[Unit, ...]:
        return tuple(unit for unit in self.units if self.records[unit.id].valid_at(moment))


@dataclass(frozen=True)
class _Asked:
    """One question: what may be shown, oldest first, the decision, and the hits it needs."""

    records: Mapping[str, Record]
    units: tuple[Unit, ...]
    decision: RouteDecision
    count: int


class RoutedRetriever(OverMemory):
    """Returns what a reader should see of a memory: all of it, blocks of it, or what is recalled.

    A small memory comes whole, oldest first. A larger one comes as its newest conversations with what is
    recalled of the rest, or as what is recalled, the best at both ends; or, for questions that need many
    places, in blocks: one document for each block of conversations to be read by itself or, with an
    `extractor`, the quotes that it found in them. Every document's metadata tell why under `route`, and the
    decision is dispatched as the custom event `remnant_route` of the run's trace.

    Args:
        memory, scope, strategy, embedder, kinds, place: see `OverMemory`.
        model: the reader's window, prices and tier, or its window in tokens.
        router: decides.
        extractor: the chat model that reads blocks; None gives the blocks themselves.
        budgets: limits of one question.
        allow_full: see `Request`.
        conversation: names the conversation that a record belongs to; left out, its first source, else its
            place, else the day it was made.

    `retriever.invoke("a question", k=3)` retrieves as many passages in the modes that retrieve.

    Source: ConvoMem (Pakhomov et al. 2025); Jin et al. 2025 for the order; see `ContextRouter`.
    """

    model: Model
    router: Any = Field(default_factory=ContextRouter)
    extractor: Any = Field(default=None, exclude=True)
    budgets: Any = Field(default_factory=Budgets)
    allow_full: bool | None = None
    conversation: Any = Field(default=None, exclude=True)

    _history: _History | None = PrivateAttr(default=None)
    _last: RouteDecision | None = PrivateAttr(default=None)
    _cache: Recent = PrivateAttr(default_factory=Recent)

    def __init__(self, memory: Memory | str | Path, **fields: Any) -> None:
        """See the class."""
        super().__init__(memory, **fields)

    @field_validator("model", mode="before")
    @classmethod
    def _window(cls, value: Any) -> Any:
        return Model(value) if isinstance(value, int) else value

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """A model's prices are no JSON that LangChain reads back."""
        return False

    def decide(self, query: str, k: int | None = None) -> RouteDecision:
        """The decision alone, for example to show its cost before asking."""
        memory = self.open()
        return self._decided(query, self._read(memory).now(memory.context.clock()), memory, k)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        memory = self.open()
        asked = self._begun(memory, query, k)
        dispatch_custom_event("remnant_route", _route(asked.decision), config={"callbacks": run_manager.get_child()})
        hits = memory.recall(query, asked.count, kinds=self.kinds, place=self.place) if asked.count else []
        found = self._assembled(asked, hits)
        model, quotes = as_llm(self.extractor), None
        if model is not None and found.conversations:
            quotes = extracted(model, query, found.conversations, self._settings(), self._cache)
        return self._documents(asked, found, hits, quotes)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        memory = await self.aopen()
        asked = await asyncio.to_thread(self._begun, memory, query, k)
        config: Any = {"callbacks": run_manager.get_child()}
        await adispatch_custom_event("remnant_route", _route(asked.decision), config=config)
        hits = await memory.arecall(query, asked.count, kinds=self.kinds, place=self.place) if asked.count else []
        found = await asyncio.to_thread(self._assembled, asked, hits)
        model, quotes = as_llm(self.extractor), None
        if model is not None and found.conversations:
            quotes = await aextracted(model, query, found.conversations, self._settings(), self._cache)
        return self._documents(asked, found, hits, quotes)

    def _settings(self) -> Settings:
        return self.router.settings.for_model(self.model.name)

    def _begun(self, memory: Memory, query: str, k: int | None) -> _Asked:
        """What was asked of what, decided, and how many hits that needs."""
        history = self._read(memory)
        units = history.now(memory.context.clock())
        decision = self._decided(query, units, memory, k)
        return _Asked(history.records, units, decision, wanted(decision, units, self._settings()))

    def _assembled(self, asked: _Asked, hits: Sequence[Hit]) -> Assembled:
        ranked = [(hit.id, hit.score) for hit in hits]
        return assemble(asked.decision, asked.units, lambda n: ranked[:n], self._settings())

    def _read(self, memory: Memory) -> _History:
        """Every record that may be shown; read again only when memory has changed."""
        stamp = memory.store.stamp(memory.scope)
        held = self._history
        if held is None or held.stamp != stamp:
            records = [r for r in _every(memory) if r.lies_in(self.place) and (not self.kinds or r.kind in self.kinds)]
            records.sort(key=lambda record: (record.created_at, record.id))
            name = self.conversation or _conversation
            units = tuple(Unit(r.id, name(r), r.content, _date(r)) for r in records)
            held = self._history = _History(stamp, {record.id: record for record in records}, units)
        return held

    def _decided(self, query: str, units: Sequence[Unit], memory: Memory, k: int | None) -> RouteDecision:
        request = Request(
            query,
            len({unit.conversation for unit in units}),
            sum(count_tokens(unit.text) for unit in units),
            self.model,
            budgets=self.budgets,
            index=Index(True, len(units)),
            allow_full=self.allow_full,
            store_version=str(memory.store.latest(memory.scope)),
        )
        decision = self._last = self.router.decide(request, self._last)
        return decision if k is None or not decision.k else replace(decision, k=k)

    def _documents(self, asked: _Asked, found: Assembled, hits: Sequence[Hit], quotes: Answer | None) -> list[Document]:
        route = _route(asked.decision)
        if quotes is not None:
            return [_quote(item, {**route, "unread": list(quotes.missing)}) for item in quotes.items]
        if found.mode in _BLOCKS:
            return [_block(part, route) for part in blocks(found.conversations, self._settings().block)]
        scores = {hit.id: hit.score for hit in hits}
        chosen = [record_document(asked.records[unit.id], scores.get(unit.id)) for unit in found.units]
        return [doc.model_copy(update={"metadata": {**doc.metadata, "route": route}}) for doc in chosen]


def _every(memory: Memory) -> list[Record]:
    records: list[Record] = []
    while page := memory.records(after=records[-1].id if records else ""):
        records += page
    return records


def _conversation(record: Record) -> str:
    source = next((source for source in record.provenance if source.source_type == "episode"), None)
    return (source and source.source_id) or record.place or _date(record)[:10]


def _date(record: Record) -> str:
    moment = record.created_at if record.valid_from is None else record.valid_from
    return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="seconds")


def _route(decision: RouteDecision) -> dict[str, Any]:
    return {
        "mode": decision.mode.value,
        "why": decision.why,
        "query_type": decision.query_type,
        "k": decision.k,
        "order": decision.order.value,
        "usd": decision.cost.usd,
        "latency_s": decision.cost.latency_s,
        "tokens": decision.cost.tokens_in,
    }


def _block(part: Sequence[Conversation], route: Mapping[str, Any]) -> Document:
    text = "\n".join(f"[{conversation.id} {conversation.date}]\n{conversation.text}" for conversation in part)
    return Document(text, metadata={"conversations": [c.id for c in part], "route": dict(route)})


def _quote(item: Any, route: Mapping[str, Any]) -> Document:
    told = {"conversation": item.conversation_id, "date": item.date, "note": item.note, "speaker": item.speaker}
    return Document(item.quote, metadata={**told, "route": dict(route)})
