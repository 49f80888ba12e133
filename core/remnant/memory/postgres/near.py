"""Search by meaning on the server itself, for scopes whose vectors are too many to be held in every process.

A scope of `SERVED` records or more gets an HNSW index of its own, so that no scope's search walks through
another's vectors. It is built beside the running work, once, by whoever first finds it missing; until it is there,
and in smaller scopes, the caller compares all vectors, which is exact and, once they are read, quicker.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Iterable
from typing import Any, Final

from remnant.index.found import Found
from remnant.lazy import needs
from remnant.memory.errors import StoreError, other_size
from remnant.memory.postgres.connection import Connections
from remnant.memory.postgres.schema import Server
from remnant.memory.postgres.write import size_of
from remnant.memory.record import digest

with needs("postgres", wanted_by="a memory in PostgreSQL"):
    from psycopg.sql import SQL, Identifier, Literal

SERVED = 100_000
"""Records of a scope from which on the server searches. Reading so many vectors of 384 numbers takes seconds."""

LOOK = 10.0
"""Seconds for which is remembered who searches."""

LONGEST: Final = 2000
"""Numbers of a vector at most: pgvector's HNSW takes no more."""

_BUILD: Final = SQL("""CREATE INDEX CONCURRENTLY {name} ON vectors USING hnsw ((vector::vector({size}))
  vector_ip_ops) WHERE scope = {scope} AND model = {model}""")
_VALID: Final = """SELECT i.indisvalid FROM pg_index i JOIN pg_class n ON n.oid = i.indexrelid
  WHERE i.indrelid = 'vectors'::regclass AND n.relname = %s"""
_CLOSEST: Final = SQL("""SELECT v.id, -(v.vector::vector({size}) <#> %(query)s) FROM vectors v
  JOIN records r ON r.scope = v.scope AND r.id = v.id AND r.status = 'active'
  WHERE v.scope = %(scope)s AND v.model = %(model)s ORDER BY v.vector::vector({size}) <#> %(query)s LIMIT %(k)s""")
_OF: Final = """SELECT v.id, -(v.vector <#> %(query)s) FROM vectors v
  JOIN records r ON r.scope = v.scope AND r.id = v.id AND r.status = 'active'
  WHERE v.scope = %(scope)s AND v.model = %(model)s AND v.id = ANY(%(ids)s)"""
_CARE: Final = (
    """SELECT set_config('hnsw.ef_search', %s, true), set_config('hnsw.iterative_scan', 'strict_order', true)"""
)


class Near:
    """The part of `PostgresStore` that searches vectors; see `remnant.memory.scans.Searches`."""

    _server: Connections

    def __init__(self) -> None:
        """Know nothing yet."""
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[float, bool]] = {}
        self._building: set[str] = set()

    def nearest(self, scope: str, model: str, query: bytes, k: int, also: Iterable[str] = ()) -> Found | None:
        """See `remnant.memory.scans.Searches`.

        Raises:
            EmbedderError: the stored vectors have another size.
        """
        size = len(query) // 4
        if self._server.vectors != "vector" or size > LONGEST or not self._served(scope, model):
            return None
        ids = list(also)
        return self._server.read(lambda c: self._search(c, scope, model, query, k, ids), together=True)

    def _search(self, c: Server, scope: str, model: str, query: bytes, k: int, ids: list[str]) -> Found:
        size, stored = len(query) // 4, size_of(c, self._server, scope, model)
        if stored is not None and stored != size:
            raise other_size(model, size, stored)
        c.execute(_CARE, (str(min(1000, max(100, 2 * k))),))
        values: dict[str, Any] = {
            "scope": scope,
            "model": model,
            "k": k,
            "ids": ids,
            "query": self._server.vector(query),
        }
        closest = _CLOSEST.format(size=Literal(size))  # not prepared: a plan for any scope cannot use one scope's index
        best: dict[str, float] = dict(c.execute(closest, values, prepare=False).fetchall())
        of: dict[str, float] = dict(c.execute(_OF, values).fetchall())
        away = array("f", [-number for number in array("f", query)]).tobytes()
        values |= {"query": self._server.vector(away), "k": 1}
        furthest = [-cosine for _, cosine in c.execute(closest, values, prepare=False).fetchall()]
        known = [*best.values(), *of.values(), *furthest] or [0.0]
        return Found(best, of, min(known), max(known), seen=len(best) + len(of))

    def _served(self, scope: str, model: str) -> bool:
        """Whether the server has an index for this scope; has one built if it should."""
        now = time.monotonic()
        with self._lock:
            until, known = self._known.get((scope, model), (0.0, False))
        if now < until:
            return known
        name = index_name(scope, model)
        sql = "SELECT records FROM scopes WHERE scope = %s"
        records = self._server.read(lambda c: _one(c, sql, scope)) or 0
        valid = records >= SERVED and self._server.read(lambda c: _one(c, _VALID, name))
        if valid is None:
            self._build(scope, model, name)
        with self._lock:
            self._known[scope, model] = now + LOOK, bool(valid)
        return bool(valid)

    def _build(self, scope: str, model: str, name: str) -> None:
        with self._lock:
            if name in self._building or self._server.read_only:
                return
            self._building.add(name)
        threading.Thread(target=self.build, args=(scope, model), name="remnant-index", daemon=True).start()

    def build(self, scope: str, model: str) -> bool:
        """Build the index of a scope and embedder now, unless another process does; whether it is there.

        Nobody is kept waiting; what is written meanwhile is in it. `_building` keeps its name until it is done.
        """
        name = index_name(scope, model)
        try:
            with self._server.alone() as c:
                if not _one(c, "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", name):
                    return False
                if _one(c, _VALID, name) is False:  # somebody died over it
                    c.execute(SQL("DROP INDEX CONCURRENTLY {}").format(Identifier(name)))
                size = size_of(c, self._server, scope, model)
                if size is None or size > LONGEST:
                    return False
                parts = {"size": Literal(size), "scope": Literal(scope), "model": Literal(model)}
                if _one(c, _VALID, name) is None:
                    c.execute("SELECT set_config('lock_timeout', '0', false)")
                    c.execute(_BUILD.format(name=Identifier(name), **parts))
                return True
        except StoreError:
            return False  # the caller goes on comparing everything; tried again by the next process
        finally:
            with self._lock:
                self._known.pop((scope, model), None)


def _one(c: Server, sql: Any, *values: Any) -> Any:
    row = c.execute(sql, values).fetchone()
    return row[0] if row else None


def index_name(scope: str, model: str) -> str:
    """The index's name; tells neither scope nor embedder."""
    return f"near_{digest(f'{len(scope)} {scope} {model}')}"
