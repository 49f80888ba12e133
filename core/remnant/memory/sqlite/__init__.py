"""The default store: one SQLite file, no server, no extension."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from remnant.errors import ConfigError
from remnant.memory.record import digest
from remnant.memory.sqlite.connection import Connections
from remnant.memory.sqlite.erase import Erase, sidecar_name
from remnant.memory.sqlite.journal import Journal
from remnant.memory.sqlite.records import Records
from remnant.memory.sqlite.words import WordSearch

__all__ = ["SqliteStore"]


class SqliteStore(Records, Journal, Erase):
    """A `RecordStore` in one file; many threads and processes of one machine may share it.

    Args:
        path: the file; `:memory:` is a temporary file that goes with the store.
        synchronous: `normal` survives `kill -9`; `full` also a loss of power, more slowly.
        clock: seconds since 1970.
        read_only: nothing is written: the file must exist, and one of an older schema is refused, not migrated.

    Raises:
        StoreError: the file cannot be opened, or is not ours.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        synchronous: str = "normal",
        clock: Callable[[], float] = time.time,
        read_only: bool = False,
    ) -> None:
        """See the class."""
        self._clock = clock
        self._temporary = tempfile.TemporaryDirectory(prefix="remnant-") if str(path) == ":memory:" else None
        if self._temporary:
            path = Path(self._temporary.name) / "memory.db"
        self.path = Path(path).absolute()
        if not self.path.parent.is_dir():
            raise ConfigError(f"no folder {self.path.parent}", do="create it first")
        self._files = Connections(self.path, synchronous, read_only=read_only)
        self._words = WordSearch()
        self._keeps = self._temporary is None and not read_only
        self.backup = self._files.backup

    def sidecar(self, scope: str, model: str) -> Path | None:
        """See `remnant.memory.scans.Beside`."""
        if not self._keeps:
            return None
        return self.path.with_name(f"{sidecar_name(self.path, scope)}{digest(model)[:16]}.index")

    def close(self) -> None:
        """See `RecordStore`."""
        self._files.close()
        self._words.close()
        if self._temporary:
            self._temporary.cleanup()
