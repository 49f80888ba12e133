"""Records in PostgreSQL: versions and change numbers, always within one scope.

Whoever writes records of a scope holds that scope's row, so the changes of a scope become visible in the order
of their numbers, and its clock never goes back. Scopes do not wait for one another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from remnant.memory.episode import Job
from remnant.memory.postgres.connection import Connections
from remnant.memory.postgres.schema import Server
from remnant.memory.postgres.words import WordSearch
from remnant.memory.postgres.write import Change, hold
from remnant.memory.record import Record
from remnant.memory.rows import record_of, version_of
from remnant.memory.store import Version, Write

FIELDS: Final = (
    "r.id, r.version, r.created_at, r.observed_at, r.data, u.retrieved, u.used, u.helped, u.harmed, u.last_used"
)
FROM: Final = "FROM records r LEFT JOIN utility u ON u.scope = r.scope AND u.id = r.id"
_IN_PLACE: Final = "place <> '' AND (place = %s OR (place > %s AND place < %s))"


class Records:
    """The half of `PostgresStore` that holds records; see `RecordStore` for what each method does."""

    _server: Connections
    _words: WordSearch
    _clock: Callable[[], float] = staticmethod(time.time)

    def get(self, scope: str, ids: Sequence[str]) -> dict[str, Record]:
        """See `RecordStore`."""
        sql = f"SELECT {FIELDS} {FROM} WHERE r.scope = %s AND r.id = ANY(%s)"
        wanted = list(dict.fromkeys(ids))
        rows = self._server.read(lambda c: c.execute(sql, (scope, wanted)).fetchall()) if wanted else []
        found = {row[0]: record_of(scope, row) for row in rows}
        return {id: found[id] for id in wanted if id in found}

    def scopes(self, *, limit: int = 1000) -> list[str]:
        """See `RecordStore`."""
        sql = "SELECT scope FROM scopes WHERE scope > '' ORDER BY scope LIMIT %s"
        return [scope for (scope,) in self._server.read(lambda c: c.execute(sql, (limit,)).fetchall())]

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
        beyond = ("AND r.id < %s" if newest else "AND r.id > %s") if after else ""
        order = "DESC" if newest else "ASC"
        sql = (
            f"SELECT {FIELDS} {FROM} WHERE r.scope = %s AND r.status = ANY(%s) {beyond} ORDER BY r.id {order} LIMIT %s"
        )
        values = (scope, list(statuses), *([after] if after else []), limit)
        return [record_of(scope, row) for row in self._server.read(lambda c: c.execute(sql, values).fetchall())]

    def count(self, scope: str) -> dict[str, int]:
        """See `RecordStore`."""
        sql = "SELECT status, count(*) FROM records WHERE scope = %s GROUP BY status"
        return dict(self._server.read(lambda c: c.execute(sql, (scope,)).fetchall()))

    def learnt(self, scope: str, episode: str) -> list[str]:
        """See `RecordStore`."""
        sql = "SELECT id FROM records WHERE scope = %s AND sources @> %s ORDER BY id"
        return [id for (id,) in self._server.read(lambda c: c.execute(sql, (scope, [episode])).fetchall())]

    def versions(self, scope: str, id: str) -> list[tuple[Version, Record]]:
        """See `RecordStore`."""
        sql = """SELECT v.data, c.number, c.time, c.actor, c.reason, c.undoes FROM versions v
                 JOIN changes c ON c.scope = v.scope AND c.number = v.change
                 WHERE v.scope = %s AND v.id = %s ORDER BY v.version"""
        rows = self._server.read(lambda c: c.execute(sql, (scope, id)).fetchall())
        return [(Version(*row[1:5], ids=(id,), undoes=row[5]), version_of(row[0])) for row in rows]

    def changed(self, scope: str, number: int) -> list[tuple[Record | None, Record]]:
        """See `RecordStore`."""
        sql = """SELECT v.data, p.data FROM versions v LEFT JOIN versions p ON p.scope = v.scope AND p.id = v.id
                 AND p.version = v.version - 1 WHERE v.scope = %s AND v.change = %s ORDER BY v.place"""
        rows = self._server.read(lambda c: c.execute(sql, (scope, number)).fetchall())
        return [(version_of(before) if before else None, version_of(after)) for after, before in rows]

    def snapshot(self, scope: str, number: int) -> list[Record]:
        """See `RecordStore`."""
        sql = """SELECT DISTINCT ON (id) data FROM versions WHERE scope = %s AND change <= %s
                 ORDER BY id, version DESC"""
        return [version_of(data) for (data,) in self._server.read(lambda c: c.execute(sql, (scope, number)).fetchall())]

    def changes(self, scope: str, *, limit: int = 1000) -> list[Version]:
        """See `RecordStore`."""
        sql = """SELECT c.number, c.time, c.actor, c.reason, ARRAY(SELECT v.id FROM versions v WHERE v.scope = c.scope
                 AND v.change = c.number ORDER BY v.place), c.undoes FROM changes c
                 WHERE c.scope = %s ORDER BY c.number DESC LIMIT %s"""
        rows = self._server.read(lambda c: c.execute(sql, (scope, limit)).fetchall())
        return [Version(*row[:4], ids=tuple(row[4]), undoes=row[5]) for row in rows]

    def change_at(self, scope: str, time: float) -> int:
        """See `RecordStore`."""
        sql = "SELECT number FROM changes WHERE scope = %s AND time <= %s ORDER BY time DESC, number DESC LIMIT 1"
        row = self._server.read(lambda c: c.execute(sql, (scope, time)).fetchone())
        return row[0] if row else 0

    def latest(self, scope: str) -> int:
        """See `RecordStore`."""
        return self.stamp(scope)[1]

    def stamp(self, scope: str) -> tuple[int, int]:
        """See `RecordStore`."""
        sql = "SELECT epoch, change FROM scopes WHERE scope = %s"
        row = self._server.read(lambda c: c.execute(sql, (scope,)).fetchone())
        return (row[0], row[1]) if row else (0, 0)

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

        def work(c: Server) -> Version:
            held = hold(c, scope)
            change = Change(c, scope, max(self._clock(), held.time), self._server)
            if writes:
                change.begin(actor, reason, undoes)
            if job is not None:
                change.finish(job)
            if writes:
                change.put(writes)
            return Version(change.number, change.time, actor, reason, tuple(w.record.id for w in writes), undoes)

        return self._server.write(work)

    def placed(
        self, scope: str, place: str, *, statuses: Sequence[str] = ("active",), limit: int = -1, offset: int = 0
    ) -> list[str]:
        """See `RecordStore`."""
        sql = f"""SELECT id FROM records WHERE scope = %s AND {_IN_PLACE} AND status = ANY(%s)
                  ORDER BY observed_at DESC, id LIMIT %s OFFSET %s"""
        values = (scope, *_bounds(place), list(statuses), None if limit < 0 else limit, offset)
        return [id for (id,) in self._server.read(lambda c: c.execute(sql, values).fetchall())]

    def places(self, scope: str, place: str, *, statuses: Sequence[str] = ("active",)) -> list[str]:
        """See `RecordStore`."""
        sql = f"SELECT DISTINCT place FROM records WHERE scope = %s AND {_IN_PLACE} AND status = ANY(%s) ORDER BY place"
        values = (scope, *_bounds(place), list(statuses))
        return [found for (found,) in self._server.read(lambda c: c.execute(sql, values).fetchall())]

    def words(self, scope: str, terms: Sequence[str], limit: int, place: str = "") -> list[tuple[str, float]]:
        """See `RecordStore`, and `remnant.memory.postgres.words` for how the ranks come about."""
        if not terms:
            return []
        return self._server.read(lambda c: self._words.found(c, scope, terms, limit, place))


def _bounds(place: str) -> tuple[Any, ...]:
    """What `_IN_PLACE` compares with: `0` is the character after the slash."""
    return place, f"{place}/", f"{place}0"
