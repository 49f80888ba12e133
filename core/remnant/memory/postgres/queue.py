"""The queue of distillations in PostgreSQL: whoever takes a job skips the rows that others are just taking."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from remnant.memory.episode import Job
from remnant.memory.postgres.connection import Connections
from remnant.memory.postgres.schema import Server
from remnant.memory.rows import lease_over

_OPEN: Final = "SELECT FROM jobs WHERE scope = %s AND state IN ('queued', 'running') LIMIT 1"
_RUNNING: Final = "SELECT key, claim, owner, lease FROM jobs WHERE scope = %s AND state = 'running' ORDER BY number"
_TAKE: Final = """UPDATE jobs SET state = 'running', claim = %(token)s, owner = %(owner)s, lease = %(until)s
  WHERE scope = %(scope)s"""
_GIVEN: Final = "RETURNING key, episodes, change, attempts"
_NEXT: Final = """AND key = (SELECT key FROM jobs WHERE scope = %(scope)s AND state = 'queued' AND ready <= %(now)s
  ORDER BY number LIMIT 1 FOR UPDATE SKIP LOCKED)"""
_LEFT: Final = "AND key = %(key)s AND claim = %(claim)s AND state = 'running'"


class Queue:
    """The part of `PostgresStore` that queues; see `RecordStore` for what each method does."""

    _server: Connections
    _clock: Callable[[], float] = staticmethod(time.time)

    def claim(self, scope: str, owner: str, lease: float) -> Job | None:
        """See `RecordStore`; what others left behind comes first."""
        if not self._server.read(lambda c: c.execute(_OPEN, (scope,)).fetchone() is not None):
            return None

        def work(c: Server) -> Job | None:
            now, token = self._clock(), secrets.token_hex(8)
            values: dict[str, Any] = {"scope": scope, "token": token, "owner": owner, "until": now + lease, "now": now}
            for key, claim, holder, until in c.execute(_RUNNING, (scope,)).fetchall():
                if lease_over(holder, until, now, lease):
                    row = c.execute(f"{_TAKE} {_LEFT} {_GIVEN}", {**values, "key": key, "claim": claim}).fetchone()
                    if row is not None:
                        return Job(row[0], token, tuple(row[1]), row[2], row[3])
            row = c.execute(f"{_TAKE} {_NEXT} {_GIVEN}", values).fetchone()
            return Job(row[0], token, tuple(row[1]), row[2], row[3]) if row is not None else None

        return self._server.write(work)

    def fail(self, scope: str, job: Job, error: str, *, retry_in: float | None) -> None:
        """See `RecordStore`."""
        state, ready = ("failed", 0.0) if retry_in is None else ("queued", self._clock() + retry_in)
        sql = """UPDATE jobs SET state = %s, ready = %s, claim = '', attempts = attempts + 1, error = %s
                 WHERE scope = %s AND key = %s AND claim = %s"""
        self._server.write(lambda c: c.execute(sql, (state, ready, error, scope, job.key, job.claim)))

    def release(self, scope: str, job: Job) -> None:
        """See `RecordStore`."""
        sql = "UPDATE jobs SET state = 'queued', claim = '' WHERE scope = %s AND key = %s AND claim = %s"
        self._server.write(lambda c: c.execute(sql, (scope, job.key, job.claim)))

    def pending(self, scope: str) -> int:
        """See `RecordStore`."""
        sql = "SELECT count(*) FROM jobs WHERE scope = %s AND state IN ('queued', 'running')"
        row = self._server.read(lambda c: c.execute(sql, (scope,)).fetchone())
        return row[0] if row else 0

    def jobs(self, scope: str) -> list[tuple[str, str, int, str]]:
        """See `RecordStore`."""
        sql = "SELECT key, state, attempts, error FROM jobs WHERE scope = %s ORDER BY number"
        rows = self._server.read(lambda c: c.execute(sql, (scope,)).fetchall())
        return [(key, state, attempts, error) for key, state, attempts, error in rows]


def again(c: Server, scope: str, key: str, episodes: Sequence[str]) -> None:
    """Another round of a distillation that there was, or the first one of these episodes."""
    sql = "UPDATE jobs SET state = 'queued', claim = '', ready = 0, attempts = 0 WHERE scope = %s AND key = %s"
    if not c.execute(sql, (scope, key)).rowcount and episodes:
        queue(c, scope, key, episodes)


def queue(c: Server, scope: str, key: str, episodes: Sequence[str]) -> None:
    """The first round of a distillation; nothing if there was one."""
    sql = "INSERT INTO jobs (scope, key, episodes, state) VALUES (%s, %s, %s, 'queued') ON CONFLICT DO NOTHING"
    c.execute(sql, (scope, key, list(episodes)))


def call_off(c: Server, scope: str, keys: Sequence[str]) -> None:
    """End distillations without a result; whoever does one just now loses it."""
    sql = """UPDATE jobs SET state = 'done', claim = '', error = '' WHERE scope = %(scope)s AND key IN
             (SELECT key FROM jobs WHERE scope = %(scope)s AND key = ANY(%(keys)s) ORDER BY key FOR UPDATE)"""
    c.execute(sql, {"scope": scope, "keys": list(keys)})
