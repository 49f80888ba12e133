"""Files of other releases: forward with a backup, never back; and network file systems."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remnant.errors import ConfigError
from remnant.memory import Memory, StoreError
from remnant.memory.sqlite import connection
from remnant.memory.sqlite.connection import on_network
from remnant.memory.sqlite.schema import MIGRATIONS, migrate

Make = Callable[..., Memory]
NEXT = (*MIGRATIONS, "ALTER TABLE episodes ADD COLUMN extra TEXT; CREATE TABLE more (x)")


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def test_older_file_goes_forward_after_a_backup(make: Make, path: Path):
    memory = make()
    (id,) = memory.add("tea")
    memory.close()
    backup = migrate(_open(path), path, NEXT)
    assert backup is not None
    assert backup == path.with_name("memory.db.v1.backup")
    with Memory.open(backup, scope="tenant-a") as old:  # the backup is a whole memory
        assert old.recall("tea")[0].id == id
    c = _open(path)
    assert c.execute("PRAGMA user_version").fetchone() == (2,)
    assert c.execute("SELECT extra FROM episodes").fetchall() == []
    assert migrate(c, path, NEXT) is None


def test_migration_that_fails_changes_nothing(make: Make, path: Path):
    make().add("tea")
    with pytest.raises(sqlite3.OperationalError):
        migrate(_open(path), path, (*MIGRATIONS, "CREATE TABLE more (x); CREATE TABLE records (x)"))
    c = _open(path)
    assert c.execute("PRAGMA user_version").fetchone() == (1,)
    assert not c.execute("SELECT 1 FROM sqlite_master WHERE name = 'more'").fetchone()
    assert make().recall("tea")


def test_newer_file_is_refused(make: Make, path: Path):
    make().close()
    _open(path).execute("PRAGMA user_version = 9")
    with pytest.raises(StoreError, match="schema 9"):
        make()


def test_forgetting_deletes_the_backups(make: Make, path: Path):
    memory = make()
    (id,) = memory.add("tea")
    backup = migrate(_open(path), path, NEXT)
    assert backup is not None
    assert backup.exists()
    memory.forget(id)
    assert not backup.exists()


def test_the_settings_of_the_file(make: Make):
    c = make().store._files.get()  # type: ignore[attr-defined]
    values = [c.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "busy_timeout", "secure_delete")]
    assert values == ["wal", 10_000, 1]


def test_synchronous_is_a_setting(make: Make):
    for given, stored in (("full", 2), ("normal", 1)):
        store: Any = make(synchronous=given).store
        assert store._files.get().execute("PRAGMA synchronous").fetchone() == (stored,)
    with pytest.raises(ConfigError, match="normal, full"):
        make(synchronous="off")
    with pytest.raises(ConfigError, match="schema"):
        make(schema="x")


def test_on_a_network_file_system_there_is_a_warning_and_no_shared_log(make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "on_network", lambda path: True)
    with pytest.warns(UserWarning, match="network file system"):
        store: Any = make().store
    assert store._files.get().execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_network_file_systems_are_known_by_the_mounts(tmp_path: Path):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"dev / ext4 rw 0 0\nhost:/x {tmp_path}/net nfs4 rw 0 0\n")
    (tmp_path / "net").mkdir()
    assert on_network(tmp_path / "net" / "m.db", mounts)
    assert not on_network(tmp_path / "m.db", mounts)
    assert not on_network(tmp_path / "m.db", tmp_path / "gone")
