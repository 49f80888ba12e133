"""The store for many machines: PostgreSQL, with pgvector where the server has it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from remnant.errors import unknown
from remnant.memory.postgres.connection import Connections
from remnant.memory.postgres.erase import Erase
from remnant.memory.postgres.journal import Journal
from remnant.memory.postgres.near import Near
from remnant.memory.postgres.queue import Queue
from remnant.memory.postgres.records import Records
from remnant.memory.postgres.schema import check_name
from remnant.memory.postgres.vectors import Vectors
from remnant.memory.postgres.words import WordSearch

__all__ = ["PostgresStore"]


class PostgresStore(Records, Vectors, Near, Journal, Queue, Erase):
    """A `RecordStore` in one schema of a PostgreSQL database (15 or newer, UTF8); many machines may share it.

    Vectors are kept as pgvector's type where the server has the extension when the schema is made, else as bytes;
    `vector_type` tells. Connections keep settings, so a pooler in between must pool sessions, not transactions.

    Args:
        url: what libpq takes, such as `postgresql://user@host:5432/database`.
        schema: holds all tables; made if it is not there.
        clock: seconds since 1970.
        read_only: nothing is written: the schema must exist and be the newest.
        size: connections of this process at most.
        wait: seconds to wait for a connection, and to try again while the server is away.
        vacuum: what `erase` does about the bytes of deleted rows: `plain` disturbs nobody and lets the server
            use the space again; `full` rewrites the tables at once, and keeps all others out meanwhile.

    Raises:
        ConfigError: the address, the schema's name or `vacuum` is malformed.
        MissingExtra: psycopg is not installed.
        StoreError: the server does not answer, or the schema is newer or another program's.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = "remnant",
        clock: Callable[[], float] = time.time,
        read_only: bool = False,
        size: int = 8,
        wait: float = 5.0,
        vacuum: Literal["plain", "full"] = "plain",
    ) -> None:
        """See the class."""
        if vacuum not in ("plain", "full"):
            raise unknown("vacuum", vacuum, ("plain", "full"))
        super().__init__()
        self._clock = clock
        self._vacuum: Literal["plain", "full"] = vacuum
        self._server = Connections(url, check_name(schema), size=size, wait=wait, read_only=read_only)
        self._words = WordSearch()

    @property
    def vector_type(self) -> str:
        """`vector`, or `bytea` where the server had no pgvector when the schema was made."""
        return self._server.vectors

    def close(self) -> None:
        """See `RecordStore`."""
        self._server.close()
