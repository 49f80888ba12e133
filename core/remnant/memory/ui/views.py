"""The pages: each reads one scope of the store and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from remnant.memory.display import field_changes
from remnant.memory.guard import PROCEDURAL, reads_like_a_command
from remnant.memory.memory import Memory
from remnant.memory.record import STATUSES, Record
from remnant.memory.store import Version
from remnant.memory.ui.site import link, memory_of, render, site_of, stamp

PAGE = 50
"""Rows of a page."""

MOST_SCANNED = 5000
"""Records looked at for one page of a kind; the link to the next page goes on from there."""

MOST_VERSIONS = 100
MOST_DIFFERENCES = 200


def home(request: Request) -> Response:
    """The first scope, or the one that was chosen."""
    chosen = request.query_params.get("scope", "0")
    known = chosen.isdecimal() and int(chosen) < len(site_of(request).memories)
    return RedirectResponse(f"/{int(chosen) if known else 0}/", 303)


def overview(request: Request) -> Response:
    """How much there is, what waits, what failed, what happened last."""
    memory = memory_of(request)
    episodes = memory.store.episodes(memory.scope, limit=1 << 31)
    ends = [episode.verdict if episode.closed_at else "open" for episode in episodes]
    return render(
        request,
        "overview.html",
        ends={end: ends.count(end) for end in ("success", "failure", "unknown", "open")},
        failed=[(key, error) for key, state, _, error in memory.store.jobs(memory.scope) if state == "failed"][:PAGE],
        changes=memory.changes(8),
        costs=memory.costs(),
        bytes=_size(memory),
    )


def _size(memory: Memory) -> int | None:
    path = getattr(memory.store, "path", None)
    return path.stat().st_size if path else None


def live(request: Request) -> Response:
    """What the pages' script asks every few seconds: whether there is anything new."""
    return JSONResponse({"stamp": stamp(memory_of(request))})


def records(request: Request) -> Response:
    """Records, newest first; with a question, those that an agent would be given for it."""
    memory, query = memory_of(request), request.query_params
    asked, kind, status = query.get("q", "").strip(), query.get("kind", "").strip(), query.get("status", "active")
    statuses = (status,) if status in STATUSES else tuple(STATUSES)
    values: dict[str, Any] = {"asked": asked, "kind": kind, "status": status, "statuses": (*STATUSES, "all")}
    if asked:
        hits = memory.recall(asked, PAGE, kinds=[kind] if kind else None)
        return render(request, "records.html", hits=hits, rows=[hit.record for hit in hits], next="", **values)
    rows, following = _page(memory, statuses, kind, query.get("after", ""))
    return render(request, "records.html", hits=None, rows=rows, next=following, **values)


def _page(memory: Memory, statuses: Sequence[str], kind: str, after: str) -> tuple[list[Record], str]:
    """Records of a kind, and the id to go on after; empty when there are no more."""
    found: list[Record] = []
    size = 500 if kind else PAGE + 1
    for _ in range(0, MOST_SCANNED, size):
        rows = memory.store.page(memory.scope, statuses=statuses, after=after, limit=size, newest=True)
        for row in rows:
            if len(found) == PAGE:
                return found, found[-1].id
            if not kind or row.kind == kind:
                found.append(row)
        if len(rows) < size:
            return found, ""
        after = rows[-1].id
    return found, after


def record(request: Request) -> Response:
    """One record with every version, and where it came from."""
    memory = memory_of(request)
    found = _record(memory, request.query_params.get("id", ""))
    history = memory.audit(found.id)
    steps: list[tuple[Version, Record, Any]] = []
    before: Record | None = None
    for change, after in history:
        steps.append((change, after, field_changes(before and before.to_dict(), after.to_dict())))
        before = after
    sources = {s.source_id for s in found.provenance if s.source_type == "episode"}
    episodes = {id: episode for id in sorted(sources) if (episode := memory.store.episode(memory.scope, id))}
    parents = memory.store.get(memory.scope, found.parents)
    shown = steps[: -MOST_VERSIONS - 1 : -1]
    return render(
        request, "record.html", record=found, versions=shown, total=len(steps), episodes=episodes, parents=parents
    )


def _record(memory: Memory, id: str) -> Record:
    found = memory.get(id)
    if found is None:
        raise HTTPException(404, "No such record in this scope. Perhaps it was forgotten.")
    return found


def episodes(request: Request) -> Response:
    """Episodes, newest first, and how their distillation stands."""
    memory, number = memory_of(request), _number(request, "page")
    rows = memory.store.episodes(memory.scope, limit=(number + 1) * PAGE + 1)[number * PAGE :]
    jobs = {key: (state, error) for key, state, _, error in memory.store.jobs(memory.scope)}
    return render(request, "episodes.html", rows=rows[:PAGE], jobs=jobs, at=number, more=len(rows) > PAGE)


def episode(request: Request) -> Response:
    """One episode: its steps, how it ended, what was learnt from it."""
    memory, id = memory_of(request), request.query_params.get("id", "")
    found = memory.store.episode(memory.scope, id)
    if found is None:
        raise HTTPException(404, "No such episode in this scope.")
    jobs = {key: (state, error) for key, state, _, error in memory.store.jobs(memory.scope)}
    taught = list(memory.store.get(memory.scope, memory.store.learnt(memory.scope, id)).values())
    return render(request, "episode.html", episode=found, job=jobs.get(found.group or id), taught=taught)


def changes(request: Request) -> Response:
    """What was written, newest first."""
    number = _number(request, "page")
    rows = memory_of(request).changes((number + 1) * PAGE + 1)[number * PAGE :]
    return render(request, "changes.html", rows=rows[:PAGE], at=number, more=len(rows) > PAGE)


def change(request: Request) -> Response:
    """What one change did to each record."""
    memory, number = memory_of(request), _number(request, "change")
    rows = memory.store.changed(memory.scope, number)
    found = next((v for v, _ in memory.audit(rows[0][1].id) if v.number == number), None) if rows else None
    if found is None:
        raise HTTPException(404, "No such change in this scope, or all that it wrote was forgotten.")
    both = [(b.to_dict() if b else None, a.to_dict()) for b, a in rows[:MOST_DIFFERENCES]]
    shown = [(a["id"], b is None, field_changes(b, a)) for b, a in both]
    return render(request, "change.html", change=found, differences=shown, total=len(rows))


def quarantine(request: Request) -> Response:
    """What waits for a person's word, and why."""
    memory = memory_of(request)
    rows, following = _page(memory, ("quarantined",), "", request.query_params.get("after", ""))
    return render(request, "quarantine.html", rows=[(row, _why(memory, row)) for row in rows], next=following)


def _why(memory: Memory, record: Record) -> str:
    history = memory.audit(record.id)
    if history and history[-1][0].actor == "circuit breaker":
        return history[-1][0].reason
    if reads_like_a_command(f"{record.trigger}\n{record.content}"):
        return "reads like an instruction to a model"
    if record.trust in ("tool", "web") and record.kind in PROCEDURAL:
        return f"know-how from {record.trust}, not from a success"
    return "held by whoever wrote it"


def forget(request: Request) -> Response:
    """What forgetting a record would erase, before it is done."""
    memory = memory_of(request)
    found = _record(memory, request.query_params.get("id", ""))
    history = memory.audit(found.id)
    sources = {s.source_id for _, r in history for s in r.provenance if s.source_type == "episode"}
    return render(request, "forget.html", record=found, versions=len(history), sources=sorted(sources))


def _number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "0")
    return int(text) if text.isdecimal() and len(text) < 16 else 0


__all__ = [
    "change",
    "changes",
    "episode",
    "episodes",
    "forget",
    "home",
    "link",
    "live",
    "overview",
    "quarantine",
    "record",
    "records",
]
