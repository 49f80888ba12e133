"""How records, episodes and leases look in the rows of a store; the same in every backend that speaks SQL."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from remnant.memory.episode import Episode
from remnant.memory.owner import alive
from remnant.memory.record import Record

_HALF = re.compile(r"[\ud800-\udfff]")

_COUNTERS = ("retrieved", "used", "helped", "harmed", "last_used")

Row = Sequence[Any]


def to_json(data: Mapping[str, Any]) -> str:
    """An agent's data as JSON text; what JSON does not know is written as text."""
    return _whole(json.dumps(dict(data), ensure_ascii=False, default=str))


def record_json(record: Record) -> str:
    """One version of a record; the counters of its use lie elsewhere."""
    data = record.to_dict()
    del data["utility"]
    return _whole(json.dumps(data, ensure_ascii=False))


def version_of(data: str) -> Record:
    """The record that `record_json` wrote."""
    return Record.from_dict(json.loads(data))


def record_of(scope: str, row: Row) -> Record:
    """A current record from (id, version, created_at, observed_at, data, its five counters)."""
    given: dict[str, Any] = json.loads(row[4])
    given |= {"id": row[0], "scope": scope, "version": row[1], "created_at": row[2], "observed_at": row[3]}
    given["utility"] = dict(zip(_COUNTERS, (count or 0 for count in row[5:10]), strict=True))
    return Record.from_dict(given)


def episode_sources(data: str) -> set[str]:
    """Ids of the episodes that a version of a record came from."""
    sources: list[dict[str, Any]] = json.loads(data)["provenance"]
    return {source["source_id"] for source in sources if source["source_type"] == "episode"}


def episode_of(scope: str, row: Row, steps: tuple[Mapping[str, Any], ...] = ()) -> Episode:
    """An episode from (id, task, verdict, source, team, opened_at, closed_at, metadata, erased)."""
    id, task, verdict, source, group, opened, closed, metadata, erased = row
    return Episode(
        id, scope, task, steps, verdict, source, group, opened, closed, json.loads(metadata), erased=bool(erased)
    )


def lease_over(owner: str, until: float, now: float, lease: float) -> bool:
    """A lease is over when its holder is gone, or it ran out; one too far ahead is a clock that jumped."""
    return alive(owner) is False or until <= now or until > now + 2 * lease


def tenant(scope: str, place: str = "") -> list[str]:
    """What a word index holds besides a record's words: a word for its scope, and one for each place it lies in."""
    labels = place.split("/") if place else []
    return [tenant_word(scope), *(tenant_word(scope, "/".join(labels[: i + 1])) for i in range(len(labels)))]


def tenant_word(scope: str, place: str = "") -> str:
    """The word that all records of a scope hold, or all at a place of it and below."""
    name = f"{scope}\0{place}" if place else scope
    return ("y" if place else "x") + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _whole(text: str) -> str:
    """JSON text in which half a surrogate pair, which no encoding holds, is an escape."""
    return _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)
