"""Forgetting for good on a server: rows, versions, vectors, words and journal, then what is left of them on disk.

A deleted row stays in its table's file until VACUUM, and in free space of the file until that is used again. So
`erase` ends with a VACUUM, which disturbs nobody, and `compact` rewrites every table without what was erased,
which keeps all others out of it meanwhile. A store opened with `vacuum="full"` does that at every erasure.

What no client of a server can promise: its write-ahead log, the archive of that log, replicas and backups hold
what is forgotten until they are recycled or deleted. The receipt says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Literal

from remnant.lazy import needs
from remnant.memory.errors import StoreError
from remnant.memory.postgres.connection import Connections
from remnant.memory.postgres.queue import call_off
from remnant.memory.postgres.schema import TABLES, Server
from remnant.memory.postgres.write import hold
from remnant.memory.rows import episode_sources
from remnant.memory.store import Receipt

with needs("postgres", wanted_by="a memory in PostgreSQL"):
    from psycopg.errors import Diagnostic
    from psycopg.sql import SQL, Identifier

WAIT_MS: Final = 1000
"""How long `compact` waits for a table, in ms: everybody else waits behind it."""

_PLAIN: Final = SQL("VACUUM (INDEX_CLEANUP ON) {}")
_FULL: Final = SQL("VACUUM (FULL, ANALYZE, VERBOSE) {}")
_LOG: Final = "the server's write-ahead log and its archive, until they are recycled"
_COPIES: Final = "replicas and backups of the server"
_SPACE: Final = "free space in the tables' files, until it is used again or `compact` ran"
_DERIVED: Final = "SELECT id, parents FROM records WHERE scope = %s AND parents && %s ORDER BY id"


class Erase:
    """The part of `PostgresStore` that erases; see `RecordStore` for what each method does."""

    _server: Connections
    _vacuum: Literal["plain", "full"] = "plain"

    def erase(self, scope: str, ids: Sequence[str]) -> Receipt:
        """See `RecordStore`; `Receipt.remains` names what a server keeps nevertheless."""
        wanted = list(dict.fromkeys(ids))
        erased = self._server.write(lambda c: _erase(c, scope, wanted))
        if not erased[0]:
            return Receipt(*erased, clean=True)
        clean = self._vacuum == "full" and self.compact()
        if not clean:
            self._vacuumed(_PLAIN)
        return Receipt(*erased, clean=clean, remains=(_LOG, _COPIES) if clean else (_SPACE, _LOG, _COPIES))

    def compact(self) -> bool:
        """Rewrite every table, one after another; nobody can use a table meanwhile.

        Returns:
            False if a table was in use for too long, if a transaction elsewhere may still look at what was
            erased, or if the server does not let us.
        """
        return self._vacuumed(_FULL)

    def _vacuumed(self, command: SQL) -> bool:
        kept: list[bool] = []
        try:
            with self._server.alone() as c:
                c.execute("SELECT set_config('lock_timeout', %s, false)", (str(WAIT_MS),))
                c.add_notice_handler(lambda notice: kept.append(_kept(notice)))  # a notice lasts no longer than this
                for table in TABLES:
                    c.execute(command.format(Identifier(table)))
        except StoreError:
            return False
        return not any(kept)


_Erased = tuple[tuple[str, ...], int, int, int, int, tuple[str, ...], tuple[str, ...]]


def _erase(c: Server, scope: str, ids: list[str]) -> _Erased:
    """All that a receipt tells before the rows' bytes are dealt with."""
    if c.execute("SELECT FROM records WHERE scope = %s AND id = ANY(%s) LIMIT 1", (scope, ids)).fetchone() is None:
        return (), 0, 0, 0, 0, (), _derived(c, scope, ids)
    hold(c, scope, alone=True)
    here = (scope, ids)
    sql = "SELECT id, status, length FROM records WHERE scope = %s AND id = ANY(%s)"
    found = {id: (status == "active", length) for id, status, length in c.execute(sql, here).fetchall()}
    sql = "SELECT data FROM versions WHERE scope = %s AND id = ANY(%s)"
    sources = sorted({source for (data,) in c.execute(sql, here).fetchall() for source in episode_sources(data)})
    episodes, steps = _stubs(c, scope, sources)
    derived = _derived(c, scope, ids)
    sql = """UPDATE changes SET reason = '' WHERE scope = %(scope)s AND reason <> '' AND number IN
             (SELECT change FROM versions WHERE scope = %(scope)s AND id = ANY(%(ids)s))"""
    c.execute(sql, {"scope": scope, "ids": ids})
    versions = c.execute("DELETE FROM versions WHERE scope = %s AND id = ANY(%s)", here).rowcount
    vectors = c.execute("DELETE FROM vectors WHERE scope = %s AND id = ANY(%s)", here).rowcount
    c.execute("DELETE FROM records WHERE scope = %s AND id = ANY(%s)", here)
    c.execute("DELETE FROM utility WHERE scope = %s AND id = ANY(%s)", here)
    c.execute("DELETE FROM uses WHERE scope = %s AND id = ANY(%s)", here)
    call_off(c, scope, sources)
    words = sum(active for active, _ in found.values())
    sql = "UPDATE scopes SET epoch = epoch + 1, records = records - %s, words = words - %s WHERE scope = %s"
    c.execute(sql, (words, sum(length for _, length in found.values()), scope))
    return tuple(id for id in ids if id in found), versions, vectors, words, steps, episodes, derived


def _derived(c: Server, scope: str, ids: list[str]) -> tuple[str, ...]:
    """Ids of the records made of these, in the order of their parents."""
    rows: list[Any] = c.execute(_DERIVED, (scope, ids)).fetchall()
    made = [id for parent in ids for id, parents in rows if parent in parents and id not in ids]
    return tuple(dict.fromkeys(made))


def _stubs(c: Server, scope: str, episodes: list[str]) -> tuple[tuple[str, ...], int]:
    """Leave of episodes only that they were, and never distil them again; which there were, and steps erased."""
    sql = "SELECT id FROM episodes WHERE scope = %s AND id = ANY(%s) ORDER BY id FOR UPDATE"
    found = [id for (id,) in c.execute(sql, (scope, episodes)).fetchall()]
    sql = "UPDATE episodes SET task = '', metadata = '{}', erased = true WHERE scope = %s AND id = ANY(%s)"
    c.execute(sql, (scope, found))
    steps = c.execute("DELETE FROM steps WHERE scope = %s AND episode = ANY(%s)", (scope, episodes)).rowcount
    return tuple(found), steps


def _kept(notice: Diagnostic) -> bool:
    """Whether a notice says that a table was passed over, or that dead rows had to stay."""
    if notice.severity_nonlocalized == "WARNING":
        return True
    number = re.match(r"\D*(\d+)", notice.message_detail or "")
    return number is not None and int(number[1]) > 0
