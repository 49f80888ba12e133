"""Consolidation: records that say the same become one, with the sources of all; nothing is destroyed.

Two records say the same if their texts are equal but for case and spacing, or nearly so: their vectors, or without
an embedder their words, are close, and they agree in numbers, names, negations and in being a question. Records of
different kind, trigger, place, trust, outcome or payload, or that were never true at the same time, stay apart.

Source: "collapse near-duplicates (cosine >= 0.95, keep newest valid)" of the specification of routing, 2.2. Differs:
closeness alone does not do; "two cats" and "three cats" are closer than that.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from remnant.errors import ConfigError
from remnant.index.words import terms
from remnant.memory.change import apply_steps
from remnant.memory.context import Context, Steps
from remnant.memory.ops import Add, Merge, Op, Update
from remnant.memory.record import Record
from remnant.memory.store import Version

CLOSE = 0.95
"""Cosine, or share of common words, from which on two texts are nearly equal."""

LOOKED_AT = 8
"""Records with most words in common that a text is compared with, where there are no vectors."""

_ROWS = 512
_WORD = re.compile(r"\w+")
_NOT = frozenset({"no", "not", "never", "none", "nobody", "nothing", "neither", "nor", "without", "cannot"})
Pair = tuple[int, int]


def consolidate_steps(c: Context, similarity: float | None, actor: str) -> Steps[Version]:
    """See `Memory.consolidate`.

    Raises:
        ConfigError: a similarity outside 0 to 1.
    """
    if similarity is not None and not 0.0 < similarity <= 1.0:
        raise ConfigError(f"similarity {similarity}", accepted="above 0, to 1; or None for equal texts only")
    records = list(_everything(c))
    ops = [_merge(group) for group in _groups(records, _pairs(c, records, similarity))]
    return (yield from apply_steps(c, ops, "consolidated: they say the same", actor))


def add_once_steps(c: Context, records: Sequence[Record]) -> Steps[list[str]]:
    """Add what is not here yet; the id that each record has then.

    A record that is here gets the new one's sources. It is looked for among the records with most words in
    common, so one among very many alike may be missed, and is left to `consolidate`.
    """
    ops: dict[str, Op] = {}
    ids: list[str] = []
    new: dict[str, Record] = {}
    for record in records:
        found = next((old for old in (*new.values(), *_alike(c, record)) if _equal(old, record)), None)
        if found is None:
            found = replace(record, id=record.id or c.new_id())
        joined = replace(found, provenance=_united([found, record]))
        if not found.version:
            new[found.id] = joined
            ops[found.id] = Add(joined)
        elif joined.provenance != found.provenance:
            ops[found.id] = Update(found.id, {"provenance": joined.provenance})
        ids.append(found.id)
    if ops:
        yield from apply_steps(c, list(ops.values()), "added once", "user")
    return ids


def same_facts(first: str, second: str) -> bool:
    """Whether two texts agree in what closeness does not see: numbers, names, negations, and asking or telling.

    Example: same_facts("Ann has 2 cats.", "Ann has 3 cats.") -> False
    """
    return _marks(first) == _marks(second)


def _marks(text: str) -> tuple[list[str], bool]:
    words = _WORD.findall(text)
    kept = [word.lower() for at, word in enumerate(words) if any(map(str.isdigit, word)) or (at and word[0].isupper())]
    denied = [word for word in (found.lower() for found in words) if word in _NOT]
    return sorted(kept) + denied + ["n't"] * len(re.findall(r"n['’]t\b", text)), text.rstrip().endswith("?")  # noqa: RUF001


def _groups(records: Sequence[Record], pairs: Iterable[Pair]) -> list[list[Record]]:
    """Each group is a record and those close to that very one, newest first."""
    close: dict[int, set[int]] = {}
    for a, b in pairs:
        if _joins(records[a], records[b]):
            close.setdefault(a, set()).add(b)
            close.setdefault(b, set()).add(a)
    groups: list[list[Record]] = []
    taken: set[int] = set()
    for first in sorted(close, key=lambda at: (-records[at].observed_at, records[at].id)):
        rest = sorted(close[first] - taken) if first not in taken else []
        if rest:
            taken |= {first, *rest}
            groups.append([records[at] for at in (first, *rest)])
    return groups


def _joins(a: Record, b: Record) -> bool:
    if _kin(a) != _kin(b) or _text(a)[0] != _text(b)[0]:
        return False
    if _text(a) != _text(b) and not same_facts(a.content, b.content):
        return False
    begin = max(-math.inf if r.valid_from is None else r.valid_from for r in (a, b))
    return begin < min(math.inf if r.valid_to is None else r.valid_to for r in (a, b))


def _kin(record: Record) -> tuple[object, ...]:
    payload = json.dumps(record.payload, sort_keys=True, default=str)
    return record.kind, record.place, record.trust, record.outcome, payload


def _merge(group: Sequence[Record]) -> Merge:
    """The newest text with the sources and keywords of all, true as long as any of them."""
    begins, ends = [r.valid_from for r in group], [r.valid_to for r in group]
    into = replace(
        group[0],
        id="",
        keywords=tuple(dict.fromkeys(word for record in group for word in record.keywords)),
        confidence=max(record.confidence for record in group),
        provenance=_united(group),
        valid_from=None if None in begins else min(begin for begin in begins if begin is not None),
        valid_to=None if None in ends else max(end for end in ends if end is not None),
    )
    return Merge(tuple(record.id for record in group), into)


def _united(records: Sequence[Record]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(source for record in records for source in record.provenance))


def _pairs(c: Context, records: Sequence[Record], similarity: float | None) -> Iterator[Pair]:
    """Places of records whose texts are equal or close."""
    first: dict[tuple[str, str], int] = {}
    for at, record in enumerate(records):
        if (held := first.setdefault(_text(record), at)) != at:
            yield held, at
    if similarity is None:
        return
    at_id = {record.id: at for at, record in enumerate(records)}
    if c.embedder is not None:
        rows = [(id, blob) for id, blob in c.store.vectors(c.scope, c.embedder.model_id) if blob and id in at_id]
        yield from ((at_id[rows[a][0]], at_id[rows[b][0]]) for a, b in _close([blob for _, blob in rows], similarity))
        return
    for at, record in enumerate(records):
        for other in _alike(c, record):
            if at_id.get(other.id, at) > at and _common(record.content, other.content) >= similarity:
                yield at, at_id[other.id]


def _close(blobs: Sequence[bytes], similarity: float) -> Iterator[Pair]:
    if not blobs:
        return
    import numpy

    flat: Any = numpy.frombuffer(b"".join(blobs), dtype="<f4")
    matrix: Any = flat.reshape(len(blobs), -1)
    for start in range(0, len(blobs), _ROWS):
        cosines: Any = matrix[start : start + _ROWS] @ matrix[start:].T
        rows, columns = numpy.nonzero(cosines >= similarity - 1e-6)
        yield from ((start + int(a), start + int(b)) for a, b in zip(rows, columns, strict=True) if a < b)


def _alike(c: Context, record: Record) -> list[Record]:
    """The stored records that share most words with one."""
    found = c.store.words(c.scope, terms(f"{record.trigger} {record.content}"), LOOKED_AT, record.place)
    stored = c.store.get(c.scope, [id for id, _ in found])
    return [other for other in stored.values() if other.id != record.id and other.status == "active"]


def _common(first: str, second: str) -> float:
    a, b = (set(_WORD.findall(text.lower())) for text in (first, second))
    return len(a & b) / (len(a | b) or 1)


def _equal(a: Record, b: Record) -> bool:
    validity = (a.valid_from, a.valid_to) == (b.valid_from, b.valid_to)
    return _text(a) == _text(b) and _kin(a) == _kin(b) and validity and a.keywords == b.keywords


def _text(record: Record) -> tuple[str, str]:
    return " ".join(record.trigger.split()).casefold(), " ".join(record.content.split()).casefold()


def _everything(c: Context) -> Iterator[Record]:
    after = ""
    while records := c.store.page(c.scope, after=after, limit=1000):
        yield from records
        after = records[-1].id
