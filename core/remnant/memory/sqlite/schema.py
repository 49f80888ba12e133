"""The tables of the SQLite store, and how an older file becomes a newer one.

`user_version` is the schema's version. A migration runs in one transaction, after `VACUUM INTO`
has written a whole backup beside the file.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from remnant.memory.errors import StoreError

_FIRST = """
CREATE TABLE records (
  number INTEGER PRIMARY KEY, scope TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL,
  status TEXT NOT NULL, tenant TEXT NOT NULL, words TEXT NOT NULL, created_at REAL NOT NULL,
  observed_at REAL NOT NULL, place TEXT NOT NULL, data TEXT NOT NULL, UNIQUE (scope, id));
CREATE INDEX records_by_status ON records (scope, status, id);
CREATE INDEX records_by_place ON records (scope, place, status, observed_at, id) WHERE place <> '';
CREATE TABLE changes (
  number INTEGER PRIMARY KEY AUTOINCREMENT, scope TEXT NOT NULL, time REAL NOT NULL,
  actor TEXT NOT NULL, reason TEXT NOT NULL, undoes INTEGER NOT NULL DEFAULT 0);
CREATE INDEX changes_by_scope ON changes (scope, number);
CREATE TABLE versions (
  scope TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, change INTEGER NOT NULL,
  data TEXT NOT NULL, PRIMARY KEY (scope, id, version));
CREATE INDEX versions_by_change ON versions (scope, change);
CREATE TABLE vectors (
  scope TEXT NOT NULL, id TEXT NOT NULL, model TEXT NOT NULL, digest TEXT NOT NULL,
  vector BLOB NOT NULL, PRIMARY KEY (scope, id, model));
CREATE TABLE epochs (scope TEXT PRIMARY KEY, epoch INTEGER NOT NULL);
CREATE TABLE utility (
  scope TEXT NOT NULL, id TEXT NOT NULL, retrieved INTEGER NOT NULL DEFAULT 0,
  used INTEGER NOT NULL DEFAULT 0, helped INTEGER NOT NULL DEFAULT 0, harmed INTEGER NOT NULL DEFAULT 0,
  last_used REAL NOT NULL DEFAULT 0, PRIMARY KEY (scope, id));
CREATE TABLE uses (
  scope TEXT NOT NULL, episode TEXT NOT NULL, id TEXT NOT NULL, used INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (scope, episode, id));
CREATE TABLE episodes (
  scope TEXT NOT NULL, id TEXT NOT NULL, task TEXT NOT NULL, verdict TEXT NOT NULL, source TEXT NOT NULL,
  team TEXT NOT NULL, opened_at REAL NOT NULL, closed_at REAL, owner TEXT NOT NULL, metadata TEXT NOT NULL,
  erased INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (scope, id));
CREATE TABLE steps (
  scope TEXT NOT NULL, episode TEXT NOT NULL, number INTEGER NOT NULL, data TEXT NOT NULL,
  PRIMARY KEY (scope, episode, number));
CREATE TABLE jobs (
  scope TEXT NOT NULL, key TEXT NOT NULL, episodes TEXT NOT NULL, state TEXT NOT NULL,
  claim TEXT NOT NULL DEFAULT '', owner TEXT NOT NULL DEFAULT '', lease REAL NOT NULL DEFAULT 0,
  ready REAL NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '',
  change INTEGER, PRIMARY KEY (scope, key));
CREATE INDEX jobs_by_state ON jobs (scope, state);
"""

MIGRATIONS: tuple[str, ...] = (_FIRST,)
"""Script i brings a file from version i to version i + 1."""

TOKENIZER = "porter unicode61 remove_diacritics 2"
"""How the word index splits text into words and stems them."""

_WORDS = f"""
CREATE VIEW live AS SELECT number, tenant, words FROM records WHERE status = 'active';
CREATE VIRTUAL TABLE word_index USING fts5(
  tenant, words, content='live', content_rowid='number', tokenize='{TOKENIZER}');
INSERT INTO word_index (word_index, rank) VALUES ('rank', 'bm25(0.0, 1.0)');
INSERT INTO word_index (word_index) VALUES ('rebuild');
"""

OCCURRENCES = "CREATE VIRTUAL TABLE temp.word_occurrences USING fts5vocab(main, word_index, instance)"
"""The word index seen word by word, for each connection that searches it."""


def has_fts5(connection: sqlite3.Connection) -> bool:
    """Whether this SQLite was built with the word index FTS5."""
    return bool(connection.execute("SELECT sqlite_compileoption_used('ENABLE_FTS5')").fetchone()[0])


def migrate(connection: sqlite3.Connection, path: Path, migrations: tuple[str, ...] = MIGRATIONS) -> Path | None:
    """Bring a file to the newest schema.

    Args:
        connection: outside any transaction.
        path: the file, for the name of the backup.
        migrations: script i leads from version i to i + 1.

    Returns:
        The backup, if one was made: only a file that held something is backed up.

    Raises:
        StoreError: the file was written by a newer release, or is another program's.
    """
    found = _version(connection)
    if found > len(migrations):
        raise StoreError(f"{path} has schema {found}", accepted=f"up to {len(migrations)}", do="update remnant")
    if found == len(migrations):
        return None
    if not found and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'records'").fetchone()
        if not known:
            raise StoreError(f"{path} is a database of another program", do="name another file")
    backup = _backup(connection, path, found) if found else None
    connection.execute("BEGIN IMMEDIATE")
    try:
        for number in range(_version(connection), len(migrations)):
            _run(connection, migrations[number])
            connection.execute(f"PRAGMA user_version = {number + 1}")
        exists = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'word_index'").fetchone()
        if not exists and has_fts5(connection):
            _run(connection, _WORDS)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return backup


def check_newest(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that cannot be read as it is.

    Raises:
        StoreError: its schema is older or newer than ours, or it is not one of our files.
    """
    found = _version(connection)
    if found == len(MIGRATIONS):
        return
    if not found:
        raise StoreError(f"{path} is not a memory", do="name a file that a memory wrote")
    do = "update remnant" if found > len(MIGRATIONS) else "open it for writing once, as 'remnant memory migrate' does"
    raise StoreError(f"{path} has schema {found}", accepted=str(len(MIGRATIONS)), do=do)


def _version(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA user_version").fetchone()[0]


def _backup(connection: sqlite3.Connection, path: Path, found: int) -> Path:
    backup = path.with_name(f"{path.name}.v{found}.backup")
    if not backup.exists():
        connection.execute("VACUUM INTO ?", (str(backup),))
    return backup


def _run(connection: sqlite3.Connection, script: str) -> None:
    """Each statement by itself: `executescript` would commit the transaction."""
    for statement in script.split(";"):
        if statement.strip():
            connection.execute(statement)
