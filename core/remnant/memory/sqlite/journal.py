"""Episodes, their steps, the queue of distillations, and the counters of use, in SQLite."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from remnant.errors import ConfigError
from remnant.memory.episode import Episode, Job
from remnant.memory.owner import forsaken
from remnant.memory.record import Outcome
from remnant.memory.rows import episode_of, lease_over, to_json
from remnant.memory.sqlite.connection import Connections

_EPISODE = "id, task, verdict, source, team, opened_at, closed_at, metadata, erased"


class Journal:
    """The half of `SqliteStore` that holds the journal; see `RecordStore` for what each method does."""

    _files: Connections
    _clock: Callable[[], float] = staticmethod(time.time)

    def open_episode(self, episode: Episode, owner: str) -> bool:
        """See `RecordStore`."""
        row = (episode.scope, episode.id, episode.task, "unknown", "", episode.group, episode.opened_at, None, owner)
        with self._files.write() as c:
            sql = "INSERT OR IGNORE INTO episodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)"
            return bool(c.execute(sql, (*row, to_json(episode.metadata))).rowcount)

    def add_step(self, scope: str, episode: str, step: Mapping[str, Any]) -> int:
        """See `RecordStore`."""
        with self._files.write() as c:
            row = self._open_row(c, scope, episode)
            if row is None or row[0] is not None:
                state = "is closed" if row else "does not exist"
                raise ConfigError(f"episode {episode!r} {state}", accepted="an open episode of this scope")
            sql = "SELECT coalesce(max(number) + 1, 0) FROM steps WHERE scope = ? AND episode = ?"
            number = c.execute(sql, (scope, episode)).fetchone()[0]
            c.execute("INSERT INTO steps VALUES (?, ?, ?, ?)", (scope, episode, number, to_json(step)))
        return number

    def _open_row(self, c: sqlite3.Connection, scope: str, episode: str) -> Any:
        sql = "SELECT closed_at, verdict, team FROM episodes WHERE scope = ? AND id = ? AND erased = 0"
        return c.execute(sql, (scope, episode)).fetchone()

    def close_episode(self, scope: str, episode: str, verdict: Outcome, source: str, *, queue: bool) -> bool:
        """See `RecordStore`."""
        with self._files.write() as c:
            row = self._open_row(c, scope, episode)
            if row is None:
                raise ConfigError(f"no episode {episode!r}", accepted="an episode of this scope")
            if row[0] is not None:
                return False
            sql = "UPDATE episodes SET closed_at = ?, verdict = ?, source = ? WHERE scope = ? AND id = ?"
            c.execute(sql, (self._clock(), verdict, source, scope, episode))
            self._settle(c, scope, episode, verdict, +1)
            if queue and not row[2]:
                _queue_again(c, scope, episode, [episode])
        return True

    def reopen_episode(self, scope: str, episode: str, owner: str) -> bool:
        """See `RecordStore`."""
        with self._files.write() as c:
            row = self._open_row(c, scope, episode)
            if row is None:
                raise ConfigError(f"no episode {episode!r}", accepted="an episode of this scope")
            if row[0] is None:
                return False
            self._settle(c, scope, episode, row[1], -1)
            sql = """UPDATE episodes SET closed_at = NULL, verdict = 'unknown', source = '', owner = ?
                     WHERE scope = ? AND id = ?"""
            c.execute(sql, (owner, scope, episode))
            sql = "UPDATE jobs SET state = 'done', claim = '' WHERE scope = ? AND key = ?"
            c.execute(sql, (scope, episode))  # whoever distils it just now loses the job; closing queues it again
        return True

    def queue_group(self, scope: str, group: str) -> tuple[str, ...]:
        """See `RecordStore`."""
        with self._files.write() as c:
            sql = """SELECT id FROM episodes WHERE scope = ? AND team = ? AND closed_at IS NOT NULL AND erased = 0
                     ORDER BY id"""
            ids = [id for (id,) in c.execute(sql, (scope, group)).fetchall()]
            if ids:
                _queue(c, scope, group, ids)
        return tuple(ids)

    def revise(self, scope: str, episode: str, verdict: Outcome, source: str) -> None:
        """See `RecordStore`."""
        with self._files.write() as c:
            row = self._open_row(c, scope, episode)
            if row is None or row[0] is None:
                state = "is still open" if row else "does not exist"
                raise ConfigError(f"episode {episode!r} {state}", accepted="a closed episode of this scope")
            self._settle(c, scope, episode, row[1], -1)
            self._settle(c, scope, episode, verdict, +1)
            sql = "UPDATE episodes SET verdict = ?, source = ? WHERE scope = ? AND id = ?"
            c.execute(sql, (verdict, source, scope, episode))
            key = row[2] or episode
            _queue_again(c, scope, key, [] if row[2] else [episode])

    def episode(self, scope: str, id: str) -> Episode | None:
        """See `RecordStore`."""
        with self._files.read() as c:
            row = c.execute(f"SELECT {_EPISODE} FROM episodes WHERE scope = ? AND id = ?", (scope, id)).fetchone()
            sql = "SELECT data FROM steps WHERE scope = ? AND episode = ? ORDER BY number"
            steps = c.execute(sql, (scope, id)).fetchall()
        return episode_of(scope, row, tuple(json.loads(data) for (data,) in steps)) if row else None

    def episodes(self, scope: str, *, limit: int = 1000) -> list[Episode]:
        """See `RecordStore`."""
        with self._files.read() as c:
            sql = f"SELECT {_EPISODE} FROM episodes WHERE scope = ? ORDER BY opened_at DESC, id DESC LIMIT ?"
            return [episode_of(scope, row) for row in c.execute(sql, (scope, limit)).fetchall()]

    def abandoned(self, scope: str) -> list[str]:
        """See `RecordStore`."""
        with self._files.read() as c:
            sql = """SELECT id, owner, opened_at FROM episodes
                     WHERE scope = ? AND closed_at IS NULL AND erased = 0 ORDER BY id"""
            rows = c.execute(sql, (scope,)).fetchall()
        return [id for id, owner, opened in rows if forsaken(owner, opened, self._clock())]

    def claim(self, scope: str, owner: str, lease: float) -> Job | None:
        """See `RecordStore`."""
        now = self._clock()
        with self._files.read() as c:  # most of the time there is nothing: do not take the write lock
            sql = "SELECT 1 FROM jobs WHERE scope = ? AND state IN ('queued', 'running') LIMIT 1"
            if not c.execute(sql, (scope,)).fetchone():
                return None
        with self._files.write() as c:
            sql = """SELECT key, episodes, change, attempts, state, ready, lease, owner FROM jobs
                     WHERE scope = ? AND state IN ('queued', 'running') ORDER BY rowid"""
            for key, episodes, change, attempts, state, ready, until, holder in c.execute(sql, (scope,)).fetchall():
                free = ready <= now if state == "queued" else lease_over(holder, until, now, lease)
                if free:
                    token = secrets.token_hex(8)
                    sql = (
                        "UPDATE jobs SET state = 'running', claim = ?, owner = ?, lease = ? WHERE scope = ? AND key = ?"
                    )
                    c.execute(sql, (token, owner, now + lease, scope, key))
                    return Job(key, token, tuple(json.loads(episodes)), change, attempts)
        return None

    def fail(self, scope: str, job: Job, error: str, *, retry_in: float | None) -> None:
        """See `RecordStore`."""
        state, ready = ("failed", 0.0) if retry_in is None else ("queued", self._clock() + retry_in)
        with self._files.write() as c:
            sql = """UPDATE jobs SET state = ?, ready = ?, claim = '', attempts = attempts + 1, error = ?
                     WHERE scope = ? AND key = ? AND claim = ?"""
            c.execute(sql, (state, ready, error, scope, job.key, job.claim))

    def release(self, scope: str, job: Job) -> None:
        """See `RecordStore`."""
        with self._files.write() as c:
            sql = "UPDATE jobs SET state = 'queued', claim = '' WHERE scope = ? AND key = ? AND claim = ?"
            c.execute(sql, (scope, job.key, job.claim))

    def pending(self, scope: str) -> int:
        """See `RecordStore`."""
        with self._files.read() as c:
            sql = "SELECT count(*) FROM jobs WHERE scope = ? AND state IN ('queued', 'running')"
            return c.execute(sql, (scope,)).fetchone()[0]

    def jobs(self, scope: str) -> list[tuple[str, str, int, str]]:
        """See `RecordStore`."""
        with self._files.read() as c:
            sql = "SELECT key, state, attempts, error FROM jobs WHERE scope = ? ORDER BY rowid"
            return c.execute(sql, (scope,)).fetchall()

    def shown(self, scope: str, ids: Sequence[str], episode: str) -> None:
        """See `RecordStore`."""
        with self._files.write() as c:
            for id in ids:
                count(c, scope, id, "retrieved", 1)
                c.execute("INSERT OR IGNORE INTO uses VALUES (?, ?, ?, 0)", (scope, episode, id))

    def used(self, scope: str, ids: Sequence[str], episode: str) -> None:
        """See `RecordStore`."""
        with self._files.write() as c:
            row = self._open_row(c, scope, episode)
            if row is None or row[0] is not None:
                raise ConfigError(f"episode {episode!r} is not open", accepted="an open episode of this scope")
            sql = "INSERT INTO uses VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET used = 1"
            c.executemany(sql, [(scope, episode, id) for id in ids])

    def uses(self, scope: str, episode: str) -> list[tuple[str, bool]]:
        """See `RecordStore`."""
        with self._files.read() as c:
            sql = "SELECT id, used FROM uses WHERE scope = ? AND episode = ? ORDER BY id"
            return [(id, bool(used)) for id, used in c.execute(sql, (scope, episode)).fetchall()]

    def _settle(self, c: sqlite3.Connection, scope: str, episode: str, verdict: str, sign: int) -> None:
        """Count an episode for what it used: the declared records or, with none declared, all it saw."""
        rows = c.execute("SELECT id, used FROM uses WHERE scope = ? AND episode = ?", (scope, episode)).fetchall()
        for id in [id for id, used in rows if used] or [id for id, _ in rows]:
            count(c, scope, id, "used", sign)
            if verdict in ("success", "failure"):
                count(c, scope, id, "helped" if verdict == "success" else "harmed", sign)
            c.execute("UPDATE utility SET last_used = ? WHERE scope = ? AND id = ?", (self._clock(), scope, id))

    def harmful(self, scope: str) -> list[str]:
        """See `RecordStore`."""
        sql = """SELECT u.id FROM utility u JOIN records r ON r.scope = u.scope AND r.id = u.id
                 WHERE u.scope = ? AND r.status = 'active' AND u.used >= 3 AND 2 * u.harmed >= u.used ORDER BY u.id"""
        with self._files.read() as c:
            return [id for (id,) in c.execute(sql, (scope,)).fetchall()]

    def absolve(self, scope: str, ids: Sequence[str]) -> None:
        """See `RecordStore`."""
        with self._files.write() as c:
            sql = "UPDATE utility SET used = 0, helped = 0, harmed = 0 WHERE scope = ? AND id = ?"
            c.executemany(sql, [(scope, id) for id in ids])


def count(c: sqlite3.Connection, scope: str, id: str, counter: str, by: int) -> None:
    """Add to one counter of a record that exists; an increment, so that writers commute."""
    sql = f"""INSERT INTO utility (scope, id, {counter}) SELECT scope, id, max(0, ?1) FROM records
              WHERE scope = ?2 AND id = ?3 ON CONFLICT (scope, id) DO UPDATE SET {counter} = max(0, {counter} + ?1)"""
    c.execute(sql, (by, scope, id))


def _queue_again(c: sqlite3.Connection, scope: str, key: str, episodes: Sequence[str]) -> None:
    """Another round of a distillation that there was, or the first one of these episodes."""
    again = "UPDATE jobs SET state = 'queued', claim = '', ready = 0, attempts = 0 WHERE scope = ? AND key = ?"
    if not c.execute(again, (scope, key)).rowcount and episodes:
        _queue(c, scope, key, episodes)


def _queue(c: sqlite3.Connection, scope: str, key: str, episodes: Sequence[str]) -> None:
    sql = "INSERT OR IGNORE INTO jobs (scope, key, episodes, state) VALUES (?, ?, ?, 'queued')"
    c.execute(sql, (scope, key, json.dumps(list(episodes))))
