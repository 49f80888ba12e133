"""`remnant memory`: look into an agent's memory, correct it, carry it elsewhere, and erase from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from remnant.cli import _memory_show as show
from remnant.cli import memory_write
from remnant.cli._memory import ANY, HowItLearns, Place, Scope, Vectors, opened, strategies_of
from remnant.cli._output import Json, answer
from remnant.cli.memory_ui import ui
from remnant.errors import ConfigError, unknown

if TYPE_CHECKING:
    from remnant.memory import Episode, Memory, Record

memory = typer.Typer(help="Look into an agent's memory, correct it, carry it elsewhere, erase.", no_args_is_help=True)
_STATUSES = ("active", "quarantined", "archived", "deleted")

Limit = Annotated[int, typer.Option("--limit", min=1, help="Rows at most.")]


@memory.command(name="list")
def list_records(
    store: Place,
    scope: Scope = None,
    status: Annotated[list[str] | None, typer.Option(help="active (default), quarantined, ..., or all.")] = None,
    kind: Annotated[str | None, typer.Option(help="Records of this kind only.")] = None,
    limit: Limit = 50,
    after: Annotated[str, typer.Option(help="Go on after this id.", metavar="ID")] = "",
    oldest: Annotated[bool, typer.Option("--oldest", help="Oldest first.")] = False,
    as_json: Json = False,
) -> None:
    """List records, newest first."""
    statuses = _statuses(status or ["active"])

    def work(_: Any) -> dict[str, Any]:
        with opened(store, scope, strategy=ANY) as found:
            rows = _records(found, statuses, kind, after, limit + 1, newest=not oldest)
            more = rows[limit - 1].id if len(rows) > limit else None
            return {"scope": found.scope, "records": [row.to_dict() for row in rows[:limit]], "next": more}

    answer(as_json, work, show.records)


@memory.command(name="show")
def show_record(store: Place, id: str, scope: Scope = None, as_json: Json = False) -> None:
    """Show everything about a record."""

    def work(_: Any) -> dict[str, Any]:
        with opened(store, scope, strategy=ANY) as found:
            return {"scope": found.scope, **_record(found, id).to_dict()}

    answer(as_json, work, show.record)


@memory.command()
def search(
    store: Place,
    query: str,
    scope: Scope = None,
    strategy: HowItLearns = None,
    embedder: Vectors = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Hits at most.")] = 10,
    budget_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of all hits at most.")] = None,
    as_of: Annotated[int | None, typer.Option(min=0, help="As it was after this change.", metavar="CHANGE")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Records of this kind only; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Search as an agent would, with scores; nothing is counted as used."""

    def work(_: Any) -> dict[str, Any]:
        with opened(store, scope, strategy=strategy, embedder=embedder) as found:
            hits = found.recall(query, k, budget_tokens, as_of, kinds=kind)
            rows = [{**vars(hit), "trust": hit.record.trust, "record": hit.record.to_dict()} for hit in hits]
            return {"scope": found.scope, "strategy": found.strategy.name, "query": query, "hits": rows}

    answer(as_json, work, show.hits)


@memory.command()
def audit(
    store: Place,
    id: Annotated[str | None, typer.Argument(help="A record; left out, the latest changes.")] = None,
    scope: Scope = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """Show who changed what, when and why: of one record, or the latest changes."""

    def work(_: Any) -> dict[str, Any]:
        with opened(store, scope, strategy=ANY) as found:
            if id is None:
                return {"scope": found.scope, "changes": [vars(change) for change in found.changes(limit)]}
            _record(found, id)
            pairs = found.audit(id)[-limit:]
            rows = [{"change": vars(change), "record": record.to_dict()} for change, record in pairs]
            return {"scope": found.scope, "id": id, "versions": rows}

    answer(as_json, work, show.changes if id is None else show.versions)


@memory.command()
def diff(
    store: Place,
    first: Annotated[int | None, typer.Argument(help="A change's number: memory right after it.")] = None,
    second: Annotated[int | None, typer.Argument(help="A later change; left out, now.")] = None,
    change: Annotated[int | None, typer.Option("--change", min=1, help="What this change alone did.")] = None,
    scope: Scope = None,
    as_json: Json = False,
) -> None:
    """Show what differs between two states of memory; numbers come from 'audit'."""
    if (first is None) == (change is None):
        raise ConfigError("no state to compare", accepted="the numbers of one or two changes, or --change")

    def work(_: Any) -> dict[str, Any]:
        with opened(store, scope, strategy=ANY) as found:
            start = first if change is None else change - 1  # type: ignore[operator]
            end = second if change is None else change
            rows = found.diff(start or 0, end)
            both = [{"id": row.id, "before": _data(row.before), "after": _data(row.after)} for row in rows]
            return {"scope": found.scope, "first": start, "second": end, "differences": both}

    answer(as_json, work, show.differences)


@memory.command()
def stats(store: Place, scope: Scope = None, as_json: Json = False) -> None:
    """Count records, episodes, changes and distillations."""

    def work(_: Any) -> dict[str, Any]:
        with opened(store, scope, strategy=ANY) as found:
            return _stats(found)

    answer(as_json, work, show.stats)


@memory.command()
def episodes(
    store: Place,
    id: Annotated[str | None, typer.Argument(help="An episode; left out, the latest ones.")] = None,
    scope: Scope = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List episodes, newest first, or show one with its steps and what it taught."""

    def work(_: Any) -> dict[str, Any]:
        with opened(store, scope, strategy=ANY) as found:
            jobs = {key: (state, error) for key, state, _, error in found.store.jobs(found.scope)}
            if id is None:
                rows = [_episode(row, jobs) for row in found.store.episodes(found.scope, limit=limit)]
                return {"scope": found.scope, "episodes": rows}
            row = found.store.episode(found.scope, id)
            if row is None:
                raise ConfigError(f"no episode {id!r}", accepted="an id that 'remnant memory episodes' shows")
            taught = found.store.get(found.scope, found.store.learnt(found.scope, id))
            return {**_episode(row, jobs), "steps": list(row.steps), "taught": [r.to_dict() for r in taught.values()]}

    answer(as_json, work, show.episodes if id is None else show.episode)


def _episode(row: Episode, jobs: dict[str, tuple[str, str]]) -> dict[str, Any]:
    state, error = jobs.get(row.group or row.id, ("", ""))
    data = {name: value for name, value in vars(row).items() if name != "steps"}
    return {**data, "distillation": state, "error": error}


def _statuses(given: list[str]) -> tuple[str, ...]:
    if "all" in given:
        return _STATUSES
    for status in given:
        if status not in _STATUSES:
            raise unknown("status", status, (*_STATUSES, "all"))
    return tuple(given)


def _records(
    memory: Memory, statuses: tuple[str, ...], kind: str | None, after: str, limit: int, *, newest: bool
) -> list[Record]:
    """Pages of the store until there are enough of the kind."""
    found: list[Record] = []
    size = limit if kind is None else 1000
    while len(found) < limit:
        page = memory.store.page(memory.scope, statuses=statuses, after=after, limit=size, newest=newest)
        found += [record for record in page if kind is None or record.kind == kind]
        if len(page) < size:
            break
        after = page[-1].id
    return found[:limit]


def _record(memory: Memory, id: str) -> Record:
    found = memory.get(id)
    if found is None:
        raise ConfigError(f"no record {id!r} in scope {memory.scope!r}", accepted="an id that 'list' shows")
    return found


def _data(record: Record | None) -> dict[str, Any] | None:
    return record and record.to_dict()


def _stats(memory: Memory) -> dict[str, Any]:
    counts = memory.stats()
    states = [(state, key, error) for key, state, _, error in memory.store.jobs(memory.scope)]
    verdicts = [episode.verdict if episode.closed_at else "open" for episode in _every_episode(memory)]
    file = getattr(memory.store, "path", None)
    return {
        "scope": memory.scope,
        "strategies": strategies_of(memory.store, memory.scope),
        "records": {status: counts.get(status, 0) for status in _STATUSES},
        "episodes": {end: verdicts.count(end) for end in ("success", "failure", "unknown", "open")},
        "distillations": {"pending": counts["pending"], "failed": sum(state == "failed" for state, *_ in states)},
        "last_change": memory.store.latest(memory.scope),
        "bytes": file.stat().st_size if file else None,
        "failures": [{"key": key, "error": error} for state, key, error in states if state == "failed"],
    }


def _every_episode(memory: Memory) -> list[Any]:
    return memory.store.episodes(memory.scope, limit=1 << 31)


memory.command()(memory_write.undo)
memory.command()(memory_write.approve)
memory.command()(memory_write.forget)
memory.command()(memory_write.feedback)
memory.command(name="export")(memory_write.export)
memory.command(name="import")(memory_write.import_)
memory.command()(memory_write.reindex)
memory.command()(memory_write.migrate)
memory.command()(ui)
