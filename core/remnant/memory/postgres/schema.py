"""The tables of the PostgreSQL store, and how an older schema becomes a newer one.

All tables lie in one schema of the database. Each migration is one transaction under a lock that every
program with this store takes, so that several may start at once. A server makes no copy of itself before a
migration, unlike the SQLite store of its file: run `pg_dump --schema=<schema>` before an update of remnant
that brings a migration (the changelog says so). A dump holds what is forgotten later: delete it in time.

Columns that hold what was remembered have no statistics, which would keep samples of it elsewhere.
"""

from __future__ import annotations

from typing import Any, Final

from remnant.errors import ConfigError
from remnant.lazy import needs
from remnant.memory.errors import StoreError

with needs("postgres", wanted_by="a memory in PostgreSQL"):
    from psycopg import Connection, Error
    from psycopg.sql import SQL, Identifier

LOCK: Final = 7_236_837_102_041
"""Number of the advisory lock that migrations take; any number that others are unlikely to use."""

_FIRST: Final = """
CREATE TEXT SEARCH DICTIONARY stem (TEMPLATE = snowball, Language = english);
CREATE TEXT SEARCH CONFIGURATION words (PARSER = "default");
ALTER TEXT SEARCH CONFIGURATION words ADD MAPPING FOR asciiword, word, numword, asciihword, hword, numhword,
  hword_asciipart, hword_part, hword_numpart, int, uint, float, sfloat, version WITH stem;
CREATE TABLE scopes (
  scope text COLLATE "C" PRIMARY KEY, epoch bigint NOT NULL DEFAULT 0, change bigint NOT NULL DEFAULT 0,
  time double precision NOT NULL DEFAULT 0, records bigint NOT NULL DEFAULT 0, words bigint NOT NULL DEFAULT 0);
CREATE TABLE records (
  scope text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL, number bigint GENERATED ALWAYS AS IDENTITY,
  version integer NOT NULL, status text NOT NULL, length integer NOT NULL, terms tsvector,
  parents text[] NOT NULL, sources text[] NOT NULL, created_at double precision NOT NULL,
  observed_at double precision NOT NULL, place text COLLATE "C" NOT NULL, data text NOT NULL,
  PRIMARY KEY (scope, id));
CREATE INDEX records_by_status ON records (scope, status, id);
CREATE INDEX records_by_place ON records (scope, place, status, observed_at, id) WHERE place <> '';
CREATE INDEX records_by_word ON records USING gin (terms) WITH (fastupdate = off);
CREATE INDEX records_by_parent ON records USING gin (parents);
CREATE INDEX records_by_source ON records USING gin (sources);
CREATE TABLE changes (
  scope text COLLATE "C" NOT NULL, number bigint GENERATED ALWAYS AS IDENTITY, time double precision NOT NULL,
  actor text NOT NULL, reason text NOT NULL, undoes bigint NOT NULL, PRIMARY KEY (scope, number));
CREATE INDEX changes_by_time ON changes (scope, time, number);
CREATE TABLE versions (
  scope text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL, version integer NOT NULL, change bigint NOT NULL,
  place integer NOT NULL, data text NOT NULL, PRIMARY KEY (scope, id, version));
CREATE INDEX versions_by_change ON versions (scope, change, place);
CREATE TABLE vectors (
  scope text COLLATE "C" NOT NULL, model text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL,
  digest text NOT NULL, vector {vector} NOT NULL, PRIMARY KEY (scope, model, id));
CREATE INDEX vectors_by_record ON vectors (scope, id);
CREATE TABLE utility (
  scope text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL, retrieved bigint NOT NULL DEFAULT 0,
  used bigint NOT NULL DEFAULT 0, helped bigint NOT NULL DEFAULT 0, harmed bigint NOT NULL DEFAULT 0,
  last_used double precision NOT NULL DEFAULT 0, PRIMARY KEY (scope, id));
CREATE TABLE uses (
  scope text COLLATE "C" NOT NULL, episode text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL,
  used boolean NOT NULL, PRIMARY KEY (scope, episode, id));
CREATE INDEX uses_by_record ON uses (scope, id);
CREATE TABLE episodes (
  scope text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL, task text NOT NULL, verdict text NOT NULL,
  source text NOT NULL, team text COLLATE "C" NOT NULL, opened_at double precision NOT NULL,
  closed_at double precision, owner text NOT NULL, metadata text NOT NULL, erased boolean NOT NULL DEFAULT false,
  steps integer NOT NULL DEFAULT 0, PRIMARY KEY (scope, id));
CREATE INDEX episodes_by_time ON episodes (scope, opened_at DESC, id DESC);
CREATE INDEX episodes_by_team ON episodes (scope, team) WHERE team <> '';
CREATE INDEX episodes_open ON episodes (scope, id) WHERE closed_at IS NULL AND NOT erased;
CREATE TABLE steps (
  scope text COLLATE "C" NOT NULL, episode text COLLATE "C" NOT NULL, number integer NOT NULL, data text NOT NULL,
  PRIMARY KEY (scope, episode, number));
CREATE TABLE jobs (
  scope text COLLATE "C" NOT NULL, key text COLLATE "C" NOT NULL, number bigint GENERATED ALWAYS AS IDENTITY,
  episodes text[] NOT NULL, state text NOT NULL, claim text NOT NULL DEFAULT '', owner text NOT NULL DEFAULT '',
  lease double precision NOT NULL DEFAULT 0, ready double precision NOT NULL DEFAULT 0,
  attempts integer NOT NULL DEFAULT 0, error text NOT NULL DEFAULT '', change bigint, PRIMARY KEY (scope, key));
CREATE INDEX jobs_open ON jobs (scope, state, number) WHERE state IN ('queued', 'running');
ALTER TABLE records ALTER COLUMN terms SET STATISTICS 0, ALTER COLUMN data SET STATISTICS 0;
ALTER TABLE changes ALTER COLUMN reason SET STATISTICS 0;
ALTER TABLE versions ALTER COLUMN data SET STATISTICS 0;
ALTER TABLE vectors ALTER COLUMN digest SET STATISTICS 0, ALTER COLUMN vector SET STATISTICS 0;
ALTER TABLE episodes ALTER COLUMN task SET STATISTICS 0, ALTER COLUMN metadata SET STATISTICS 0;
ALTER TABLE steps ALTER COLUMN data SET STATISTICS 0;
ALTER TABLE jobs ALTER COLUMN error SET STATISTICS 0;
"""

MIGRATIONS: tuple[str, ...] = (_FIRST,)
"""Script i brings a schema from version i to version i + 1; `{vector}` is the type of vectors."""

TABLES: Final = (
    "records", "changes", "versions", "vectors", "utility", "uses", "episodes", "steps", "jobs", "scopes",
)  # fmt: skip

Server = Connection[tuple[Any, ...]]


def check_name(schema: str) -> str:
    """The name of a schema, if it can be one.

    Raises:
        ConfigError: it is empty, longer than the server keeps, or the server's own.
    """
    if not schema or len(schema.encode()) > 63 or "\0" in schema or schema.startswith("pg_"):
        raise ConfigError(f"schema {schema!r}", accepted="1 to 63 bytes that do not begin with pg_")
    return schema


def migrate(c: Server, schema: str, place: str, migrations: tuple[str, ...] = MIGRATIONS) -> int:
    """Bring a schema to the newest version, making it if there is none.

    Args:
        c: outside any transaction.
        schema: its name.
        place: the server and database, for messages.
        migrations: script i leads from version i to i + 1.

    Returns:
        The version that was found.

    Raises:
        StoreError: the schema was written by a newer release, or is another program's.
    """
    first = found = version(c, schema, place)
    _check_known(found, place, schema, len(migrations))
    while found < len(migrations):
        with c.transaction():
            c.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            found = version(c, schema, place)
            if found < len(migrations):
                kind = _vector_type(c) if not found else vector_type(c, schema)
                _run(c, schema, migrations[found].replace("{vector}", kind))
                c.execute("INSERT INTO migrations (version, vectors) VALUES (%s, %s)", (found + 1, kind))
                found += 1
    return first


def check_newest(c: Server, schema: str, place: str) -> None:
    """Refuse a schema that cannot be read as it is.

    Raises:
        StoreError: its version is older or newer than ours, or it is not there.
    """
    found = version(c, schema, place)
    _check_known(found, place, schema, len(MIGRATIONS))
    if not found:
        raise StoreError(f"{place} holds no memory in schema {schema!r}", do="name a schema that a memory wrote")
    if found < len(MIGRATIONS):
        do = "open it for writing once, as 'remnant memory migrate' does"
        raise StoreError(f"{place}, schema {schema!r} has version {found}", accepted=str(len(MIGRATIONS)), do=do)


def version(c: Server, schema: str, place: str) -> int:
    """The version of a schema; 0 if it is not there or holds nothing.

    Raises:
        StoreError: it holds the tables of another program.
    """
    sql = "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s"
    names = {name for (name,) in c.execute(sql, (schema,)).fetchall()}
    if "migrations" in names and "scopes" in names:
        search(c, schema)
        row = c.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchone()
        return row[0] if row else 0
    if names:
        raise StoreError(f"{place}: schema {schema!r} belongs to another program", do="name another schema")
    return 0


def search(c: Server, schema: str) -> None:
    """Let plain names mean the tables of a schema, and find pgvector wherever it was installed."""
    sql = """SELECT set_config('search_path', concat_ws(', ', quote_ident(%s), (SELECT quote_ident(nspname)
             FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'vector')), false)"""
    c.execute(sql, (schema,))


def vector_type(c: Server, schema: str) -> str:
    """The type that this schema keeps vectors in: `vector`, or `bytea` where it was made without pgvector."""
    search(c, schema)
    row = c.execute("SELECT vectors FROM migrations ORDER BY version LIMIT 1").fetchone()
    return row[0] if row else "bytea"


def _vector_type(c: Server) -> str:
    """`vector` if the server has pgvector or lets us have it."""
    try:
        with c.transaction():
            c.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
    except Error:
        sql = "SELECT 1 FROM pg_extension WHERE extname = 'vector'"
        return "vector" if c.execute(sql).fetchone() else "bytea"
    return "vector"


def _run(c: Server, schema: str, script: str) -> None:
    if not c.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone():
        c.execute(SQL("CREATE SCHEMA {}").format(Identifier(schema)))
    search(c, schema)
    c.execute("""CREATE TABLE IF NOT EXISTS migrations (
                 version integer PRIMARY KEY, vectors text NOT NULL, time timestamptz NOT NULL DEFAULT now())""")
    c.execute(script.encode(), prepare=False)


def _check_known(found: int, place: str, schema: str, newest: int) -> None:
    if found > newest:
        given = f"{place}, schema {schema!r} has version {found}"
        raise StoreError(given, accepted=f"up to {newest}", do="update remnant")
