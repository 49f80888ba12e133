"""Records in SQLite: versions, word index and vectors, always within one scope."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

from remnant.index.words import rank, spread
from remnant.memory.episode import Job
from remnant.memory.errors import ConflictError, JobLost
from remnant.memory.record import Record
from remnant.memory.rows import record_json, record_of, tenant, version_of
from remnant.memory.sqlite.connection import Connections
from remnant.memory.sqlite.words import WordSearch
from remnant.memory.store import Version, Write

_FIELDS = "r.id, r.version, r.created_at, r.observed_at, r.data, u.retrieved, u.used, u.helped, u.harmed, u.last_used"
_FROM = "FROM records r LEFT JOIN utility u ON u.scope = r.scope AND u.id = r.id"
_CHUNK = 500
_IN_PLACE = "place <> '' AND (place = ? OR (place > ? AND place < ?))"
_NEXT_SCOPE = """SELECT min(scope) FROM (
  SELECT min(scope) AS scope FROM records WHERE scope > ?1 UNION ALL
  SELECT min(scope) FROM changes WHERE scope > ?1 UNION ALL
  SELECT min(scope) FROM episodes WHERE scope > ?1)"""


class Records:
    """The half of `SqliteStore` that holds records; see `RecordStore` for what each method does."""

    _files: Connections
    _words: WordSearch
    _clock: Callable[[], float] = staticmethod(time.time)

    def get(self, scope: str, ids: Sequence[str]) -> dict[str, Record]:
        """See `RecordStore`."""
        found: dict[str, Record] = {}
        wanted = list(dict.fromkeys(ids))
        with self._files.read() as c:
            for start in range(0, len(wanted), _CHUNK):
                part = wanted[start : start + _CHUNK]
                sql = f"SELECT {_FIELDS} {_FROM} WHERE r.scope = ? AND r.id IN ({_marks(part)})"
                for row in c.execute(sql, (scope, *part)).fetchall():
                    found[row[0]] = record_of(scope, row)
        return {id: found[id] for id in wanted if id in found}

    def scopes(self, *, limit: int = 1000) -> list[str]:
        """See `RecordStore`; each step jumps to the next scope of an index instead of reading every row."""
        found: list[str] = []
        with self._files.read() as c:
            while len(found) < limit:
                after = c.execute(_NEXT_SCOPE, (found[-1] if found else "",)).fetchone()[0]
                if after is None:
                    break
                found.append(after)
        return found

    def page(
        self,
        scope: str,
        *,
        statuses: Sequence[str] = ("active",),
        after: str = "",
        limit: int = 1000,
        newest: bool = False,
    ) -> list[Record]:
        """See `RecordStore`."""
        beyond, order = ("<", "DESC") if newest else (">", "ASC")
        place, start = (f"AND r.id {beyond} ?", (after,)) if after else ("", ())
        # One status at a time, each in the order of its index: a limit then reads no more rows than it gives.
        where = f"WHERE r.scope = ? AND r.status = ? {place} ORDER BY r.id {order} LIMIT ?"
        rows: list[Any] = []
        with self._files.read() as c:
            for status in dict.fromkeys(statuses):
                rows += c.execute(f"SELECT {_FIELDS} {_FROM} {where}", (scope, status, *start, limit)).fetchall()
        return [record_of(scope, row) for row in sorted(rows, key=itemgetter(0), reverse=newest)[:limit]]

    def count(self, scope: str) -> dict[str, int]:
        """See `RecordStore`."""
        with self._files.read() as c:
            sql = "SELECT status, count(*) FROM records WHERE scope = ? GROUP BY status"
            return dict(c.execute(sql, (scope,)).fetchall())

    def learnt(self, scope: str, episode: str) -> list[str]:
        """See `RecordStore`."""
        sql = """SELECT DISTINCT r.id FROM records r, json_each(r.data, '$.provenance') p WHERE r.scope = ?
                 AND json_extract(p.value, '$.source_type') = 'episode'
                 AND json_extract(p.value, '$.source_id') = ? ORDER BY r.id"""
        with self._files.read() as c:
            return [id for (id,) in c.execute(sql, (scope, episode)).fetchall()]

    def versions(self, scope: str, id: str) -> list[tuple[Version, Record]]:
        """See `RecordStore`."""
        sql = """SELECT v.data, c.number, c.time, c.actor, c.reason, c.undoes FROM versions v
                 JOIN changes c ON c.number = v.change WHERE v.scope = ? AND v.id = ? ORDER BY v.version"""
        with self._files.read() as c:
            rows = c.execute(sql, (scope, id)).fetchall()
        return [(Version(*row[1:5], ids=(id,), undoes=row[5]), version_of(row[0])) for row in rows]

    def changed(self, scope: str, number: int) -> list[tuple[Record | None, Record]]:
        """See `RecordStore`."""
        sql = """SELECT v.data, (SELECT p.data FROM versions p WHERE p.scope = v.scope AND p.id = v.id
                 AND p.version = v.version - 1) FROM versions v WHERE v.scope = ? AND v.change = ? ORDER BY v.rowid"""
        with self._files.read() as c:
            rows = c.execute(sql, (scope, number)).fetchall()
        return [(version_of(before) if before else None, version_of(after)) for after, before in rows]

    def snapshot(self, scope: str, number: int) -> list[Record]:
        """See `RecordStore`."""
        sql = """SELECT v.data FROM versions v JOIN (SELECT id, max(version) AS version FROM versions
                 WHERE scope = ? AND change <= ? GROUP BY id) last
                 ON v.scope = ? AND v.id = last.id AND v.version = last.version ORDER BY v.id"""
        with self._files.read() as c:
            return [version_of(row[0]) for row in c.execute(sql, (scope, number, scope)).fetchall()]

    def changes(self, scope: str, *, limit: int = 1000) -> list[Version]:
        """See `RecordStore`."""
        sql = "SELECT number, time, actor, reason, undoes FROM changes WHERE scope = ? ORDER BY number DESC LIMIT ?"
        with self._files.read() as c:
            rows = c.execute(sql, (scope, limit)).fetchall()
            ids = "SELECT id FROM versions WHERE scope = ? AND change = ? ORDER BY rowid"
            return [
                Version(*row[:4], ids=tuple(id for (id,) in c.execute(ids, (scope, row[0])).fetchall()), undoes=row[4])
                for row in rows
            ]

    def change_at(self, scope: str, time: float) -> int:
        """See `RecordStore`."""
        with self._files.read() as c:
            sql = "SELECT coalesce(max(number), 0) FROM changes WHERE scope = ? AND time <= ?"
            return c.execute(sql, (scope, time)).fetchone()[0]

    def latest(self, scope: str) -> int:
        """See `RecordStore`."""
        return self.stamp(scope)[1]

    def stamp(self, scope: str) -> tuple[int, int]:
        """See `RecordStore`."""
        sql = """SELECT coalesce((SELECT epoch FROM epochs WHERE scope = ?1), 0),
                 coalesce((SELECT max(number) FROM changes WHERE scope = ?1), 0)"""
        with self._files.read() as c:
            epoch, change = c.execute(sql, (scope,)).fetchone()
        return epoch, change

    def commit(
        self,
        scope: str,
        writes: Sequence[Write],
        *,
        actor: str,
        reason: str,
        undoes: int = 0,
        job: Job | None = None,
    ) -> Version:
        """See `RecordStore`."""
        with self._files.write() as c:
            last = c.execute("SELECT coalesce(max(time), 0) FROM changes WHERE scope = ?", (scope,)).fetchone()[0]
            now = max(self._clock(), last)
            number = 0
            if writes:
                sql = "INSERT INTO changes (scope, time, actor, reason, undoes) VALUES (?, ?, ?, ?, ?)"
                number = c.execute(sql, (scope, now, actor, reason, undoes)).lastrowid or 0
            for write in writes:
                self._put(c, scope, write, number, now)
            if job is not None:
                sql = """UPDATE jobs SET state = 'done', claim = '', owner = '', error = '', change = ?
                         WHERE scope = ? AND key = ? AND claim = ? AND state = 'running'"""
                if not c.execute(sql, (number or None, scope, job.key, job.claim)).rowcount:
                    raise JobLost(f"the distillation of {job.key!r} was taken over", do="nothing: it is done")
        return Version(number, now, actor, reason, tuple(write.record.id for write in writes), undoes)

    def _put(self, c: sqlite3.Connection, scope: str, write: Write, change: int, now: float) -> None:
        record = write.record
        sql = "SELECT number, version, status, tenant, words, created_at FROM records WHERE scope = ? AND id = ?"
        old = c.execute(sql, (scope, record.id)).fetchone()
        if (old[1] if old else 0) != write.expected:
            found = f"has version {old[1]}" if old else "does not exist"
            raise ConflictError(f"record {record.id!r} {found}, not {write.expected}", do="read it again")
        if old and old[2] == "active":
            self._unindex(c, old[0], old[3], old[4])
        created, words = (old[5] if old else now), spread(write.words)
        new = replace(record, scope=scope, version=write.expected + 1, created_at=created, observed_at=now)
        data = record_json(new)
        labels = " ".join(tenant(scope, new.place))
        values = (new.version, new.status, labels, words, created, now, new.place, data, scope, new.id)
        if old:
            c.execute(
                """UPDATE records SET version = ?, status = ?, tenant = ?, words = ?, created_at = ?, observed_at = ?,
                   place = ?, data = ? WHERE scope = ? AND id = ?""",
                values,
            )
            number = old[0]
        else:
            number = c.execute(
                """INSERT INTO records (version, status, tenant, words, created_at, observed_at, place, data, scope, id)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                values,
            ).lastrowid
        if new.status == "active" and self._files.fts5:
            sql = "INSERT INTO word_index (rowid, tenant, words) VALUES (?, ?, ?)"
            c.execute(sql, (number, labels, words))
        c.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?)", (scope, new.id, new.version, change, data))
        c.execute("DELETE FROM vectors WHERE scope = ? AND id = ? AND digest <> ?", (scope, new.id, write.digest))
        for model, vector in write.vectors.items():
            c.execute(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?)", (scope, new.id, model, write.digest, vector)
            )

    def _unindex(self, c: sqlite3.Connection, number: int, tenant: str, words: str) -> None:
        if self._files.fts5:
            sql = "INSERT INTO word_index (word_index, rowid, tenant, words) VALUES ('delete', ?, ?, ?)"
            c.execute(sql, (number, tenant, words))

    def placed(
        self, scope: str, place: str, *, statuses: Sequence[str] = ("active",), limit: int = -1, offset: int = 0
    ) -> list[str]:
        """See `RecordStore`."""
        sql = f"""SELECT id FROM records WHERE scope = ? AND {_IN_PLACE} AND status IN ({_marks(statuses)})
                  ORDER BY observed_at DESC, id LIMIT ? OFFSET ?"""
        with self._files.read() as c:
            rows = c.execute(sql, (scope, *_bounds(place), *statuses, limit, offset)).fetchall()
        return [id for (id,) in rows]

    def places(self, scope: str, place: str, *, statuses: Sequence[str] = ("active",)) -> list[str]:
        """See `RecordStore`."""
        sql = f"""SELECT DISTINCT place FROM records WHERE scope = ? AND {_IN_PLACE}
                  AND status IN ({_marks(statuses)}) ORDER BY place"""
        with self._files.read() as c:
            return [found for (found,) in c.execute(sql, (scope, *_bounds(place), *statuses)).fetchall()]

    def words(self, scope: str, terms: Sequence[str], limit: int, place: str = "") -> list[tuple[str, float]]:
        """See `RecordStore`; without FTS5 the same formula runs in Python, slower."""
        if not terms:
            return []
        with self._files.read() as c:
            if not self._files.fts5:
                sql = f"SELECT id, words FROM records WHERE scope = ? AND status = 'active' AND (? = '' OR {_IN_PLACE})"
                return rank(terms, dict(c.execute(sql, (scope, place, *_bounds(place))).fetchall()))[:limit]
            return self._words.found(c, scope, terms, limit, place)

    def vectors(self, scope: str, model: str, since: int | None = None) -> list[tuple[str, bytes | None]]:
        """See `RecordStore`."""
        with self._files.read() as c:
            if since is None:
                sql = """SELECT v.id, v.vector FROM vectors v JOIN records r ON r.scope = v.scope AND r.id = v.id
                         WHERE v.scope = ? AND v.model = ? AND r.status = 'active' ORDER BY v.id"""
                return c.execute(sql, (scope, model)).fetchall()
            sql = """SELECT DISTINCT n.id, CASE WHEN r.status = 'active' THEN v.vector END FROM versions n
                     LEFT JOIN records r ON r.scope = n.scope AND r.id = n.id
                     LEFT JOIN vectors v ON v.scope = n.scope AND v.id = n.id AND v.model = ?
                     WHERE n.scope = ? AND n.change > ?"""
            return c.execute(sql, (model, scope, since)).fetchall()

    def unembedded(self, scope: str, model: str, limit: int = 64) -> list[Record]:
        """See `RecordStore`."""
        where = """WHERE r.scope = ? AND r.status = 'active' AND NOT EXISTS (SELECT 1 FROM vectors v
                   WHERE v.scope = r.scope AND v.id = r.id AND v.model = ?) ORDER BY r.id LIMIT ?"""
        with self._files.read() as c:
            rows = c.execute(f"SELECT {_FIELDS} {_FROM} {where}", (scope, model, limit)).fetchall()
        return [record_of(scope, row) for row in rows]

    def put_vectors(self, scope: str, model: str, rows: Sequence[tuple[str, int, str, bytes]]) -> None:
        """See `RecordStore`."""
        sql = """INSERT OR REPLACE INTO vectors SELECT scope, id, ?, ?, ? FROM records
                 WHERE scope = ? AND id = ? AND version = ?"""
        with self._files.write() as c:
            for id, version, digest, vector in rows:
                c.execute(sql, (model, digest, vector, scope, id, version))
            bump(c, scope)

    def dimension(self, scope: str, model: str) -> int | None:
        """See `RecordStore`."""
        with self._files.read() as c:
            sql = "SELECT length(vector) / 4 FROM vectors WHERE scope = ? AND model = ? LIMIT 1"
            row = c.execute(sql, (scope, model)).fetchone()
        return row[0] if row else None


def _bounds(place: str) -> tuple[str, str, str]:
    """What `_IN_PLACE` compares with: `0` is the character after the slash."""
    return place, f"{place}/", f"{place}0"


def bump(c: sqlite3.Connection, scope: str) -> None:
    """Begin a new epoch: whoever holds vectors of this scope reads them all again."""
    c.execute("INSERT INTO epochs VALUES (?, 1) ON CONFLICT (scope) DO UPDATE SET epoch = epoch + 1", (scope,))


def _marks(items: Sequence[object]) -> str:
    return ", ".join("?" * len(items))
