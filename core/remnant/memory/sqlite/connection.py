"""Connections to one SQLite file: one per thread, write-ahead log, errors of our own kind."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from remnant.errors import ConfigError
from remnant.memory.errors import StoreError
from remnant.memory.sqlite.schema import OCCURRENCES, check_newest, has_fts5, migrate

BUSY_MS = 10_000
"""How long a writer waits for another one, in ms."""

_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ncpfs", "glusterfs", "ceph", "fuse.sshfs"}


class Connections:
    """Every connection of this process to one file.

    Args:
        path: the file; created if it does not exist.
        synchronous: `normal` survives the death of the process, `full` also a loss of power.
        read_only: refuse every write; the file must exist and have the newest schema.

    Raises:
        StoreError: the file cannot be opened, is not a database, or has a newer schema.
    """

    def __init__(self, path: Path, synchronous: str = "normal", *, read_only: bool = False) -> None:
        """See the class."""
        if synchronous.lower() not in ("normal", "full"):
            raise ConfigError(f"synchronous {synchronous!r}", accepted=("normal", "full"))
        self.path = path
        read_only = read_only or _only_readable(path)
        self._synchronous, self._read_only = synchronous.upper(), read_only
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: list[tuple[threading.Thread, sqlite3.Connection]] = []
        self._process = os.getpid()
        self._closed = False
        self._journal = "WAL"
        if read_only and not path.is_file():
            raise StoreError(f"no file {path}", do="name an existing one")
        if on_network(path):
            self._journal = "DELETE"
            warnings.warn(f"{path} lies on a network file system: no write-ahead log, slower", stacklevel=4)
        with self.translated():
            self.backup = None if read_only else migrate(self.get(), path)
            if read_only:
                check_newest(self.get(), path)
            self.fts5 = has_fts5(self.get())

    def get(self) -> sqlite3.Connection:
        """The connection of this thread; a forked child gets its own."""
        if self._process != os.getpid():
            self._local, self._open, self._process = threading.local(), [], os.getpid()
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._local.connection = self._connect()
        return found

    def _connect(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreError(f"{self.path} was closed", do="open the memory again")
        name = _address(self.path) if self._read_only else str(self.path)
        seconds = BUSY_MS / 1000
        new = sqlite3.connect(name, timeout=seconds, isolation_level=None, check_same_thread=False, uri=self._read_only)
        try:
            new.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            new.execute("PRAGMA secure_delete = ON").fetchall()
            if has_fts5(new):
                new.execute(OCCURRENCES)
            if self._read_only:
                new.execute("PRAGMA query_only = ON")
            else:
                _switch(new, self._journal)
            new.execute(f"PRAGMA synchronous = {self._synchronous}")
        except BaseException:
            new.close()
            raise
        with self._lock:
            gone = [connection for thread, connection in self._open if not thread.is_alive()]
            self._open = [item for item in self._open if item[0].is_alive()]
            self._open.append((threading.current_thread(), new))
        for connection in gone:  # every event loop brings threads of its own: they would pile up
            connection.close()
        return new

    @contextmanager
    def translated(self) -> Generator[None, None, None]:
        """Turn errors of SQLite into `StoreError`."""
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {error}", do=_advice(str(error))) from error
        except UnicodeEncodeError as error:
            raise ConfigError("a text with half a surrogate pair", accepted="Unicode text") from error

    @contextmanager
    def read(self) -> Generator[sqlite3.Connection, None, None]:
        """A connection whose reads all see the same state."""
        with self.translated():
            connection = self.get()
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")

    @contextmanager
    def write(self) -> Generator[sqlite3.Connection, None, None]:
        """A transaction that has the write lock from its start, and is whole or nothing."""
        with self.translated():
            connection = self.get()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connections of every thread."""
        self._closed = True
        with self._lock:
            opened, self._open = self._open, []
        if self._process == os.getpid():
            for _, connection in opened:
                connection.close()
        self._local = threading.local()


def _only_readable(path: Path) -> bool:
    """Whether a file that is here cannot be written, itself or its log: it can still be recalled from."""
    return path.is_file() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))


def _address(path: Path) -> str:
    """The file for reading; in a folder that cannot hold the log shared with writers, it must be at rest."""
    log = path.with_name(f"{path.name}-wal")
    resting = not os.access(path.parent, os.W_OK) and not log.exists()
    return f"{path.as_uri()}?{'mode=ro&immutable=1' if resting else 'mode=rw'}"


def _switch(connection: sqlite3.Connection, journal: str) -> None:
    """Set the journal mode; SQLite does not wait for its lock by itself, so we do."""
    end = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            connection.execute(f"PRAGMA journal_mode = {journal}").fetchall()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)


def on_network(path: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether a file lies on a network file system, where a write-ahead log is not safe."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return False
    best, kind = "", ""
    place = str(path.resolve().parent) + "/"
    for line in lines:
        parts = line.split(" ")
        point = parts[1].replace("\\040", " ").rstrip("/") + "/"
        if place.startswith(point) and len(point) >= len(best):
            best, kind = point, parts[2]
    return kind in _NETWORK


def _advice(message: str) -> str:
    if "locked" in message:
        return "another process has been writing for too long"
    if "full" in message:
        return "make room on the disk; nothing that was acknowledged is lost"
    if "malformed" in message or "not a database" in message:
        return "the file is damaged; restore it from a backup or an export"
    return "the file cannot be written" if "readonly" in message else ""
