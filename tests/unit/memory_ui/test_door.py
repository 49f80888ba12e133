"""Who gets in, and what may be done from where."""

import asyncio
import re
import socket
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra ui")
pytest.importorskip("uvicorn", reason="needs the extra ui")
pytest.importorskip("httpx", reason="needs the extra test")

from starlette.testclient import TestClient

from remnant.errors import ConfigError
from remnant.memory import Memory
from remnant.memory.ui import bind, make_app
from remnant.memory.ui.door import HEADERS, Keys

PORT = 8123
BASE = f"http://127.0.0.1:{PORT}"
PATHS = ["/", "/0/", "/0/records", "/0/episodes", "/0/changes", "/0/quarantine", "/0/live", "/static/page.js", "/nope"]


@pytest.fixture
def keys() -> Keys:
    return Keys(frozenset({"127.0.0.1", "localhost", "::1"}), PORT)


@pytest.fixture
def stranger(memory: Memory, kept: Any, keys: Keys) -> TestClient:
    return TestClient(make_app([memory], keys), base_url=BASE, follow_redirects=False)


@pytest.fixture
def client(stranger: TestClient, keys: Keys) -> TestClient:
    stranger.cookies.set(keys.cookie, keys.session)
    return stranger


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_told_without_the_token(stranger: TestClient, path: str):
    for cookie in ("", f"remnant-{PORT}=", f"remnant-{PORT}=guess"):
        answer = stranger.get(path, headers={"cookie": cookie})
        assert answer.status_code == 403
        assert answer.text == "No access. Open the address that the command printed.\n"


def test_token_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(stranger: TestClient, keys: Keys):
    answer = stranger.get(f"/?token={keys.token}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert keys.token.lower() not in cookie
    assert stranger.get("/0/").status_code == 200  # the client kept it


@pytest.mark.parametrize("token", ["", "wrong", "é", "\ud800".encode("utf-8", "surrogatepass").hex()])
def test_wrong_token_gets_nothing(stranger: TestClient, token: str):
    answer = stranger.get("/", params={"token": token})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_tokens_differ():
    first, second = Keys(frozenset(), 1), Keys(frozenset(), 1)
    assert len({first.token, first.session, first.csrf, second.token, second.session, second.csrf}) == 6
    assert len(first.token) >= 43  # 256 bits


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        f"evil.example:{PORT}",
        "127.0.0.1",
        "127.0.0.1:80",
        f"127.0.0.1:{PORT}.evil.example",
        f"127.0.0.2:{PORT}",
        "",
    ],
)
def test_another_name_of_the_host_is_refused_even_with_the_cookie(client: TestClient, host: str):
    """A page of another site whose name was made to point here would send that name."""
    assert client.get("/0/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", [f"localhost:{PORT}", f"LOCALHOST:{PORT}", f"[::1]:{PORT}", f"127.0.0.1:{PORT}"])
def test_names_of_this_machine(client: TestClient, host: str):
    assert client.get("/0/", headers={"host": host}).status_code == 200


def test_two_hosts_are_none(memory: Memory, keys: Keys):
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", f"127.0.0.1:{PORT}".encode()), (b"host", b"evil.example")]
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}
    asyncio.run(make_app([memory], keys)(scope, None, send))
    assert sent[0]["status"] == 421


def test_remote_page_takes_addresses_but_no_foreign_names():
    keys = Keys(frozenset({"0.0.0.0", "box"}), 80, any_address=True)
    ours = ["10.1.2.3", "10.1.2.3:80", "box", "Box:80", "[2001:db8::1]", "[2001:db8::1]:80"]
    assert [host for host in ours if not keys.ours(host)] == []
    assert [host for host in ("evil.example", "10.1.2.3:81", "box.evil.example", "") if keys.ours(host)] == []


@pytest.mark.parametrize("path", [*PATHS, "/0/record?id=none", "/7/", "/static/none"])
def test_every_answer_is_private(client: TestClient, path: str):
    for headers in ({}, {"cookie": f"remnant-{PORT}=guess"}):
        answer = client.get(path, headers=headers)
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert not re.search(r"unsafe|https?:|\*|data:", policy)


POSTS = [
    "/0/approve?id={held}",
    "/0/erase?id={held}",
    "/0/undo?change={change}",
    "/0/feedback?id={episode}&verdict=failure",
]


@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"data": {}}, 403),
        ({"data": {"csrf": "guess"}}, 403),
        ({"data": {}, "params": "token"}, 403),
        ({"headers": {"origin": "http://evil.example"}}, 403),
        ({"headers": {"origin": "null"}}, 403),
        ({"headers": {"origin": f"http://127.0.0.1:{PORT + 1}"}}, 403),
        ({"headers": {"sec-fetch-site": "cross-site"}}, 403),
        ({"headers": {"sec-fetch-site": "same-site"}}, 403),
        ({"headers": {"host": f"evil.example:{PORT}"}}, 421),
        ({"headers": {"cookie": f"remnant-{PORT}=guess"}}, 403),
        ({"data": {"csrf": "right", "more": "x" * 70_000}}, 413),
        ({"method": "PUT"}, 405),
        ({"method": "DELETE", "data": None}, 405),
        ({"method": "GET", "data": None}, 405),
    ],
    ids=str,
)
def test_other_pages_cannot_change_anything(
    client: TestClient, memory: Memory, kept: Any, keys: Keys, post: str, changes: dict[str, Any], code: int
):
    before = memory.changes(), memory.stats(), memory.store.episode(memory.scope, kept.episode)
    request: dict[str, Any] = {"method": "POST", "data": {"csrf": "right"}, **changes}
    if request["data"] and request["data"].get("csrf") == "right":
        request["data"] = {**request["data"], "csrf": keys.csrf}
    path = post.format(**kept._asdict())
    if request.pop("params", None):
        path += f"&token={keys.token}"
    assert client.request(url=path, **request).status_code == code
    assert (memory.changes(), memory.stats(), memory.store.episode(memory.scope, kept.episode)) == before


def test_body_of_unknown_length_is_refused(client: TestClient, kept: Any):
    answer = client.post(f"/0/approve?id={kept.held}", content=(part for part in [b"csrf=", b"x"]))
    assert answer.status_code == 413


def test_websockets_and_other_protocols_are_ignored(memory: Memory, keys: Keys):
    asyncio.run(make_app([memory], keys)({"type": "websocket"}, None, None))


def test_only_this_machine_unless_asked(monkeypatch: pytest.MonkeyPatch):
    for host in ("0.0.0.0", "::"):
        with pytest.raises(ConfigError, match="--allow-remote"):
            bind(host)
    remote = bind("0.0.0.0", remote=True)
    remote.socket.close()
    assert remote.keys.any_address
    here = bind()
    assert here.url == f"http://127.0.0.1:{here.keys.port}/?token={here.keys.token}"
    with pytest.raises(ConfigError, match="another"):
        bind(port=here.keys.port)
    here.socket.close()
    with pytest.raises(ConfigError, match="no-such-host"):
        bind("no-such-host.invalid")
    if socket.has_ipv6:
        six = bind("::1")
        six.socket.close()
        assert six.url.startswith("http://[::1]:")


def test_missing_extra_names_the_command(tmp_path: Any):
    code = "import sys; sys.modules['starlette'] = None; from remnant.cli import main; sys.exit(main())"
    arguments = [sys.executable, "-c", code, "memory", "ui", str(tmp_path / "x.db")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'remnant[ui]'" in done.stderr
