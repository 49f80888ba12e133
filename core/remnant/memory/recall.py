"""Recall: candidates by words and by meaning, the strategy's choice, then the limits."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from remnant.index.hybrid import Scored, mix
from remnant.index.words import rank, terms
from remnant.memory.context import Ask, Context, Steps
from remnant.memory.errors import EmbedderError, StoreError
from remnant.memory.llm import Metered
from remnant.memory.record import Hit, Record
from remnant.memory.strategy import Query, within

Where = Callable[[Record], bool]
AsOf = int | float | datetime | None
"""A change's number (an integer), a time (seconds since 1970, or a datetime), or None for now."""


@dataclass(frozen=True)
class _Limits:
    """What a recall may show besides being within the scope."""

    moment: float
    kinds: Collection[str] | None
    place: str
    where: Where | None = None

    def show(self, record: Record) -> bool:
        if record.status != "active" or (self.kinds is not None and record.kind not in self.kinds):
            return False
        shown = record.valid_at(self.moment) and record.lies_in(self.place)
        return shown and (self.where is None or self.where(record))


def recall_steps(
    c: Context,
    text: str,
    k: int,
    budget_tokens: int | None,
    as_of: AsOf = None,
    kinds: Collection[str] | None = None,
    episode: str | None = None,
    place: str = "",
) -> Steps[list[Hit]]:
    """See `Memory.recall`."""
    try:
        hits = yield from candidates(c, text, max(50, 5 * k), as_of, kinds, place)
        model = Metered(c.llm, c.costs, "select") if c.llm else None
        more = partial(_more, c, {hit.id for hit in hits}, as_of, _Limits(_moment(c, as_of), kinds, place))
        query = Query(text, k, budget_tokens, c.count_tokens, model, more)
        chosen = within(query, _selected(c, query, hits))
    except StoreError as error:
        if c.strict:
            raise
        c.emit("recall_failed", error=str(error))
        return []
    if episode is not None and chosen:
        _note(c, [hit.id for hit in chosen], episode)
    c.emit("recalled", ids=[hit.id for hit in chosen])
    return chosen


def _selected(c: Context, query: Query, hits: Sequence[Hit]) -> Sequence[Hit]:
    """The strategy's choice; if its model fails, the hits as they were ranked."""
    try:
        return c.strategy.select(query, hits)
    except StoreError:
        raise
    except Exception as error:  # whatever a model's client raises: reads fail open
        if c.strict:
            raise
        c.emit("select_failed", error=f"{type(error).__name__}: {error}"[:500])
        return hits


def _more(c: Context, found: Collection[str], as_of: AsOf, limits: _Limits, count: int) -> Sequence[Hit]:
    """See `Query.more`."""
    number = _number(c, as_of)
    hits: list[Hit] = []
    for record in c.store.snapshot(c.scope, number) if number is not None else _everything(c):
        if len(hits) >= count:
            break
        if record.id not in found and limits.show(record):
            hits.append(Hit(record.id, record.content, 0.0, record, {}))
    return hits


def _everything(c: Context) -> Iterator[Record]:
    after = ""
    while records := c.store.page(c.scope, after=after, limit=256):
        yield from records
        after = records[-1].id


def candidates(
    c: Context,
    text: str,
    count: int,
    as_of: AsOf = None,
    kinds: Collection[str] | None = None,
    place: str = "",
    where: Where | None = None,
) -> Steps[list[Hit]]:
    """The best records for a text, before any choice of the strategy's; with `where`, of those it is true for."""
    number, limits = _number(c, as_of), _Limits(_moment(c, as_of), kinds, place, where)
    if number is not None and number < c.store.latest(c.scope):
        return _historic(c, text, count, number, limits)
    found = dict(c.store.words(c.scope, terms(text), max(200, 4 * count), place))
    wanted = count
    while True:
        ranked = yield from _ranked(c, text, found, wanted, place)
        hits = _hits(c, ranked, count, limits)
        if len(hits) >= count or len(ranked) < wanted or wanted > 64 * count:
            break
        wanted *= 4
        found = dict(c.store.words(c.scope, terms(text), 4 * wanted, place))
    if number is not None and number < c.store.latest(c.scope):  # somebody wrote while we looked
        return _historic(c, text, count, number, limits)
    return hits


def _ranked(c: Context, text: str, words: dict[str, float], count: int, place: str) -> Steps[list[Scored]]:
    if c.embedder is None or not c.weight or not text.strip():
        return mix({}, words, 0.0, 0.0, 0.0)
    try:
        vector = (yield Ask([text], "query"))[0]
    except EmbedderError as error:
        if c.strict:
            raise
        c.emit("embed_failed", error=str(error))
        return mix({}, words, 0.0, 0.0, 0.0)
    found = c.scans.search(c, vector, count, c.store.placed(c.scope, place) if place else list(words))
    if found is None:
        return mix({}, words, 0.0, 0.0, 0.0)
    if place:  # the whole place is ranked, and by itself: what is nearest elsewhere says nothing about it
        cosines = list(found.of.values()) or [0.0]
        return mix(found.of, words, c.weight, min(cosines), max(cosines))
    return mix({**found.best, **found.of}, words, c.weight, found.low, found.high)


def _hits(c: Context, ranked: Sequence[Scored], count: int, limits: _Limits) -> list[Hit]:
    hits: list[Hit] = []
    for start in range(0, len(ranked), count):
        part = ranked[start : start + count]
        records = c.store.get(c.scope, [item.id for item in part])
        for item in part:
            record = records.get(item.id)
            if record is not None and limits.show(record):
                hits.append(Hit(record.id, record.content, item.score, record, item.parts))
        if len(hits) >= count:
            break
    return hits[:count]


def _historic(c: Context, text: str, count: int, number: int, limits: _Limits) -> list[Hit]:
    """The past is ranked by words only: the index holds the present."""
    records = {r.id: r for r in c.store.snapshot(c.scope, number) if limits.show(r)}
    scores = rank(terms(text), {id: c.strategy.index_text(record).words for id, record in records.items()})
    ranked = mix({}, dict(scores), 0.0, 0.0, 0.0)[:count]
    return [Hit(item.id, records[item.id].content, item.score, records[item.id], item.parts) for item in ranked]


def _number(c: Context, as_of: AsOf) -> int | None:
    if as_of is None or isinstance(as_of, int):
        return as_of
    return c.store.change_at(c.scope, as_of.timestamp() if isinstance(as_of, datetime) else as_of)


def _moment(c: Context, as_of: AsOf) -> float:
    if isinstance(as_of, datetime):
        return as_of.timestamp()
    return as_of if isinstance(as_of, float) else c.clock()


def _note(c: Context, ids: Sequence[str], episode: str) -> None:
    """Counting must not cost the answer."""
    try:
        c.store.shown(c.scope, ids, episode)
    except StoreError as error:
        c.emit("recall_failed", error=str(error))


def plain_hits(c: Context, text: str, k: int) -> Steps[list[Hit]]:
    """Candidates for a strategy that distils; nothing is counted."""
    hits = yield from candidates(replace(c, strict=True), text, k)
    return hits[:k]


def vectors_of(texts: Sequence[str]) -> Steps[list[Sequence[float]]]:
    """Texts as unit vectors, for a strategy that compares what it distils."""
    packed = (yield Ask(texts, "document")) if texts else []
    return [struct.unpack(f"<{len(vector) // 4}f", vector) for vector in packed]
