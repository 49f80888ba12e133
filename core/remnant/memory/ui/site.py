"""What every page shares: the memories that are shown, the templates, notices after an action."""

from __future__ import annotations

import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from remnant.memory.memory import Memory
from remnant.text import short, visible, when

MOST_NOTICES = 100


def _shown(value: Any) -> Any:
    """Whatever a template prints: text without hidden characters; escaping comes after this."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("remnant.memory.ui"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = cast("dict[str, Any]", made.filters)  # pyright: ignore[reportUnknownMemberType]
    filters.update(short=short, when=when, pretty=_json)
    return made


class Notices:
    """What the last actions did, each to be shown once, on the page that follows."""

    def __init__(self) -> None:
        """None yet."""
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[str, Sequence[str]]] = OrderedDict()

    def put(self, title: str, lines: Sequence[str]) -> str:
        """Keep one; the key to it."""
        key = secrets.token_hex(8)
        with self._lock:
            self._kept[key] = title, lines
            while len(self._kept) > MOST_NOTICES:
                self._kept.popitem(last=False)
        return key

    def take(self, key: str) -> tuple[str, Sequence[str]] | None:
        """The notice with a key, which is then gone."""
        with self._lock:
            return self._kept.pop(key, None)


@dataclass(frozen=True)
class Site:
    """The page of some memories.

    Args:
        memories: one per scope that may be seen; all of one store.
        place: the store's name, for the title.
        csrf: goes into every form.
        read_only: no page offers a change, and none is taken.
    """

    memories: tuple[Memory, ...]
    place: str
    csrf: str
    read_only: bool = False
    notices: Notices = field(default_factory=Notices)
    environment: Environment = field(default_factory=_environment)


def site_of(request: Request) -> Site:
    """The site that a request is for."""
    site: Site = request.app.state.site
    return site


def memory_of(request: Request) -> Memory:
    """The memory whose number stands in the address.

    Raises:
        HTTPException: the operator did not name so many scopes.
    """
    memories = site_of(request).memories
    number: int = request.path_params["number"]
    if number >= len(memories):
        raise HTTPException(404, "No such scope.")
    return memories[number]


def link(request: Request, page: str = "", /, **query: object) -> str:
    """The address of a page about the same scope."""
    kept = {name: str(value) for name, value in query.items() if value not in ("", None)}
    return f"/{request.path_params['number']}/{page}{'?' if kept else ''}{urlencode(kept)}"


def render(request: Request, template: str, code: int = 200, **values: Any) -> Response:
    """A page about one scope."""
    site, memory = site_of(request), memory_of(request)
    common: Mapping[str, Any] = {
        "site": site,
        "memory": memory,
        "number": request.path_params["number"],
        "page": template.removesuffix(".html"),
        "counts": memory.stats(),
        "stamp": stamp(memory),
        "notice": site.notices.take(request.query_params.get("notice", "")),
        "link": lambda page="", /, **query: link(request, page, **query),  # pyright: ignore
    }
    return HTMLResponse(site.environment.get_template(template).render(**common, **values), code)


def stamp(memory: Memory) -> str:
    """Changes whenever a page about this memory might look different."""
    store, scope = memory.store, memory.scope
    latest = [f"{e.id}{e.verdict}{e.closed_at}" for e in store.episodes(scope, limit=1)]
    return ".".join(map(str, (*store.stamp(scope), store.pending(scope), *latest)))


def after(request: Request, page: str, title: str, lines: Sequence[str] = (), **query: object) -> Response:
    """Go to a page and say there what was done."""
    key = site_of(request).notices.put(title, lines)
    return RedirectResponse(link(request, page, **query, notice=key), 303)
