"""Forgetting for good in SQLite: rows, versions, vectors, words, journal, then the bytes themselves.

`secure_delete` overwrites freed cells with zeros; the word index is merged so that its deleted
entries go; `VACUUM` rewrites the file and the write-ahead log is cut to nothing. Backups that a
migration left beside the file hold what is forgotten, so they are deleted, and so are the scope's kept indexes.
"""

from __future__ import annotations

import glob
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from remnant.memory.rows import episode_sources, tenant_word
from remnant.memory.sqlite.connection import Connections
from remnant.memory.sqlite.records import bump
from remnant.memory.store import Receipt


class Erase:
    """The part of `SqliteStore` that erases; see `RecordStore` for what each method does."""

    _files: Connections

    def _unindex(self, c: sqlite3.Connection, number: int, tenant: str, words: str) -> None:
        raise NotImplementedError

    def erase(self, scope: str, ids: Sequence[str]) -> Receipt:
        """See `RecordStore`."""
        gone: list[str] = []
        counts = {"versions": 0, "vectors": 0, "words": 0, "steps": 0}
        sources: set[str] = set()
        with self._files.write() as c:
            derived = [id for id in _derived(c, scope, ids) if id not in ids]
            for id in dict.fromkeys(ids):
                sql = "SELECT number, status, tenant, words FROM records WHERE scope = ? AND id = ?"
                row = c.execute(sql, (scope, id)).fetchone()
                if not row:
                    continue
                gone.append(id)
                sources |= _sources(c, scope, id)
                if row[1] == "active":
                    self._unindex(c, row[0], row[2], row[3])
                    counts["words"] += 1
                sql = """UPDATE changes SET reason = '' WHERE number IN
                         (SELECT change FROM versions WHERE scope = ? AND id = ?)"""
                c.execute(sql, (scope, id))
                for table in ("versions", "vectors"):
                    counts[table] += c.execute(f"DELETE FROM {table} WHERE scope = ? AND id = ?", (scope, id)).rowcount
                for table in ("records", "utility", "uses"):
                    c.execute(f"DELETE FROM {table} WHERE scope = ? AND id = ?", (scope, id))
            erased = [episode for episode in sorted(sources) if _stub(c, scope, episode, counts)]
            bump(c, scope)
        place = self._files.path
        for backup in place.parent.glob(f"{glob.escape(place.name)}.v*.backup"):
            backup.unlink()
        for kept in place.parent.glob(f"{glob.escape(sidecar_name(place, scope))}*"):
            kept.unlink(missing_ok=True)
        clean = self.compact()
        remains = () if clean else ("free space in the file and its log, until nobody reads and `compact` runs",)
        return Receipt(
            tuple(gone), **counts, episodes=tuple(erased), derived=tuple(derived), clean=clean, remains=remains
        )

    def compact(self) -> bool:
        """See `RecordStore`."""
        try:
            connection = self._files.get()
            if self._files.fts5:
                connection.execute("INSERT INTO word_index (word_index) VALUES ('optimize')")
            connection.execute("VACUUM")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy
        except sqlite3.OperationalError:
            return False


def sidecar_name(file: Path, scope: str) -> str:
    """How the names of the files begin that hold indexes of a scope; tells no name of it."""
    return f"{file.name}.{tenant_word(scope)}."


def _derived(c: sqlite3.Connection, scope: str, ids: Sequence[str]) -> list[str]:
    sql = """SELECT DISTINCT r.id FROM records r, json_each(r.data, '$.parents') p
             WHERE r.scope = ? AND p.value = ? ORDER BY r.id"""
    return list(dict.fromkeys(id for parent in ids for (id,) in c.execute(sql, (scope, parent)).fetchall()))


def _sources(c: sqlite3.Connection, scope: str, id: str) -> set[str]:
    """Episodes that any version of a record came from."""
    rows = c.execute("SELECT data FROM versions WHERE scope = ? AND id = ?", (scope, id)).fetchall()
    return {source for (data,) in rows for source in episode_sources(data)}


def _stub(c: sqlite3.Connection, scope: str, episode: str, counts: dict[str, int]) -> bool:
    """Leave of an episode only that it was; it is never distilled again."""
    sql = "UPDATE episodes SET task = '', metadata = '{}', erased = 1 WHERE scope = ? AND id = ?"
    found = c.execute(sql, (scope, episode)).rowcount
    sql = "DELETE FROM steps WHERE scope = ? AND episode = ?"
    counts["steps"] += c.execute(sql, (scope, episode)).rowcount
    sql = "UPDATE jobs SET state = 'done', claim = '', error = '' WHERE scope = ? AND key = ?"
    c.execute(sql, (scope, episode))
    return bool(found)
