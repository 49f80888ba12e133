"""LangGraph's items as records of memory: where they lie, what finds them, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal

from langgraph.store.base import Item, PutOp, SearchItem, get_text_at_path

from remnant.errors import ConfigError
from remnant.memory.record import Provenance, Record, Trust, digest, labels_of, place_of

KIND = ROOT = "store"
"""Kind of the records that a store writes, and the place below which they lie."""

LIVE = ("active", "archived", "quarantined")
SHOWN = ("active", "archived")
"""What can be got by its key, and what is listed or searched too: quarantined items wait for a person."""

Namespace = tuple[str, ...]
Fields = Sequence[str] | Literal[False]


def place(namespace: Sequence[str]) -> str:
    """Where the items of a namespace lie inside the scope."""
    return place_of((ROOT, *namespace))


def namespace_of(where: str) -> Namespace:
    """The namespace that a place stands for."""
    return labels_of(where)[1:]


def item_id(namespace: Sequence[str], key: str) -> str:
    """The id of the record that holds an item; the same in every store."""
    return f"item-{digest(json.dumps([*namespace, key]))}"


def to_record(op: PutOp, fields: Fields, *, now: float, trust: Trust) -> Record:
    """The record that a put writes.

    Args:
        op: the put; its value is not None.
        fields: paths of the texts that find the item and that other doors show; False hides it from search.
        now: seconds since 1970; taken for the time it was first put.
        trust: whose words these are.

    Raises:
        ConfigError: the value is no mapping, or JSON cannot hold it.
    """
    value = _as_json(op)
    texts = [text for path in fields or () for text in _texts(value, path) if text.strip()]
    return Record(
        "\n".join(texts) or json.dumps(value, ensure_ascii=False, sort_keys=True),
        kind=KIND,
        payload={"value": value, "updated": now, "minutes": op.ttl},
        trust=trust,
        provenance=(Provenance(KIND, source_id=op.key, author="MemoryStore", time=now),),
        valid_to=None if op.ttl is None else now + 60 * op.ttl,
        status="active" if texts else "archived",
        place=place(op.namespace),
        id=item_id(op.namespace, op.key),
    )


def is_item(record: Record | None) -> bool:
    """Whether a record is an item that a store wrote."""
    return record is not None and record.kind == KIND and record.lies_in(ROOT) and _source(record) is not None


def to_item(record: Record) -> Item:
    """A record as the item it holds."""
    return Item(**_fields(record))


def to_search_item(record: Record, score: float | None) -> SearchItem:
    """A record as a search finds it; without a score it is there, but nothing of the query found it."""
    return SearchItem(**_fields(record), score=score)


def value_of(record: Record) -> dict[str, Any]:
    """The value of an item."""
    return record.payload.get("value") or {}


def created(record: Record) -> float:
    """When an item was first put, seconds since 1970."""
    source = _source(record)
    return source.time if source else record.created_at


def _fields(record: Record) -> dict[str, Any]:
    source = _source(record)
    return {
        "namespace": namespace_of(record.place),
        "key": source.source_id if source else record.id,
        "value": value_of(record),
        "created_at": _date(created(record)),
        "updated_at": _date(record.payload.get("updated", record.observed_at)),
    }


def _source(record: Record) -> Provenance | None:
    return next((source for source in record.provenance if source.source_type == KIND), None)


def _as_json(op: PutOp) -> dict[str, Any]:
    """The value as a reader will get it: tuples become lists, keys become texts."""
    try:
        value = json.loads(json.dumps(dict(op.value or {})))
    except (TypeError, ValueError, RecursionError) as error:
        accepted = "a mapping of texts to JSON: texts, numbers, booleans, None, lists and mappings"
        raise ConfigError(f"the value of {op.key!r} in {op.namespace!r}: {error}", accepted=accepted) from error
    return value


def _texts(value: Mapping[str, Any], path: str) -> list[str]:
    """The texts at a path; the whole of a value that is one text is that text."""
    if path == "$" and len(value) == 1 and isinstance(only := next(iter(value.values())), str):
        return [only]
    return get_text_at_path(value, path)


def _date(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
