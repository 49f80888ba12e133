"""The application and the server of the page."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from remnant.errors import ConfigError, RemnantError
from remnant.memory.errors import ConflictError
from remnant.memory.memory import Memory
from remnant.memory.ui import actions, views
from remnant.memory.ui.door import Door, Keys
from remnant.memory.ui.site import Site, render

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Address:
    """Where the page is served.

    Args:
        socket: bound, and owned by whoever serves.
        host: as it was given.
        keys: what lets a browser in.
    """

    socket: socket.socket
    host: str
    keys: Keys

    @property
    def url(self) -> str:
        """What the operator opens; it holds the token."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.keys.port}/?token={self.keys.token}"


def bind(host: str = "127.0.0.1", port: int = 0, *, remote: bool = False) -> Address:
    """Take a port.

    Args:
        host: an address of this machine, or a name of it.
        port: 0 takes a free one.
        remote: an address that other machines can reach will do; nothing is encrypted on the way.

    Raises:
        ConfigError: other machines can reach the host, or the port is taken.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        local = ip_address(place[0]).is_loopback
        if not local and not remote:
            raise ConfigError(
                f"host {host!r} can be reached by other machines",
                accepted=LOOPBACK,
                do="if you mean it, say --allow-remote; nothing is encrypted",
            )
        bound = socket.create_server((str(place[0]), port), family=family)
    except OSError as error:
        raise ConfigError(
            f"host {host!r}, port {port}: {error}", do="name another port, or 0 for a free one"
        ) from error
    names = {host.lower(), *LOOPBACK} if local else {host.lower(), socket.gethostname().lower(), *LOOPBACK}
    return Address(bound, host, Keys(frozenset(names), bound.getsockname()[1], any_address=not local))


def make_app(memories: Sequence[Memory], keys: Keys, *, place: str = "", read_only: bool = False) -> Door:
    """The page as an ASGI application.

    Args:
        memories: the scopes that may be seen; all of one store.
        keys: what lets a browser in.
        place: the store's name, for the title.
        read_only: offer no change and take none.
    """
    site = Site(tuple(memories), place, keys.csrf, read_only)
    views_of_scope = [
        Route("/", views.overview),
        *(
            Route(f"/{view.__name__}", view)
            for view in (
                views.records,
                views.record,
                views.episodes,
                views.episode,
                views.changes,
                views.change,
                views.quarantine,
                views.forget,
                views.live,
            )
        ),
        *(
            Route(f"/{act.__name__}", actions.posted(act), methods=["POST"])
            for act in (actions.approve, actions.undo, actions.feedback)
        ),
        Route("/erase", actions.posted(actions.forget), methods=["POST"]),
    ]
    app = Starlette(
        routes=[
            Route("/", views.home),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
            Mount("/{number:int}", routes=views_of_scope),
        ],
        exception_handlers={HTTPException: _refused, RemnantError: _refused},
    )
    app.state.site = site
    return Door(app, keys)


def _refused(request: Request, error: Exception) -> Response:
    """A page that says why not."""
    if isinstance(error, HTTPException):
        status, text = error.status_code, error.detail
    else:
        status = 409 if isinstance(error, ConflictError) else 400 if isinstance(error, ConfigError) else 503
        text = str(error)
    site: Site = request.app.state.site
    if request.path_params.get("number", len(site.memories)) >= len(site.memories) or status == 503:
        return PlainTextResponse(text + "\n", status)
    return render(request, "refused.html", status, text=text)


def serve(
    address: Address,
    memories: Sequence[Memory],
    *,
    place: str = "",
    read_only: bool = False,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until it is interrupted or terminated, and then return.

    Args:
        address: from `bind`; closed at the end.
        memories: see `make_app`.
        place: see `make_app`.
        read_only: see `make_app`.
        ready: called when a browser may come.
    """
    app = make_app(memories, address.keys, place=place, read_only=read_only)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    try:
        with _terminated_like_interrupted():
            ready()
            uvicorn.Server(config).run(sockets=[address.socket])
    except KeyboardInterrupt:
        return
    finally:
        address.socket.close()


@contextmanager
def _terminated_like_interrupted() -> Generator[None, None, None]:
    """Let SIGTERM, and Ctrl-C where a shell in the background made it ignored, unwind the stack.

    So what the caller has open is closed, also before the server has handlers of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
