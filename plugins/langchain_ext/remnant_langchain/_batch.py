"""A batch of a store's operations as steps of a memory: first every read, then all puts in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchOp,
    validate_op_namespace,
)

from remnant.errors import ConfigError
from remnant.memory.change import apply_steps
from remnant.memory.context import Context, Steps
from remnant.memory.errors import ConflictError, StoreError
from remnant.memory.guard import admitted
from remnant.memory.ops import Add, Forget, Update
from remnant.memory.ops import Op as Change
from remnant.memory.recall import candidates
from remnant.memory.record import Record, Trust
from remnant.memory.secrets import redact, redact_data
from remnant_langchain import _items
from remnant_langchain._filters import check_filter, matches, meets_all

ATTEMPTS = 5
"""How often puts are planned anew when others wrote the same items meanwhile."""

PART = 256
"""Records that are read at once."""

_WRITTEN = ("content", "payload", "trust", "provenance", "valid_to", "status")
Found = tuple[Record, "float | None"]


def checked(ops: Iterable[Op]) -> list[Op]:
    """The operations, if a store can carry them out; nothing has been done when one cannot.

    Raises:
        InvalidNamespaceError: a label is empty, no text, or holds a dot; or a put names no namespace.
        ConfigError: an unknown operation, or a filter that no store can answer.
    """
    found = list(ops)
    for op in found:
        if not isinstance(op, (GetOp, SearchOp, PutOp, ListNamespacesOp)):
            raise ConfigError(
                f"Unknown operation type: {type(op)}", accepted="GetOp, SearchOp, PutOp, ListNamespacesOp"
            )
        validate_op_namespace(op)
        if isinstance(op, PutOp) and not op.namespace:
            raise InvalidNamespaceError("Namespace cannot be empty.")
        if isinstance(op, (SearchOp, ListNamespacesOp)) and not 0 <= op.limit + op.offset < 1 << 31 > op.limit >= 0:
            raise ConfigError(f"limit {op.limit}, offset {op.offset}", accepted="0 or more")
        if isinstance(op, SearchOp):
            check_filter(op.filter)
    return found


def batch_steps(
    c: Context, ops: Sequence[Op], fields: Sequence[str], trust: Trust
) -> Steps[tuple[list[Result], list[str]]]:
    """The results in order, and the ids of the items that a put deleted."""
    now = c.clock()
    seen: dict[str, Record] = {}
    got = _got(c, [op for op in ops if isinstance(op, GetOp)], now)
    results: list[Result] = []
    for op in ops:
        found: Sequence[Found] = ()
        if isinstance(op, GetOp):
            record = got.get(_items.item_id(op.namespace, op.key))
            found = [(record, None)] if record else []
            results.append(_items.to_item(record) if record else None)
        elif isinstance(op, SearchOp):
            found = yield from _search(c, op, now)
            results.append([_items.to_search_item(record, score) for record, score in found])
        else:
            results.append(_namespaces(c, op) if isinstance(op, ListNamespacesOp) else None)
        if isinstance(op, (GetOp, SearchOp)) and op.refresh_ttl:
            seen |= {record.id: record for record, _ in found}
    puts = {_items.item_id(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
    yield from _refresh(c, [record for id, record in seen.items() if id not in puts], now)
    wanted = {id: _record(op, fields, now, trust) for id, op in puts.items()}
    return results, (yield from _put(c, wanted, now))


def _got(c: Context, ops: Sequence[GetOp], now: float) -> dict[str, Record]:
    if not ops:
        return {}
    found = c.store.get(c.scope, [_items.item_id(op.namespace, op.key) for op in ops])
    return {
        id: record
        for id, record in found.items()
        if record.status in _items.LIVE and record.valid_at(now) and _items.is_item(record)
    }


def _search(c: Context, op: SearchOp, now: float) -> Steps[list[Found]]:
    """Those that the query finds, best first, then the others, the one changed last first."""
    place, stop = _items.place(op.namespace_prefix), op.offset + op.limit
    found: list[Found] = []

    def fits(record: Record) -> bool:
        return _items.is_item(record) and matches(_items.value_of(record), op.filter)

    if op.query and stop > 0:
        hits = yield from candidates(c, op.query, stop, None, (_items.KIND,), place, fits)
        found = [(hit.record, hit.score) for hit in hits]
        c.emit("recalled", ids=[hit.id for hit in hits])
    if len(found) < stop:
        known = {record.id for record, _ in found}
        every = _newest(c, place, None if op.filter else stop + len(known))
        others = (r for r in every if r.id not in known and r.valid_at(now) and fits(r))
        found += [(record, None) for record in islice(others, stop - len(found))]
    return found[op.offset : stop]


def _newest(c: Context, place: str, some: int | None) -> Iterator[Record]:
    """Items of a place, the one changed last first; `some` of them are looked up first, as that mostly does."""
    ids = c.store.placed(c.scope, place, statuses=_items.SHOWN, limit=-1 if some is None else some)
    yield from _records(c, ids)
    if some is not None and len(ids) == some:
        yield from _records(c, c.store.placed(c.scope, place, statuses=_items.SHOWN, offset=some))


def _records(c: Context, ids: Sequence[str]) -> Iterator[Record]:
    for start in range(0, len(ids), PART):
        yield from c.store.get(c.scope, ids[start : start + PART]).values()


def _namespaces(c: Context, op: ListNamespacesOp) -> list[tuple[str, ...]]:
    every = map(_items.namespace_of, c.store.places(c.scope, _items.ROOT, statuses=_items.SHOWN))
    found = {namespace[: op.max_depth] for namespace in every if meets_all(namespace, op.match_conditions)}
    return sorted(found)[op.offset : op.offset + op.limit]


def _record(op: PutOp, fields: Sequence[str], now: float, trust: Trust) -> Record | None:
    if op.value is None:
        return None
    paths = fields if op.index is None else False if op.index is False else tuple(op.index)
    return _items.to_record(op, paths, now=now, trust=trust)


def _put(c: Context, wanted: Mapping[str, Record | None], now: float) -> Steps[list[str]]:
    """Write in one transaction; the ids of what is deleted."""
    stored = c.store.get(c.scope, list(wanted)) if wanted else {}
    for attempt in range(ATTEMPTS):
        changes = [change for id, new in wanted.items() if (change := _change(c, id, new, stored.get(id), now))]
        try:
            if changes:
                yield from apply_steps(c, changes, "put", "store")
            break
        except (ConflictError, ConfigError):
            before, stored = stored, c.store.get(c.scope, list(wanted))
            if stored == before or attempt == ATTEMPTS - 1:
                raise
    if c.secrets == "redact":
        altered = [id for id, new in wanted.items() if new is not None and redact_data(new.payload) != new.payload]
        if altered:
            c.emit("redacted", ids=altered)
    return [id for id, new in wanted.items() if new is None and id in stored]


def _change(c: Context, id: str, new: Record | None, old: Record | None, now: float) -> Change | None:
    """What brings the stored record to the wanted one."""
    gone = old is None or old.status == "deleted"
    if new is None:
        return None if gone else Forget(id)
    if old is None or gone:
        return Add(_judged(new))
    if old.valid_at(now):
        new = replace(new, provenance=(replace(new.provenance[0], time=_items.created(old)),))
    content = new.content if c.secrets == "keep" else redact(new.content)
    same = (content, new.trust) == (old.content, old.trust)  # what was judged once keeps its judgement
    new = _judged(new) if not same else replace(new, status=old.status) if old.status == "quarantined" else new
    return Update(id, {name: getattr(new, name) for name in _WRITTEN})


def _judged(new: Record) -> Record:
    """Quarantined if it reads like a command, whether search may find it or not."""
    return new if admitted(replace(new, status="active")).status == "active" else replace(new, status="quarantined")


def _refresh(c: Context, records: Sequence[Record], now: float) -> Steps[None]:
    """Begin the time of items anew once a hundredth of it is over; no read fails for it."""
    changes: list[Change] = []
    for record in records:
        seconds = 60 * (record.payload.get("minutes") or 0)
        if record.valid_to is not None and now + seconds - record.valid_to >= seconds / 100:
            changes.append(Update(record.id, {"valid_to": now + seconds}))
    if changes:
        try:
            yield from apply_steps(c, changes, "read", "store")
        except (StoreError, ConflictError, ConfigError) as error:
            c.emit("refresh_failed", error=str(error))
