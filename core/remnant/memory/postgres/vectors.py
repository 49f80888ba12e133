"""Vectors in PostgreSQL: as pgvector's `vector` where the server has it, else as the bytes themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from remnant.memory.postgres.connection import Connections
from remnant.memory.postgres.records import FIELDS, FROM
from remnant.memory.postgres.schema import Server
from remnant.memory.postgres.write import check_size, hold, size_of
from remnant.memory.record import Record
from remnant.memory.rows import record_of

_ALL: Final = """SELECT v.id, v.vector FROM vectors v JOIN records r ON r.scope = v.scope AND r.id = v.id
  WHERE v.scope = %s AND v.model = %s AND r.status = 'active' ORDER BY v.id"""
_SINCE: Final = """SELECT n.id, CASE WHEN r.status = 'active' THEN v.vector END
  FROM (SELECT DISTINCT id FROM versions WHERE scope = %(scope)s AND change > %(since)s) n
  LEFT JOIN records r ON r.scope = %(scope)s AND r.id = n.id
  LEFT JOIN vectors v ON v.scope = %(scope)s AND v.model = %(model)s AND v.id = n.id"""
_PUT: Final = """INSERT INTO vectors (scope, model, id, digest, vector)
  SELECT scope, %s, id, %s, %s FROM records WHERE scope = %s AND id = %s AND version = %s
  ON CONFLICT (scope, model, id) DO UPDATE SET digest = excluded.digest, vector = excluded.vector"""


class Vectors:
    """The part of `PostgresStore` that holds vectors; see `RecordStore` for what each method does."""

    _server: Connections

    def vectors(self, scope: str, model: str, since: int | None = None) -> list[tuple[str, bytes | None]]:
        """See `RecordStore`."""
        values = {"scope": scope, "model": model, "since": since}

        def work(c: Server) -> list[Any]:
            if since is None:
                return c.execute(_ALL, (scope, model), binary=True).fetchall()
            return c.execute(_SINCE, values, binary=True).fetchall()

        return self._server.read(work)

    def unembedded(self, scope: str, model: str, limit: int = 64) -> list[Record]:
        """See `RecordStore`."""
        sql = f"""SELECT {FIELDS} {FROM} WHERE r.scope = %s AND r.status = 'active'
                  AND NOT EXISTS (SELECT FROM vectors v WHERE v.scope = r.scope AND v.model = %s AND v.id = r.id)
                  ORDER BY r.id LIMIT %s"""
        rows = self._server.read(lambda c: c.execute(sql, (scope, model, limit)).fetchall())
        return [record_of(scope, row) for row in rows]

    def put_vectors(self, scope: str, model: str, rows: Sequence[tuple[str, int, str, bytes]]) -> None:
        """See `RecordStore`."""

        def work(c: Server) -> None:
            hold(c, scope)
            for size in {len(vector) // 4 for _, _, _, vector in rows}:
                check_size(c, self._server, scope, model, size)
            values = [
                (model, digest, self._server.vector(vector), scope, id, version) for id, version, digest, vector in rows
            ]
            with c.cursor() as cursor:
                cursor.executemany(_PUT, values)
                cursor.execute("UPDATE scopes SET epoch = epoch + 1 WHERE scope = %s", (scope,))

        if rows:
            self._server.write(work)

    def dimension(self, scope: str, model: str) -> int | None:
        """See `RecordStore`."""
        return self._server.read(lambda c: size_of(c, self._server, scope, model))
