"""`remnant memory ui`: the local page."""

from __future__ import annotations

import sys
import webbrowser
from typing import Annotated

import typer

from remnant.cli._memory import HowItLearns, Place, Vectors, memory_in, open_place, without_password
from remnant.cli._output import Json, print_json
from remnant.lazy import needs


def ui(
    store: Place,
    scope: Annotated[
        list[str] | None, typer.Option(help="Whose memory; may be repeated; left out, the only one.", metavar="NAME")
    ] = None,
    strategy: HowItLearns = None,
    embedder: Vectors = None,
    host: Annotated[str, typer.Option(help="An address of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    allow_remote: Annotated[bool, typer.Option("--allow-remote", help="Let other machines in, unencrypted.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Offer no button and touch nothing.")] = False,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    as_json: Json = False,
) -> None:
    """Serve a local web page to look into a memory, with approve, forget and undo; Ctrl-C stops it."""
    with needs("ui", wanted_by="remnant memory ui"):
        from remnant.memory.ui.server import bind, serve

    found = open_place(store, write=not read_only)
    try:
        scopes = list(dict.fromkeys(scope)) if scope else [None]
        memories = [memory_in(found, store, name, strategy, embedder) for name in scopes]
        address = bind(host, port, remote=allow_remote)

        def ready() -> None:
            _announce(address.url, [memory.scope for memory in memories], as_json)
            if open_it:
                webbrowser.open(address.url)

        serve(address, memories, place=without_password(store), read_only=read_only, ready=ready)
    finally:
        found.close()


def _announce(url: str, scopes: list[str], as_json: bool) -> None:
    """The address goes out at once, also into a pipe: whoever started this waits for it."""
    if as_json:
        print_json({"url": url, "scopes": scopes})
    else:
        sys.stdout.write(f"{url}\nShows {', '.join(map(repr, scopes))}. Ctrl-C stops it.\n")
    sys.stdout.flush()
