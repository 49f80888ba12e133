"""Changing memory: operations, undo, and the taking back of an earlier distillation, each one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from remnant.errors import ConfigError
from remnant.memory.context import Ask, Context, Steps
from remnant.memory.episode import Job
from remnant.memory.errors import ConflictError, EmbedderError, JobLost, other_size
from remnant.memory.guard import admitted
from remnant.memory.ops import Op, planned, touched
from remnant.memory.record import Record, digest
from remnant.memory.rounds import taken_back
from remnant.memory.secrets import find_secrets, redact, redact_data
from remnant.memory.store import Version, Write

ATTEMPTS = 3
"""How often operations are planned anew when somebody else changed their records meanwhile."""


@dataclass(frozen=True)
class Difference:
    """What became of one record between two changes; None is not there (or deleted)."""

    id: str
    before: Record | None
    after: Record | None


def apply_steps(
    c: Context,
    ops: Sequence[Op],
    reason: str,
    actor: str,
    *,
    job: Job | None = None,
    verified: bool = False,
) -> Steps[Version]:
    """See `Memory.apply`. With a job, that job's earlier result is taken back in the same transaction."""
    for attempt in range(ATTEMPTS):
        restored = taken_back(c, job)
        stored = c.store.get(c.scope, sorted(touched(ops) | restored.keys()))
        after = restored | planned(ops, stored | restored, c.new_id)
        records = [_cleaned(c, record, stored.get(record.id), verified) for record in after.values()]
        writes = yield from _writes(c, records, stored)
        try:
            undoes = (job.change or 0) if job else 0
            done = c.store.commit(c.scope, writes, actor=actor, reason=_text(c, reason), undoes=undoes, job=job)
        except JobLost:
            raise
        except ConflictError:
            if attempt == ATTEMPTS - 1:
                raise
            continue
        if done.number:
            _tell(c, done, records)
        return done
    raise AssertionError("unreachable")


def undo_steps(c: Context, number: int, actor: str) -> Steps[Version]:
    """See `Memory.undo`."""
    rows = c.store.changed(c.scope, number)
    if not rows:
        raise ConfigError(f"no change {number} in this scope", accepted="a number from `audit` or `changes`")
    stored = c.store.get(c.scope, [after.id for _, after in rows])
    for _, after in rows:
        if stored[after.id].meaning() != after.meaning():
            raise ConflictError(f"record {after.id!r} was changed after change {number}", do="undo the later one first")
    records = [before or replace(after, status="deleted") for before, after in rows]
    writes = yield from _writes(c, records, stored)
    done = c.store.commit(c.scope, writes, actor=actor, reason=f"undo of change {number}", undoes=number)
    _tell(c, done, records)
    return done


def differences(c: Context, first: int, second: int) -> list[Difference]:
    """See `Memory.diff`."""
    before = {record.id: record for record in c.store.snapshot(c.scope, first) if record.status != "deleted"}
    after = {record.id: record for record in c.store.snapshot(c.scope, second) if record.status != "deleted"}
    found = [Difference(id, before.get(id), after.get(id)) for id in sorted(before.keys() | after.keys())]
    return [item for item in found if _meaning(item.before) != _meaning(item.after)]


def embed_missing(c: Context) -> Steps[int]:
    """Embed the records that have no vector yet, as after a failure or with a new embedder; how many."""
    if c.embedder is None:
        return 0
    model, count = c.embedder.model_id, 0
    while records := c.store.unembedded(c.scope, model):
        texts = [c.strategy.index_text(record).meaning for record in records]
        vectors = yield Ask(texts, "document")
        _check_size(c, vectors)
        rows = zip(records, texts, vectors, strict=True)
        c.store.put_vectors(c.scope, model, [(r.id, r.version, digest(text), vector) for r, text, vector in rows])
        count += len(records)
    return count


def _cleaned(c: Context, record: Record, old: Record | None, verified: bool) -> Record:
    """The record without credentials and, where its words are new, quarantined if need be."""
    if c.secrets != "keep":
        text = f"{record.trigger}\n{record.content}"
        if c.secrets == "refuse" and (found := find_secrets(text)):
            raise ConfigError(
                f"the text holds a secret ({found[0].kind})", do="remove it, or open with secrets='redact'"
            )
        record = replace(
            record,
            content=redact(record.content),
            trigger=redact(record.trigger),
            keywords=tuple(redact(word) for word in record.keywords),
            payload=redact_data(record.payload),
        )
    words = (record.content, record.trigger, record.kind, record.trust)
    known = old if old is not None and old.status != "deleted" else None
    if known is not None and words == (known.content, known.trigger, known.kind, known.trust):
        return record
    return admitted(record, verified=verified)


def _writes(c: Context, records: Sequence[Record], stored: Mapping[str, Record]) -> Steps[list[Write]]:
    texts = [c.strategy.index_text(record) for record in records]
    vectors: dict[str, bytes] = {}
    if c.embedder is not None:
        needed = [i for i, record in enumerate(records) if record.status == "active"]
        vectors = yield from _vectors(c, [texts[i].meaning for i in needed])
    writes: list[Write] = []
    for record, text in zip(records, texts, strict=True):
        old, key = stored.get(record.id), digest(text.meaning)
        own = {c.embedder.model_id: vectors[key]} if c.embedder and key in vectors else {}
        writes.append(Write(record, old.version if old else 0, text.words, key, own))
    return writes


def _vectors(c: Context, texts: Sequence[str]) -> Steps[dict[str, bytes]]:
    """Vectors by digest; none if the embedder fails: what was said is kept, and embedded later."""
    wanted = list(dict.fromkeys(texts))
    if not wanted:
        return {}
    try:
        found = yield Ask(wanted, "document")
    except EmbedderError as error:
        c.emit("embed_failed", error=str(error))
        return {}
    _check_size(c, found)
    return {digest(text): vector for text, vector in zip(wanted, found, strict=True)}


def _check_size(c: Context, vectors: Sequence[bytes]) -> None:
    assert c.embedder is not None
    given, stored = len(vectors[0]) // 4, c.store.dimension(c.scope, c.embedder.model_id)
    if stored is not None and stored != given:
        raise other_size(c.embedder.model_id, given, stored)


def _text(c: Context, text: str) -> str:
    return text if c.secrets == "keep" else redact(text)


def _tell(c: Context, done: Version, records: Sequence[Record]) -> None:
    c.emit("applied", number=done.number, ids=list(done.ids))
    if held := [record.id for record in records if record.status == "quarantined"]:
        c.emit("quarantined", ids=held)


def _meaning(record: Record | None) -> object:
    return record and record.meaning()
