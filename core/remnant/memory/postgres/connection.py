"""Connections to one server: a pool, transactions that are tried again where that is safe, errors of our own kind.

A transaction that failed before its COMMIT was sent did certainly not happen, so it is tried again. If the
server went away while it committed, the server is asked afterwards by the transaction's number whether it did.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from remnant.lazy import needs
from remnant.memory.errors import StoreError
from remnant.memory.postgres.faults import advice, message, parts_of, passing, place_of
from remnant.memory.postgres.schema import Server, check_newest, migrate, search, vector_type
from remnant.memory.postgres.text import Vector, adapt

with needs("postgres", wanted_by="a memory in PostgreSQL"):
    import psycopg
    from psycopg.pq import TransactionStatus
    from psycopg.types import TypeInfo
    from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

if TYPE_CHECKING:
    from typing_extensions import LiteralString

LOCK_MS: Final = 10_000
"""How long a writer waits for another one, in ms."""

IDLE_MS: Final = 60_000
"""After this the server ends a transaction whose process stopped, in ms: none of ours ever waits for a model."""

_PAUSE: Final = 0.05
# A server that is gone without a word is noticed after about a minute, unless the address says otherwise.
_ALIVE: Final = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
_SETTINGS: Final = """SELECT set_config('lock_timeout', %s, false),
  set_config('idle_in_transaction_session_timeout', %s, false), set_config('default_transaction_read_only', %s, false),
  set_config('client_encoding', 'UTF8', false), set_config('timezone', 'UTC', false)"""
_SNAPSHOT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

T = TypeVar("T")
Pool = ConnectionPool[Server]


class Connections:
    """Every connection of this process to one schema of one server; threads share them.

    Args:
        url: what libpq takes: an address or `key=value` pairs.
        schema: the schema with our tables.
        size: connections at most.
        wait: seconds to wait for a connection, and to go on trying when the server is away.
        read_only: the server refuses every write; the schema must exist and be the newest.

    Raises:
        ConfigError: the address is malformed.
        StoreError: the server does not answer or refuses us, or the schema is newer or another program's.
    """

    def __init__(self, url: str, schema: str, *, size: int, wait: float, read_only: bool = False) -> None:
        """See the class."""
        parts = parts_of(url)
        self.place = place_of(parts)
        self.schema = schema
        self.wait = wait
        self.read_only = read_only
        self._url, self._size = url, size
        self._alive = {name: value for name, value in _ALIVE.items() if name not in parts}
        self._closed = False
        self._inherited: list[Pool] = []
        with self.alone(first=True) as c:
            if _one(c, "SHOW server_encoding") != "UTF8":
                raise StoreError(f"{self.place} does not store UTF8", do="name a database with encoding UTF8")
            check_newest(c, schema, self.place) if read_only else migrate(c, schema, self.place)
            self.vectors = vector_type(c, schema)
            self._type = TypeInfo.fetch(c, "vector") if self.vectors == "vector" else None
        self._process, self._pool = os.getpid(), self._new_pool()

    def _new_pool(self) -> Pool:
        return ConnectionPool(
            self._url,
            kwargs={"autocommit": True, **self._alive},
            min_size=1,
            max_size=self._size,
            timeout=self.wait,
            reconnect_timeout=self.wait,
            configure=self._configure,
            open=True,
        )

    def _configure(self, c: Server) -> None:
        c.execute(_SETTINGS, (str(LOCK_MS), str(IDLE_MS), "on" if self.read_only else "off"))
        search(c, self.schema)
        adapt(c, self._type)

    @contextmanager
    def alone(self, *, first: bool = False) -> Generator[Server, None, None]:
        """A connection outside the pool and outside any transaction; `first` before the tables are known.

        Raises:
            StoreError: the server is away or refuses.
        """
        with (
            self._translated(),
            psycopg.connect(self._url, autocommit=True, connect_timeout=max(2, round(self.wait))) as c,
        ):
            if not first:
                self._configure(c)
            yield c

    @property
    def vector_size(self) -> LiteralString:
        """What a query asks for the size of a vector."""
        return "vector_dims(vector)" if self.vectors == "vector" else "octet_length(vector) / 4"

    def vector(self, blob: bytes) -> bytes:
        """A vector as a parameter."""
        return Vector(blob) if self.vectors == "vector" else blob

    def read(self, work: Callable[[Server], T], *, together: bool = False) -> T:
        """Do some reading; with `together` all its statements see the same state.

        Raises:
            StoreError: the server is away or refuses.
        """
        end = time.monotonic() + self.wait
        while True:
            with self._translated(), self._taken() as c:
                try:
                    if not together:
                        return work(c)
                    c.execute(_SNAPSHOT)
                    result = work(c)
                    c.execute("COMMIT")
                    return result
                except psycopg.Error as error:
                    if not passing(error) or time.monotonic() > end:
                        raise
            time.sleep(_PAUSE)

    def write(self, work: Callable[[Server], T]) -> T:
        """Do some writing in one transaction, whole or not at all; `work` may be called more than once.

        Raises:
            StoreError: the server is away or refuses, or it went away for good while it committed.
        """
        end = time.monotonic() + self.wait
        while True:
            done = self._tried(work, end)
            if done is not None:
                return done[0]
            time.sleep(_PAUSE)

    def _tried(self, work: Callable[[Server], T], end: float) -> tuple[T] | None:
        """Try a transaction once; None if it certainly did not happen and may be tried again."""
        with self._translated():
            with self._taken() as c:
                try:
                    number = _begin(c)
                    result = work(c)
                except psycopg.Error as error:
                    if not passing(error) or time.monotonic() > end:
                        raise
                    return None
                try:
                    c.execute("COMMIT")
                    return (result,)
                except psycopg.OperationalError as error:
                    if not passing(error):
                        raise
            return (result,) if self._happened(number) else None

    def _happened(self, number: str) -> bool:
        """Whether a transaction was committed whose answer was lost."""
        end = time.monotonic() + self.wait
        while True:
            with self._translated(), self._taken() as c:
                status = _one(c, "SELECT pg_xact_status(%s::text::xid8)", number)
            if status != "in progress" or time.monotonic() > end:
                break
            time.sleep(_PAUSE)
        if status in ("committed", "aborted"):
            return status == "committed"
        raise StoreError(f"{self.place} does not tell whether a change was made", do="read before writing it again")

    @contextmanager
    def _taken(self) -> Generator[Server, None, None]:
        """A connection of the pool, given back clean."""
        pool = self._current()
        c = pool.getconn()
        try:
            yield c
        finally:
            if not c.closed and c.info.transaction_status != TransactionStatus.IDLE:
                with suppress(psycopg.Error):
                    c.rollback()
            pool.putconn(c)

    def _current(self) -> Pool:
        if self._closed:
            raise StoreError(f"{self.place} was closed", do="open the memory again")
        if self._process != os.getpid():  # a fork: the parent's sockets are not ours to use or to close
            self._inherited.append(self._pool)
            self._process, self._pool = os.getpid(), self._new_pool()
        return self._pool

    @contextmanager
    def _translated(self) -> Generator[None, None, None]:
        """Turn errors of the server and of the pool into `StoreError`."""
        try:
            yield
        except PoolClosed as error:
            raise StoreError(f"{self.place} was closed", do="open the memory again") from error
        except PoolTimeout as error:
            given = f"{self.place}: no connection within {self.wait:g} s"
            raise StoreError(given, do="see that the server runs and has connections left") from error
        except psycopg.Error as error:
            raise StoreError(f"{self.place}: {message(error)}", do=advice(error)) from error

    def close(self) -> None:
        """Close every connection of this process."""
        self._closed = True
        if self._process == os.getpid():
            self._pool.close(timeout=self.wait)


def _begin(c: Server) -> str:
    """Begin a transaction; its number, by which its end can be asked for."""
    cursor = c.execute("BEGIN; SELECT pg_current_xact_id()::text", prepare=False)
    cursor.nextset()
    row = cursor.fetchone()
    return row[0] if row else ""


def _one(c: Server, sql: Any, *values: Any) -> Any:
    row = c.execute(sql, values or None).fetchone()
    return row[0] if row else None
