"""Operations on memory as data: what a strategy proposes and `Memory.apply` carries out.

`planned` is pure: it turns operations and the records they touch into the records afterwards.
Nothing is destroyed by an operation; `Forget` only marks, and every change can be undone. Erasing
for good is `Memory.forget`, which is no operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from remnant.errors import ConfigError
from remnant.memory.record import KEPT, Record, changed


@dataclass(frozen=True)
class Add:
    """Remember something new; a record with an id keeps it, others get one. A deleted record's id is free again."""

    record: Record


@dataclass(frozen=True)
class Update:
    """Replace some fields of a record, for example `Update(id, {"content": "..."})`."""

    id: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Merge:
    """Put one record in place of several: those are archived and become its parents."""

    ids: tuple[str, ...]
    into: Record


@dataclass(frozen=True)
class Forget:
    """Mark a record as deleted; it is no longer recalled, and `undo` brings it back."""

    id: str


Op = Add | Update | Merge | Forget


def touched(ops: Iterable[Op]) -> set[str]:
    """Ids of the stored records that these operations read or may clash with."""
    ids: set[str] = set()
    for op in ops:
        if isinstance(op, Add):
            ids |= {op.record.id} - {""}
        elif isinstance(op, Merge):
            ids |= {*op.ids, op.into.id} - {""}
        else:
            ids.add(op.id)
    return ids


def planned(ops: Sequence[Op], current: Mapping[str, Record], new_id: Callable[[], str]) -> dict[str, Record]:
    """The records that the operations leave, by id, in the order they are first written.

    Args:
        ops: carried out one after another; a later one sees what an earlier one did.
        current: the stored records that they touch, deleted ones included.
        new_id: makes an id.

    Returns:
        New states only; `version` and the other fields of the store are left to the store.

    Raises:
        ConfigError: an id is not known, is already taken, or a merge has fewer than two sources.
    """
    after: dict[str, Record] = {}

    def existing(id: str) -> Record:
        found = after.get(id) or current.get(id)
        if found is None or found.status == "deleted":
            raise ConfigError(f"no record {id!r}", accepted="the id of a record in this scope")
        return found

    def added(record: Record) -> Record:
        id = record.id or new_id()
        if id in after or (id in current and current[id].status != "deleted"):
            raise ConfigError(f"record {id!r} exists already", do="update it, or leave the id out")
        after[id] = replace(record, id=id, **_cleared(record))
        return after[id]

    for op in ops:
        if isinstance(op, Add):
            added(op.record)
        elif isinstance(op, Update):
            after[op.id] = changed(existing(op.id), op.changes)
        elif isinstance(op, Forget):
            after[op.id] = replace(existing(op.id), status="deleted")
        else:
            _merge(op, existing, added, after)
    return after


def _merge(
    op: Merge, existing: Callable[[str], Record], added: Callable[[Record], Record], after: dict[str, Record]
) -> None:
    if len(set(op.ids)) < 2:
        raise ConfigError(f"a merge of {op.ids!r}", accepted="two or more different ids")
    sources = [existing(id) for id in dict.fromkeys(op.ids)]
    seen = dict.fromkeys(source for record in (op.into, *sources) for source in record.provenance)
    parents = tuple(dict.fromkeys((*op.into.parents, *(record.id for record in sources))))
    added(replace(op.into, parents=parents, provenance=tuple(seen)))
    for record in sources:
        after[record.id] = replace(record, status="archived")


def _cleared(record: Record) -> dict[str, Any]:
    """The store's fields at their defaults, `id` left out: a new record has no past."""
    return {name: getattr(Record, name) for name in KEPT - {"id"} if hasattr(Record, name)}
