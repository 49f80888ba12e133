"""What the buttons do: approve, forget, undo, judge an episode.

Each is one post whose body holds the form's token; what it is about stands in the address, as it
does for the pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from remnant.memory.episode import check_verdict
from remnant.memory.ui.door import same
from remnant.memory.ui.site import after, memory_of, site_of

ACTOR = "web page"
Act = Callable[[Request], Response]


def posted(act: Act) -> Callable[[Request], Any]:
    """An endpoint that reads a form of ours and does something in a thread.

    Raises:
        HTTPException: the form is not ours, or the site only shows.
    """

    async def endpoint(request: Request) -> Response:
        async with request.form(max_files=0, max_fields=10) as form:
            given = form.get("csrf")
        site = site_of(request)
        if not isinstance(given, str) or not same(given, site.csrf):
            raise HTTPException(403, "The form is out of date. Open the page again.")
        if site.read_only:
            raise HTTPException(403, "This page only shows; it was started with --read-only.")
        return await run_in_threadpool(act, request)

    return endpoint


def approve(request: Request) -> Response:
    """Let a quarantined record be recalled."""
    memory, id = memory_of(request), request.query_params.get("id", "")
    found = memory.get(id)
    if found is None or found.status != "quarantined":
        return after(request, "quarantine", "Nothing was done: the record is no longer in quarantine.")
    done = memory.approve(id, ACTOR)
    return after(request, "quarantine", "Approved. Agents are given it again.", [f"change {done.number}, record {id}"])


def forget(request: Request) -> Response:
    """Erase a record for good and show the receipt."""
    receipt = memory_of(request).forget(request.query_params.get("id", ""))
    if not receipt.ids:
        return after(request, "records", "Nothing was done: the record is not here.")
    lines = [
        f"record {', '.join(receipt.ids)}",
        f"versions: {receipt.versions}, vectors: {receipt.vectors}, entries of the word index: {receipt.words}",
        f"episodes: {len(receipt.episodes)}, steps: {receipt.steps}",
    ]
    if receipt.derived:
        lines.append(f"kept, though made from it: {', '.join(receipt.derived)}")
    if receipt.clean:
        lines.append("no byte of it is left in the store's files")
    lines += [f"bytes of it may still lie in: {place}" for place in receipt.remains]
    back = request.query_params.get("back", "")
    return after(request, back if back in ("records", "quarantine") else "records", "Forgotten.", lines)


def undo(request: Request) -> Response:
    """Take a change back."""
    number = request.query_params.get("change", "")
    if not number.isdecimal() or len(number) > 15:
        raise HTTPException(400, "No such change.")
    done = memory_of(request).undo(int(number), ACTOR)
    return after(request, "changes", f"Change {number} was taken back.", [f"as change {done.number}"])


def feedback(request: Request) -> Response:
    """Judge an episode anew."""
    memory, id = memory_of(request), request.query_params.get("id", "")
    verdict = check_verdict(request.query_params.get("verdict", ""))
    memory.feedback(id, verdict=verdict)
    waits = "It is distilled anew by the next agent that opens this memory."
    return after(request, "episode", f"The verdict is now {verdict}.", [waits], id=id)
