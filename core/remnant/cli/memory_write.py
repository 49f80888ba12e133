"""The `remnant memory` commands that change something; none of them distils."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remnant.cli import _memory_show as show
from remnant.cli._memory import ANY, HowItLearns, Place, Scope, Vectors, open_place, opened
from remnant.cli._output import Json, answer, print_fields
from remnant.errors import ConfigError

if TYPE_CHECKING:
    from remnant.memory import Memory
    from remnant.progress import Progress

Ids = Annotated[list[str], typer.Argument(help="Records.", metavar="ID...")]


def undo(
    store: Place,
    change: Annotated[int, typer.Argument(help="Its number, from 'audit'.")],
    scope: Scope = None,
    strategy: HowItLearns = None,
    embedder: Vectors = None,
    as_json: Json = False,
) -> None:
    """Take a change back, as a change of its own."""

    def work(_: Any) -> dict[str, Any]:
        with opened(store, scope, strategy=strategy, embedder=embedder, write=True) as memory:
            return {"scope": memory.scope, "strategy": memory.strategy.name, **vars(memory.undo(change, _actor()))}

    answer(as_json, work, print_fields)


def approve(
    store: Place,
    ids: Ids,
    scope: Scope = None,
    strategy: HowItLearns = None,
    embedder: Vectors = None,
    as_json: Json = False,
) -> None:
    """Let quarantined records be recalled."""

    def work(_: Any) -> dict[str, Any]:
        with opened(store, scope, strategy=strategy, embedder=embedder, write=True) as memory:
            _check(memory, ids, status="quarantined")
            return {"scope": memory.scope, "strategy": memory.strategy.name, **vars(memory.approve(ids, _actor()))}

    answer(as_json, work, print_fields)


def forget(
    store: Place,
    ids: Ids,
    scope: Scope = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Erase records for good, with their versions, vectors and the steps of their episodes."""
    if not yes and (as_json or not sys.stdin.isatty()):
        raise ConfigError("forget erases for good and nobody can be asked", do="say --yes")

    if not yes:
        with opened(store, scope, strategy=ANY) as memory:
            _check(memory, ids)
            show.at_stake(memory, ids)
        typer.confirm("Erase this for good?", abort=True)

    def work(_: Any) -> dict[str, Any]:
        with opened(store, scope, strategy=ANY, write=True) as memory:
            _check(memory, ids)
            return {"scope": memory.scope, **vars(memory.forget(ids))}

    answer(as_json, work, show.receipt)


def feedback(
    store: Place,
    episode: Annotated[str, typer.Argument(help="A closed episode.")],
    verdict: Annotated[str, typer.Argument(help="success, failure or unknown.")],
    scope: Scope = None,
    strategy: HowItLearns = None,
    as_json: Json = False,
) -> None:
    """Judge an episode anew; the next agent that opens this memory learns from it again."""

    def work(_: Any) -> dict[str, Any]:
        from remnant.memory.episode import check_verdict

        with opened(store, scope, strategy=strategy, write=True) as memory:
            memory.feedback(episode, verdict=check_verdict(verdict))
            pending = memory.store.pending(memory.scope)
            return {"scope": memory.scope, "episode": episode, "verdict": verdict, "pending": pending}

    answer(as_json, work, print_fields)


def export(
    store: Place,
    file: Annotated[Path, typer.Argument(help="Where to write the cube (JSON Lines).")],
    scope: Scope = None,
    strategy: HowItLearns = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Write the records of a scope to a file with a checksum."""
    if file.exists() and not force:
        raise ConfigError(f"{str(file)!r} exists", do="name another file, or say --force")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"no folder {str(file.absolute().parent)!r}", do="create it first")

    def work(progress: Progress) -> dict[str, Any]:
        with opened(store, scope, strategy=strategy) as memory:
            count = memory.export(file, progress)
            return {"scope": memory.scope, "file": str(file), "records": count, "bytes": file.stat().st_size}

    answer(as_json, work, print_fields)


def import_(
    store: Place,
    file: Annotated[Path, typer.Argument(help="A file that 'export' wrote.")],
    scope: Scope = None,
    strategy: HowItLearns = None,
    embedder: Vectors = None,
    as_json: Json = False,
) -> None:
    """Bring in the records of such a file, all or none; a store that does not exist is created."""

    def work(progress: Progress) -> dict[str, Any]:
        from remnant.memory import read_cube

        own = str(dict(read_cube(file).header.get("strategy", {})).get("name", ANY))  # a damaged file creates no store
        with opened(store, scope, strategy=strategy, embedder=embedder, write=True, create=True, default=own) as memory:
            done = memory.import_(file, progress)
            names = {"scope": memory.scope, "strategy": memory.strategy.name}
            return {**names, "added": len(done.added), "here_already": len(done.skipped), **_ids(done)}

    answer(as_json, work, print_fields)


def reindex(
    store: Place, embedder: Vectors = None, scope: Scope = None, strategy: HowItLearns = None, as_json: Json = False
) -> None:
    """Embed the records that have no vector of an embedder yet."""
    if embedder is None:
        raise ConfigError("nothing to embed with", do="name an embedder with --embedder")

    def work(_: Any) -> dict[str, Any]:
        with opened(store, scope, strategy=strategy, embedder=embedder, write=True) as memory:
            return {"scope": memory.scope, "strategy": memory.strategy.name, "embedded": memory.reindex()}

    answer(as_json, work, print_fields)


def migrate(store: Place, as_json: Json = False) -> None:
    """Bring a store to the newest schema, after a backup; every command that writes does so too."""

    def work(_: Any) -> dict[str, Any]:
        found = open_place(store, write=True)
        found.close()
        backup = getattr(found, "backup", None)
        return {"store": store, "migrated": backup is not None, "backup": str(backup) if backup else ""}

    answer(as_json, work, print_fields)


def _check(memory: Memory, ids: list[str], status: str = "") -> None:
    """All of them or none: a slip of the pen must not cost half of the list."""
    found = memory.store.get(memory.scope, ids)
    for id in ids:
        if id not in found:
            raise ConfigError(f"no record {id!r} in scope {memory.scope!r}; nothing was done")
        if status and found[id].status != status:
            raise ConfigError(f"record {id!r} is {found[id].status}; nothing was done", accepted=f"a {status} one")


def _ids(done: Any) -> dict[str, list[str]]:
    return {"ids": list(done.added), "skipped": list(done.skipped)}


def _actor() -> str:
    """Who stands behind the keyboard, for the audit."""
    import getpass

    try:
        return f"{getpass.getuser()} (command line)"
    except (KeyError, OSError):  # a user without a name
        return "command line"
