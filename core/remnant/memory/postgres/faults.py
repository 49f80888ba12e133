"""What an address of a server says, and what the server's errors mean."""

from __future__ import annotations

from typing import Any

from remnant.errors import ConfigError
from remnant.lazy import needs

with needs("postgres", wanted_by="a memory in PostgreSQL"):
    import psycopg
    from psycopg.conninfo import conninfo_to_dict


def parts_of(url: str) -> dict[str, Any]:
    """What an address says.

    Raises:
        ConfigError: it is malformed.
    """
    try:
        return dict(conninfo_to_dict(url))
    except psycopg.ProgrammingError as error:
        accepted = "postgresql://user@host:port/database"
        raise ConfigError("an address that libpq cannot read", accepted=accepted) from error


def place_of(parts: dict[str, Any]) -> str:
    """The server and the database, without the password."""
    host, port = parts.get("host") or "localhost", parts.get("port")
    name = parts.get("dbname") or parts.get("user") or ""
    return f"PostgreSQL at {host}{f':{port}' if port else ''}, database {name!r}"


def passing(error: psycopg.Error) -> bool:
    """Whether the same work may succeed in a moment: a server that restarts, a deadlock, a lost connection."""
    state = error.sqlstate or ""
    lost = isinstance(error, psycopg.OperationalError) and not state
    return lost or state.startswith("08") or state in ("40001", "40P01", "57P01", "57P02", "57P03")


def message(error: psycopg.Error) -> str:
    """The server's words, on one line."""
    return (error.diag.message_primary or str(error)).strip().partition("\n")[0]


def advice(error: psycopg.Error) -> str:
    """What to do about it, if we know."""
    state = error.sqlstate or ""
    if state == "55P03":
        return "another process has been writing for too long"
    if state.startswith("53"):
        return "make room on the server; nothing that was acknowledged is lost"
    if state.startswith("54"):
        return "ids and scopes take 2,000 bytes together at most, vectors 16,000 numbers"
    if state.startswith(("42501", "28")):
        return "ask for the right to use the database, and to create in it"
    return "the server or this memory can only be read" if state == "25006" else ""
