"""One change of the records of a scope, inside the transaction of whoever makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from remnant.memory.episode import Job
from remnant.memory.errors import ConflictError, JobLost, other_size
from remnant.memory.postgres.connection import Connections
from remnant.memory.postgres.schema import Server
from remnant.memory.postgres.words import indexed
from remnant.memory.record import Record
from remnant.memory.rows import episode_sources, record_json, tenant
from remnant.memory.store import Write

_PUT: Final = """INSERT INTO records
  (scope, id, version, status, length, terms, parents, sources, place, created_at, observed_at, data)
  VALUES (%(scope)s, %(id)s, %(version)s, %(status)s, %(length)s,
    CASE WHEN %(status)s = 'active' THEN to_tsvector('words', %(words)s) || array_to_tsvector(%(tenant)s) END,
    %(parents)s, %(sources)s, %(place)s, %(created)s, %(now)s, %(data)s)
  ON CONFLICT (scope, id) DO UPDATE SET version = excluded.version, status = excluded.status,
    length = excluded.length, terms = excluded.terms, parents = excluded.parents, sources = excluded.sources,
    place = excluded.place, created_at = excluded.created_at, observed_at = excluded.observed_at,
    data = excluded.data"""
_VERSION: Final = """INSERT INTO versions (scope, id, version, change, place, data)
  VALUES (%(scope)s, %(id)s, %(version)s, %(change)s, %(order)s, %(data)s)"""
_OTHER_TEXT: Final = """DELETE FROM vectors v USING unnest(%s::text[], %s::text[]) AS w(id, digest)
  WHERE v.scope = %s AND v.id = w.id AND v.digest <> w.digest"""
_VECTOR: Final = """INSERT INTO vectors (scope, model, id, digest, vector) VALUES (%s, %s, %s, %s, %s)
  ON CONFLICT (scope, model, id) DO UPDATE SET digest = excluded.digest, vector = excluded.vector"""
_OLD: Final = "SELECT id, version, status, created_at, length FROM records WHERE scope = %s AND id = ANY(%s)"
_DONE: Final = """UPDATE jobs SET state = 'done', claim = '', owner = '', error = '', change = %s
  WHERE scope = %s AND key = %s AND claim = %s AND state = 'running'"""


class Held(NamedTuple):
    """A scope's row, which nobody else can change until the transaction ends."""

    change: int
    time: float


class _Old(NamedTuple):
    version: int
    status: str
    created: float
    length: int


def hold(c: Server, scope: str, *, alone: bool = False) -> Held:
    """Hold a scope's row, and make it if there is none; `alone` also keeps out those who write no records."""
    strength = "FOR UPDATE" if alone else "FOR NO KEY UPDATE"
    sql = f"SELECT change, time FROM scopes WHERE scope = %s {strength}"
    row = c.execute(sql, (scope,)).fetchone()
    if row is None:
        c.execute("INSERT INTO scopes (scope) VALUES (%s) ON CONFLICT DO NOTHING", (scope,))
        row = c.execute(sql, (scope,)).fetchone()
    assert row is not None
    return Held(*row)


def share(c: Server, scope: str) -> None:
    """Keep an erasure of this scope waiting, and wait for one, while something about its records is noted."""
    c.execute("SELECT FROM scopes WHERE scope = %s FOR KEY SHARE", (scope,))


class Change:
    """A change that is being made; the scope's row is held.

    Args:
        c: inside a transaction.
        scope: whose records.
        time: seconds since 1970; not before the change before it.
        server: knows how vectors are stored.
    """

    def __init__(self, c: Server, scope: str, time: float, server: Connections) -> None:
        """See the class."""
        self.number = 0
        self.time = time
        self._c, self._scope, self._server = c, scope, server

    def begin(self, actor: str, reason: str, undoes: int) -> None:
        """Give it a number."""
        sql = "INSERT INTO changes (scope, time, actor, reason, undoes) VALUES (%s, %s, %s, %s, %s) RETURNING number"
        row = self._c.execute(sql, (self._scope, self.time, actor, reason, undoes)).fetchone()
        assert row is not None
        self.number = row[0]

    def finish(self, job: Job) -> None:
        """Mark the distillation as done that this change comes from.

        Raises:
            JobLost: somebody else took it over.
        """
        values = (self.number or None, self._scope, job.key, job.claim)
        if not self._c.execute(_DONE, values).rowcount:
            raise JobLost(f"the distillation of {job.key!r} was taken over", do="nothing: it is done")

    def put(self, writes: Sequence[Write]) -> None:
        """Write the records with their versions, words and vectors.

        Raises:
            ConflictError: a record has another version than expected.
            EmbedderError: vectors of another size than those stored under the same name.
        """
        ids = [write.record.id for write in writes]
        old = {row[0]: _Old(*row[1:]) for row in self._c.execute(_OLD, (self._scope, ids)).fetchall()}
        self._check_sizes({model: len(blob) for write in writes for model, blob in write.vectors.items()})
        rows: list[dict[str, Any]] = []
        documents = words = 0
        for write in writes:
            before = old.get(write.record.id)
            rows.append(self._row(write, before, len(rows)))
            after = old[write.record.id] = _Old(
                *(rows[-1][name] for name in ("version", "status", "created", "length"))
            )
            documents += (after.status == "active") - (before is not None and before.status == "active")
            words += after.length - (before.length if before else 0)
        vectors = [
            (self._scope, model, write.record.id, write.digest, self._server.vector(blob))
            for write in writes
            for model, blob in write.vectors.items()
        ]
        with self._c.pipeline(), self._c.cursor() as cursor:
            cursor.executemany(_PUT, rows)
            cursor.executemany(_VERSION, rows)
            cursor.execute(_OTHER_TEXT, (ids, [write.digest for write in writes], self._scope))
            if vectors:
                cursor.executemany(_VECTOR, vectors)
            sql = """UPDATE scopes SET change = %s, time = %s, records = records + %s, words = words + %s
                     WHERE scope = %s"""
            cursor.execute(sql, (self.number, self.time, documents, words, self._scope))

    def _row(self, write: Write, old: _Old | None, order: int) -> dict[str, Any]:
        if (old.version if old else 0) != write.expected:
            found = f"has version {old.version}" if old else "does not exist"
            raise ConflictError(f"record {write.record.id!r} {found}, not {write.expected}", do="read it again")
        created = old.created if old else self.time
        new: Record = replace(
            write.record, scope=self._scope, version=write.expected + 1, created_at=created, observed_at=self.time
        )
        words, length = indexed(write.words) if new.status == "active" else ("", 0)
        data = record_json(new)
        return {
            "scope": self._scope, "id": new.id, "version": new.version, "status": new.status, "length": length,
            "words": words, "tenant": tenant(self._scope, new.place), "parents": list(new.parents),
            "sources": sorted(episode_sources(data)), "place": new.place, "created": created, "now": self.time,
            "data": data, "change": self.number, "order": order,
        }  # fmt: skip

    def _check_sizes(self, sizes: Mapping[str, int]) -> None:
        for model, size in sizes.items():
            check_size(self._c, self._server, self._scope, model, size // 4)


def check_size(c: Server, server: Connections, scope: str, model: str, given: int) -> None:
    """Refuse vectors of another size than those stored; the scope is held, so nobody stores others meanwhile.

    Raises:
        EmbedderError: they have another size.
    """
    stored = size_of(c, server, scope, model)
    if stored is not None and stored != given:
        raise other_size(model, given, stored)


def size_of(c: Server, server: Connections, scope: str, model: str) -> int | None:
    """Numbers per stored vector of an embedder; None if there are none."""
    sql = f"SELECT {server.vector_size} FROM vectors WHERE scope = %s AND model = %s LIMIT 1"
    row = c.execute(sql, (scope, model)).fetchone()
    return row[0] if row else None
