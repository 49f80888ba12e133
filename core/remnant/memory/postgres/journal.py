"""Episodes, their steps, the queue of distillations, and the counters of use, in PostgreSQL.

Rows are held in one order, so that nobody waits in a circle: a scope, then episodes, then counters, then jobs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from remnant.errors import ConfigError
from remnant.memory.episode import Episode
from remnant.memory.owner import forsaken
from remnant.memory.postgres.connection import Connections
from remnant.memory.postgres.queue import again, call_off, queue
from remnant.memory.postgres.schema import Server
from remnant.memory.postgres.write import share
from remnant.memory.record import Outcome
from remnant.memory.rows import episode_of, to_json

_EPISODE: Final = "id, task, verdict, source, team, opened_at, closed_at, metadata, erased"
_STEP: Final = """WITH e AS (UPDATE episodes SET steps = steps + 1 WHERE scope = %(scope)s AND id = %(episode)s
  AND closed_at IS NULL AND NOT erased RETURNING steps - 1 AS number)
  INSERT INTO steps (scope, episode, number, data) SELECT %(scope)s, %(episode)s, number, %(data)s FROM e
  RETURNING number"""
_COUNT: Final = """INSERT INTO utility AS u (scope, id, retrieved, used, helped, harmed, last_used)
  SELECT scope, id, greatest(0, %(retrieved)s), greatest(0, %(used)s), greatest(0, %(helped)s),
    greatest(0, %(harmed)s), coalesce(%(at)s::float8, 0)
  FROM records WHERE scope = %(scope)s AND id = ANY(%(ids)s) ORDER BY id
  ON CONFLICT (scope, id) DO UPDATE SET retrieved = greatest(0, u.retrieved + %(retrieved)s),
    used = greatest(0, u.used + %(used)s), helped = greatest(0, u.helped + %(helped)s),
    harmed = greatest(0, u.harmed + %(harmed)s), last_used = coalesce(%(at)s::float8, u.last_used)"""
_SHOWN: Final = """INSERT INTO uses (scope, episode, id, used)
  SELECT %s, %s, id, false FROM unnest(%s::text[]) AS id ON CONFLICT DO NOTHING"""
_USED: Final = """INSERT INTO uses (scope, episode, id, used)
  SELECT %s, %s, id, true FROM unnest(%s::text[]) AS id ON CONFLICT (scope, episode, id) DO UPDATE SET used = true"""


class Journal:
    """The half of `PostgresStore` that holds the journal; see `RecordStore` for what each method does."""

    _server: Connections
    _clock: Callable[[], float] = staticmethod(time.time)

    def open_episode(self, episode: Episode, owner: str) -> bool:
        """See `RecordStore`."""
        sql = """INSERT INTO episodes (scope, id, task, verdict, source, team, opened_at, owner, metadata)
                 VALUES (%s, %s, %s, 'unknown', '', %s, %s, %s, %s) ON CONFLICT DO NOTHING"""
        row = (episode.scope, episode.id, episode.task, episode.group, episode.opened_at, owner)

        def work(c: Server) -> bool:
            c.execute("INSERT INTO scopes (scope) VALUES (%s) ON CONFLICT DO NOTHING", (episode.scope,))
            return bool(c.execute(sql, (*row, to_json(episode.metadata))).rowcount)

        return self._server.write(work)

    def add_step(self, scope: str, episode: str, step: Mapping[str, Any]) -> int:
        """See `RecordStore`."""
        values = {"scope": scope, "episode": episode, "data": to_json(step)}

        def work(c: Server) -> int:
            row = c.execute(_STEP, values).fetchone()
            if row is None:
                state = "is closed" if _held(c, scope, episode) else "does not exist"
                raise ConfigError(f"episode {episode!r} {state}", accepted="an open episode of this scope")
            return row[0]

        return self._server.write(work)

    def close_episode(self, scope: str, episode: str, verdict: Outcome, source: str, *, queue: bool) -> bool:
        """See `RecordStore`."""

        def work(c: Server) -> bool:
            share(c, scope)
            closed_at, _, team = _known(c, scope, episode)
            if closed_at is not None:
                return False
            sql = "UPDATE episodes SET closed_at = %s, verdict = %s, source = %s WHERE scope = %s AND id = %s"
            c.execute(sql, (self._clock(), verdict, source, scope, episode))
            self._settle(c, scope, episode, verdict, +1)
            if queue and not team:
                again(c, scope, episode, [episode])
            return True

        return self._server.write(work)

    def reopen_episode(self, scope: str, episode: str, owner: str) -> bool:
        """See `RecordStore`."""

        def work(c: Server) -> bool:
            share(c, scope)
            closed_at, verdict, _ = _known(c, scope, episode)
            if closed_at is None:
                return False
            self._settle(c, scope, episode, verdict, -1)
            sql = """UPDATE episodes SET closed_at = NULL, verdict = 'unknown', source = '', owner = %s
                     WHERE scope = %s AND id = %s"""
            c.execute(sql, (owner, scope, episode))
            call_off(c, scope, [episode])
            return True

        return self._server.write(work)

    def queue_group(self, scope: str, group: str) -> tuple[str, ...]:
        """See `RecordStore`."""
        sql = """SELECT id FROM episodes WHERE scope = %s AND team = %s AND closed_at IS NOT NULL AND NOT erased
                 ORDER BY id"""

        def work(c: Server) -> tuple[str, ...]:
            ids = [id for (id,) in c.execute(sql, (scope, group)).fetchall()]
            if ids:
                queue(c, scope, group, ids)
            return tuple(ids)

        return self._server.write(work)

    def revise(self, scope: str, episode: str, verdict: Outcome, source: str) -> None:
        """See `RecordStore`."""

        def work(c: Server) -> None:
            share(c, scope)
            row = _held(c, scope, episode)
            if row is None or row[0] is None:
                state = "is still open" if row else "does not exist"
                raise ConfigError(f"episode {episode!r} {state}", accepted="a closed episode of this scope")
            sql = "UPDATE episodes SET verdict = %s, source = %s WHERE scope = %s AND id = %s"
            c.execute(sql, (verdict, source, scope, episode))
            self._settle(c, scope, episode, row[1], -1)
            self._settle(c, scope, episode, verdict, +1)
            again(c, scope, row[2] or episode, [] if row[2] else [episode])

        self._server.write(work)

    def episode(self, scope: str, id: str) -> Episode | None:
        """See `RecordStore`."""

        def work(c: Server) -> Episode | None:
            row = c.execute(f"SELECT {_EPISODE} FROM episodes WHERE scope = %s AND id = %s", (scope, id)).fetchone()
            sql = "SELECT data FROM steps WHERE scope = %s AND episode = %s ORDER BY number"
            steps = c.execute(sql, (scope, id)).fetchall()
            return episode_of(scope, row, tuple(json.loads(data) for (data,) in steps)) if row else None

        return self._server.read(work, together=True)

    def episodes(self, scope: str, *, limit: int = 1000) -> list[Episode]:
        """See `RecordStore`."""
        sql = f"SELECT {_EPISODE} FROM episodes WHERE scope = %s ORDER BY opened_at DESC, id DESC LIMIT %s"
        return [
            episode_of(scope, row) for row in self._server.read(lambda c: c.execute(sql, (scope, limit)).fetchall())
        ]

    def abandoned(self, scope: str) -> list[str]:
        """See `RecordStore`."""
        sql = """SELECT id, owner, opened_at FROM episodes
                 WHERE scope = %s AND closed_at IS NULL AND NOT erased ORDER BY id"""
        rows = self._server.read(lambda c: c.execute(sql, (scope,)).fetchall())
        return [id for id, owner, opened in rows if forsaken(owner, opened, self._clock())]

    def shown(self, scope: str, ids: Sequence[str], episode: str) -> None:
        """See `RecordStore`."""

        def work(c: Server) -> None:
            share(c, scope)
            _count(c, scope, ids, retrieved=1)
            c.execute(_SHOWN, (scope, episode, sorted(set(ids))))

        self._server.write(work)

    def used(self, scope: str, ids: Sequence[str], episode: str) -> None:
        """See `RecordStore`."""

        def work(c: Server) -> None:
            share(c, scope)
            row = _held(c, scope, episode)
            if row is None or row[0] is not None:
                raise ConfigError(f"episode {episode!r} is not open", accepted="an open episode of this scope")
            c.execute(_USED, (scope, episode, sorted(set(ids))))

        self._server.write(work)

    def uses(self, scope: str, episode: str) -> list[tuple[str, bool]]:
        """See `RecordStore`."""
        sql = "SELECT id, used FROM uses WHERE scope = %s AND episode = %s ORDER BY id"
        return [(row[0], row[1]) for row in self._server.read(lambda c: c.execute(sql, (scope, episode)).fetchall())]

    def _settle(self, c: Server, scope: str, episode: str, verdict: str, sign: int) -> None:
        """Count an episode for what it used: the declared records or, with none declared, all it saw."""
        sql = "SELECT id, used FROM uses WHERE scope = %s AND episode = %s"
        rows = c.execute(sql, (scope, episode)).fetchall()
        ids = [id for id, used in rows if used] or [id for id, _ in rows]
        helped, harmed = sign * (verdict == "success"), sign * (verdict == "failure")
        if ids:
            _count(c, scope, ids, used=sign, helped=helped, harmed=harmed, at=self._clock())

    def harmful(self, scope: str) -> list[str]:
        """See `RecordStore`."""
        sql = """SELECT u.id FROM utility u JOIN records r ON r.scope = u.scope AND r.id = u.id
                 WHERE u.scope = %s AND r.status = 'active' AND u.used >= 3 AND 2 * u.harmed >= u.used ORDER BY u.id"""
        return [id for (id,) in self._server.read(lambda c: c.execute(sql, (scope,)).fetchall())]

    def absolve(self, scope: str, ids: Sequence[str]) -> None:
        """See `RecordStore`."""
        sql = """UPDATE utility SET used = 0, helped = 0, harmed = 0 WHERE scope = %(scope)s AND id IN
                 (SELECT id FROM utility WHERE scope = %(scope)s AND id = ANY(%(ids)s) ORDER BY id FOR UPDATE)"""
        self._server.write(lambda c: c.execute(sql, {"scope": scope, "ids": list(ids)}))


def _held(c: Server, scope: str, episode: str) -> tuple[Any, ...] | None:
    """(closed_at, verdict, team) of an episode, which nobody else changes now; None if it is erased or unknown."""
    sql = "SELECT closed_at, verdict, team FROM episodes WHERE scope = %s AND id = %s AND NOT erased FOR UPDATE"
    return c.execute(sql, (scope, episode)).fetchone()


def _known(c: Server, scope: str, episode: str) -> tuple[Any, ...]:
    row = _held(c, scope, episode)
    if row is None:
        raise ConfigError(f"no episode {episode!r}", accepted="an episode of this scope")
    return row


def _count(
    c: Server,
    scope: str,
    ids: Sequence[str],
    *,
    retrieved: int = 0,
    used: int = 0,
    helped: int = 0,
    harmed: int = 0,
    at: float | None = None,
) -> None:
    """Add to the counters of records that exist; increments, so that writers commute."""
    by = {"retrieved": retrieved, "used": used, "helped": helped, "harmed": harmed}
    c.execute(_COUNT, {"scope": scope, "ids": list(ids), "at": at, **by})
