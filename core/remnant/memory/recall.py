"""Recall: candidates by words and by meaning, the strategy's choice, then the limits."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from remnant.memory.context import Ask, Context, Steps
from remnant.memory.decompose import parts_by_model, parts_by_rules
from remnant.memory.errors import EmbedderError, StoreError
from remnant.memory.llm import Metered
from remnant.memory.ranking import Limits, Past, Present, Where
from remnant.memory.record import Hit, Record
from remnant.memory.strategy import Query, within
from remnant.memory.widen import PLAIN, Widen, widened

AsOf = int | float | datetime | None
"""A change's number (an integer), a time (seconds since 1970, or a datetime), or None for now."""


def recall_steps(
    c: Context,
    text: str,
    k: int,
    budget_tokens: int | None,
    as_of: AsOf = None,
    kinds: Collection[str] | None = None,
    episode: str | None = None,
    place: str = "",
    widen: Widen | None = None,
) -> Steps[list[Hit]]:
    """See `Memory.recall`."""
    try:
        hits = yield from candidates(c, text, max(50, 5 * k), as_of, kinds, place, widen=widen or c.widen)
        model = Metered(c.llm, c.costs, "select") if c.llm else None
        more = partial(_more, c, {hit.id for hit in hits}, as_of, Limits(_moment(c, as_of), kinds, place))
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


def _more(c: Context, found: Collection[str], as_of: AsOf, limits: Limits, count: int) -> Sequence[Hit]:
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
    widen: Widen = PLAIN,
) -> Steps[list[Hit]]:
    """The best records for a text, before any choice of the strategy's; with `where`, of those it is true for."""
    number, limits = _number(c, as_of), Limits(_moment(c, as_of), kinds, place, where)
    texts = [text, *(_parts(c, text) if widen.parts else ())]
    if number is not None and number < c.store.latest(c.scope):
        return _past(c, texts, count, number, limits, widen)
    vectors = yield from _vectors(c, texts)
    rankings = [Present(c, part, limits, vector) for part, vector in zip(texts, vectors, strict=True)]
    hits = widened(rankings[0], text, count, widen, rankings[1:])
    if number is not None and number < c.store.latest(c.scope):  # somebody wrote while we looked
        return _past(c, texts, count, number, limits, widen)
    return hits


def _past(c: Context, texts: Sequence[str], count: int, number: int, limits: Limits, widen: Widen) -> list[Hit]:
    records = c.store.snapshot(c.scope, number)
    rankings = [Past(c, text, limits, records) for text in texts]
    return widened(rankings[0], texts[0], count, widen, rankings[1:])


def _parts(c: Context, text: str) -> list[str]:
    """The parts of a question, by rules where there is no model or it fails."""
    if c.llm is None:
        return parts_by_rules(text)
    try:
        return parts_by_model(text, Metered(c.llm, c.costs, "decompose"))
    except Exception as error:  # whatever a model's client raises: reads fail open
        if c.strict:
            raise
        c.emit("decompose_failed", error=f"{type(error).__name__}: {error}"[:500])
        return parts_by_rules(text)


def _vectors(c: Context, texts: Sequence[str]) -> Steps[Sequence[bytes | None]]:
    """Vectors of the question and its parts; none without an embedder, or when it fails."""
    nothing: list[None] = [None] * len(texts)
    if c.embedder is None or not c.weight or not texts[0].strip():
        return nothing
    try:
        return (yield Ask(texts, "query"))
    except EmbedderError as error:
        if c.strict:
            raise
        c.emit("embed_failed", error=str(error))
        return nothing


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
