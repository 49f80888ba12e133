"""What every `remnant memory` command shares: which store, whose memory, how it learns."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remnant.errors import ConfigError

if TYPE_CHECKING:
    from remnant.memory import Embedder, Memory, RecordStore

Place = Annotated[
    str, typer.Argument(help="A file, or postgresql://user@host/database, with #schema if need be.", metavar="STORE")
]
Scope = Annotated[
    str | None, typer.Option("--scope", help="Whose memory; left out, the only one of the store.", metavar="NAME")
]
HowItLearns = Annotated[
    str | None,
    typer.Option("--strategy", help="How it learns; left out, what has distilled here, or facts.", metavar="NAME"),
]
Vectors = Annotated[
    str | None,
    typer.Option("--embedder", help="A sentence-transformers model, or hash-256; left out, words only."),
]

ANY = "facts"
"""The strategy of commands that neither search nor write an index: it makes no difference."""

_SHOWN_SCOPES = 10
_LOOKED_BACK = 500  # changes


@contextmanager
def opened(
    place: str,
    scope: str | None,
    *,
    strategy: str | None = None,
    embedder: str | None = None,
    write: bool = False,
    create: bool = False,
    default: str = "facts",
) -> Generator[Memory, None, None]:
    """One scope of a store, looked at by a person: no episode is recovered and nothing is distilled.

    Args:
        place: a file or an address.
        scope: its name, or None for the only one.
        strategy: its name; None takes the one that has distilled here.
        embedder: see `embedder_of`.
        write: the command changes something; the store is then brought up to date first, and we say so.
        create: a store or a scope that does not exist is begun.
        default: the strategy where none has distilled.

    Raises:
        ConfigError: no such store, or a scope that is not there or not the only one.
    """
    store = open_place(place, write=write, create=create)
    try:
        yield memory_in(store, place, scope, strategy, embedder, create=create, default=default)
    finally:
        store.close()


def open_place(place: str, *, write: bool, create: bool = False) -> RecordStore:
    """The store at a file or an address; for reading, nothing of it is touched.

    Args:
        place: what follows the `#` of an address is the schema on that server.
        write: open it for writing, which brings it up to date.
        create: a file that does not exist is made.

    Raises:
        ConfigError: it is a file that does not exist.
    """
    from pathlib import Path

    from remnant.memory.memory import open_store

    scheme, remote, rest = place.partition("://")
    file = rest.removeprefix("/") if scheme == "sqlite" else "" if remote else place
    if file and not create and not Path(file).is_file():
        raise ConfigError(f"no memory at {place!r}", accepted="a file or an address", do="check the name")
    where, _, schema = (place, "", "") if file else place.partition("#")
    store = open_store(where, read_only=not write, **({"schema": schema} if schema else {}))
    if backup := getattr(store, "backup", None):
        sys.stderr.write(f"remnant: {without_password(place)} was brought to the newest schema; as it was: {backup}\n")
    return store


def without_password(place: str) -> str:
    """The store's name as it may be shown.

    Example: without_password("postgresql://ada:secret@host/db") -> "postgresql://ada@host/db"
    """
    scheme, found, rest = place.partition("://")
    owner, at, where = rest.rpartition("@")
    user = owner.partition(":")[0]
    return f"{scheme}://{user}{at}{where.partition('?')[0]}" if found else place


def memory_in(
    store: RecordStore,
    place: str,
    scope: str | None,
    strategy: str | None = None,
    embedder: str | None = None,
    *,
    create: bool = False,
    default: str = "facts",
) -> Memory:
    """One scope of an open store; see `opened`."""
    from remnant.memory import Memory

    whose = _whose(store, scope, create)
    how = strategy or _only(strategies_of(store, whose)) or default
    model = embedder_of(embedder)
    settings: dict[str, Any] = {"write": "manual", "recover": False, "strict": True}
    if model is not None:
        settings["index"] = "exact"  # others are kept beside the file, and a look must leave nothing behind
    return Memory.open(place, how, scope=whose, store=store, embedder=model, **settings)


def _whose(store: RecordStore, scope: str | None, create: bool) -> str:
    if scope is not None and (create or _exists(store, scope)):
        return scope
    found = store.scopes(limit=_SHOWN_SCOPES + 1)
    if scope is None and len(found) == 1:
        return found[0]
    names = ", ".join(map(repr, found[:_SHOWN_SCOPES])) + (", ..." if len(found) > _SHOWN_SCOPES else "")
    if scope is not None:
        raise ConfigError(f"no scope {scope!r} in this store", accepted=names or "none: it is empty")
    if not found:
        raise ConfigError("the store is empty", do="name a scope with --scope" if create else "")
    raise ConfigError("the store holds several scopes", accepted=names, do="name one with --scope")


def _exists(store: RecordStore, scope: str) -> bool:
    return bool(store.latest(scope) or store.count(scope) or store.episodes(scope, limit=1))


def strategies_of(store: RecordStore, scope: str) -> list[str]:
    """The strategies that have distilled in a scope: each signs its changes with its name, and no store says more."""
    from remnant.plugins import collect

    names = {item.name for _, item in collect("remnant_strategies")}
    return sorted(names & {change.actor for change in store.changes(scope, limit=_LOOKED_BACK)})


def _only(strategies: list[str]) -> str:
    if len(strategies) > 1:
        raise ConfigError("several strategies have distilled here", accepted=strategies, do="name one with --strategy")
    return strategies[0] if strategies else ""


def embedder_of(name: str | None) -> Embedder | None:
    """The embedder that a name means: `hash-N`, or a model of sentence-transformers; None for none."""
    from remnant import memory

    if not name:
        return None
    kind, _, size = name.partition("-")
    if kind == "hash" and size.isdigit():
        return memory.HashEmbedder(int(size))
    return memory.SentenceTransformerEmbedder(name)
