"""Who may come in: the right name of the house, the key from the address, and nobody through another page.

The page is for one person on one machine. Another web page that the same browser shows can send
requests here; a name it owns can be made to point here (DNS rebinding). Hence: the `Host` must be
ours, a cookie that only the address with its token gives must be there and is never sent from
another site, and a request that changes something must come from our own pages.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

LARGEST = 1 << 16
"""Bytes of a request's body; our forms need a few hundred."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # without any, a browser would hide from us that a form is ours
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_ASGI = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[MutableMapping[str, Any]], Awaitable[None]]],
    Awaitable[None],
]


def _secret() -> str:
    return secrets.token_urlsafe(32)


@dataclass(frozen=True)
class Keys:
    """What lets a browser in.

    Args:
        names: the host names that are ours.
        port: the port that is ours.
        any_address: a numeric address will do as well; only a name can be made to point elsewhere.
        token: stands in the address that the operator opens.
        session: the cookie's value afterwards.
        csrf: stands in every form of ours.
    """

    names: frozenset[str]
    port: int
    any_address: bool = False
    token: str = field(default_factory=_secret)
    session: str = field(default_factory=_secret)
    csrf: str = field(default_factory=_secret)

    @property
    def cookie(self) -> str:
        """Its name; browsers share cookies between the ports of a host."""
        return f"remnant-{self.port}"

    def ours(self, host: str) -> bool:
        """Whether a `Host` header names this server."""
        name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "80")
        bare = name.removeprefix("[").removesuffix("]").lower()
        return port == str(self.port) and (bare in self.names or (self.any_address and _is_address(bare)))


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def same(given: str, expected: str) -> bool:
    """Whether two secrets are equal, in a time that tells nothing."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())


class Door:
    """An application that only the operator's browser gets into.

    Args:
        app: what is behind the door.
        keys: see `Keys`.
    """

    def __init__(self, app: _ASGI, keys: Keys) -> None:
        """See the class."""
        self._app, self._keys = app, keys

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, or refuse it; every answer carries the headers that keep it private."""
        if scope["type"] != "http":
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._answer(Request(scope))
        await (answer or self._app)(scope, receive, guarded)

    def _answer(self, request: Request) -> Response | None:
        """A refusal, or the exchange of the token for a cookie; None lets the request in."""
        keys = self._keys
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not keys.ours(hosts[0]):
            return _no("Not the name of this server.", 421)
        given = request.query_params.get("token")
        if given is not None and request.method == "GET":
            if not same(given, keys.token):
                return _no("Wrong token. Open the address that the command printed.")
            response = RedirectResponse("/", 303)
            response.set_cookie(keys.cookie, keys.session, httponly=True, samesite="strict")
            return response
        if not same(request.cookies.get(keys.cookie, ""), keys.session):
            return _no("No access. Open the address that the command printed.")
        return None if request.method in ("GET", "HEAD") else _foreign(request, hosts[0])


def _foreign(request: Request, host: str) -> Response | None:
    """A refusal of a request that would change something and was not sent by one of our pages."""
    if request.method != "POST":
        return _no("Not offered.", 405)
    origin = request.headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return _no("Sent by another page.")
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return _no("Sent by another page.")
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > LARGEST:
        return _no("Too long.", 413)
    return None


def _no(text: str, status: int = 403) -> Response:
    return PlainTextResponse(text + "\n", status)
