"""What the pages show, and what their buttons do."""

from html.parser import HTMLParser
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra ui")
pytest.importorskip("uvicorn", reason="needs the extra ui")
pytest.importorskip("httpx", reason="needs the extra test")

from starlette.testclient import TestClient

from remnant.memory import Memory, Message, Record, ScriptedChatModel, Update
from remnant.memory.llm import Metered
from remnant.memory.ui import make_app
from remnant.memory.ui.door import Keys
from remnant.memory.ui.site import MOST_NOTICES, Notices

PORT = 8123
HTML = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><b>bold</b> {{ 7 * 7 }} [red]x[/]"
KEYS = Keys(frozenset({"127.0.0.1"}), PORT)


class Page(HTMLParser):
    """The elements of a page and its visible words."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def links(self) -> list[str]:
        return [str(a["href"]) for tag, a in self.elements if tag == "a" and a.get("href")]

    def forms(self) -> list[str]:
        return [str(a["action"]) for tag, a in self.elements if tag == "form" and a.get("method") == "post"]


def _page(answer: Any) -> Page:
    page = Page()
    page.feed(answer.text)
    return page


def _client(*memories: Memory, **settings: Any) -> TestClient:
    client = TestClient(make_app(memories, KEYS, place="memory.db", **settings), base_url=f"http://127.0.0.1:{PORT}")
    client.cookies.set(KEYS.cookie, KEYS.session)
    return client


@pytest.fixture
def client(memory: Memory, kept: Any) -> TestClient:
    return _client(memory)


def _post(client: TestClient, path: str, **query: Any) -> Any:
    return client.post(path, params=query, data={"csrf": KEYS.csrf})


@pytest.fixture
def everywhere(client: TestClient, kept: Any) -> list[Any]:
    """Every page that a click leads to, from the first one on."""
    seen: dict[str, Any] = {}
    todo = ["/", f"/0/records?q={HTML}", "/0/records?status=all", "/0/record?id=none", "/0/change?change=99"]
    while todo:
        path = todo.pop()
        if path not in seen and len(seen) < 200:
            answer = client.get(path)
            seen[path] = answer
            todo += [link for link in _page(answer).links() if link.startswith("/")]
    assert {path.partition("?")[0] for path in seen} >= {
        f"/0/{name}"
        for name in ("", "records", "record", "episodes", "episode", "changes", "change", "quarantine", "forget")
    }
    return list(seen.values())


def test_memories_are_text_on_every_page(everywhere: list[Any]):
    shown = 0
    for answer in everywhere:
        page = _page(answer)
        assert answer.status_code in (200, 404)
        for tag, attributes in page.elements:
            assert tag not in ("img", "b", "iframe", "style", "object") or (tag == "b" and not attributes)
            assert tag != "script" or set(attributes) == {"src", "defer"}
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            for name in ("href", "src", "action"):
                assert str(attributes.get(name, "/")).startswith(("/", "#main")) or attributes.get(name) == ""
        assert " 49 " not in page.words
        assert not {"\x1b", "\u202e"} & set(answer.text)
        shown += "<script>alert(1)</script>" in page.words
    assert shown == len(everywhere)  # the name of the scope, at least


def test_every_form_holds_the_token_and_every_field_a_label(everywhere: list[Any]):
    for answer in everywhere:
        page = _page(answer)
        tokens = [a for tag, a in page.elements if tag == "input" and a.get("name") == "csrf"]
        assert [a["value"] for a in tokens] == [KEYS.csrf] * len(page.forms())
        labels = {a.get("for") for tag, a in page.elements if tag == "label"}
        fields = {a.get("id") for tag, a in page.elements if tag in ("input", "select") and a.get("type") != "hidden"}
        assert fields <= labels
        ids = [a["id"] for _, a in page.elements if "id" in a]
        assert len(ids) == len(set(ids))
        headings = [tag for tag, _ in page.elements if tag == "h1"]
        assert len(headings) == 1


def test_overview_counts(client: TestClient, memory: Memory):
    words = " ".join(_page(client.get("/0/")).words.split())
    for part in (
        f"{memory.stats()['active']} active",
        "1 quarantined",
        "facts",
        "success 1",
        "0 waiting",
        "None: what an agent's calls cost",
    ):
        assert part in words, part


def test_overview_tells_what_calls_of_this_process_cost_and_what_was_given_up(memory: Memory, kept: Any):
    model = ScriptedChatModel([("", "a reply of some length")])
    Metered(model, memory.context.costs, "distil").generate([Message("user", "x" * 4000)])
    job = memory.feedback(kept.episode, success=False) or memory.store.claim(memory.scope, "here", 60)
    assert job is None  # distilled at once
    memory.store.revise(memory.scope, kept.episode, "failure", "user")
    job = memory.store.claim(memory.scope, "here", 60)
    assert job is not None
    memory.store.fail(memory.scope, job, f"no answer {HTML}", retry_in=None)
    words = " ".join(_page(_client(memory).get("/0/")).words.split())
    assert "distil11,002" in words
    assert "1 given up" in words
    assert "no answer <script>" in words


def test_records_are_paged_newest_first_with_filters(memory: Memory, kept: Any):
    memory.add([Record(f"text {n:04}", kind="odd" if n % 2 else "even") for n in range(300)])
    client = _client(memory)
    active = memory.stats()["active"]
    for query, many in (("", active), ("?kind=odd", 150), ("?status=quarantined", 1), ("?status=all", active + 1)):
        path, found = f"/0/records{query}", []
        while path:
            page = _page(client.get(path))
            found += [link for link in page.links() if link.startswith("/0/record?")]
            path = next((a["href"] for tag, a in page.elements if tag == "a" and a.get("rel") == "next"), "")
        assert len(found) == len(set(found)) == many
    first = [link for link in _page(client.get("/0/records")).links() if "/0/record?" in link]
    assert len(first) == 50
    assert "text 0299" in client.get("/0/records").text


def test_episodes_and_changes_are_paged(memory: Memory):
    for n in range(120):
        memory.open_episode(f"task {n}")
        memory.add(f"text {n}")
    client = _client(memory)
    for name, row in (("episodes", "/0/episode?"), ("changes", "/0/change?")):
        path, found, newer = f"/0/{name}", [], []
        while path:
            page = _page(client.get(path))
            found += [link for link in page.links() if link.startswith(row)]
            newer += [a["href"] for tag, a in page.elements if tag == "a" and a.get("rel") == "prev"]
            path = next((a["href"] for tag, a in page.elements if tag == "a" and a.get("rel") == "next"), "")
        assert len(set(found)) == 120
        assert newer == [f"/0/{name}?page=0", f"/0/{name}?page=1"]
        assert client.get(f"/0/{name}?page=99").status_code == 200


def test_search_is_that_of_the_agent(client: TestClient, memory: Memory, kept: Any):
    answer = client.get("/0/records", params={"q": "tea"})
    (hit,) = memory.recall("tea")
    assert f"{hit.score:.3f}" in answer.text
    assert "oat milk" in answer.text
    assert "biscuits" not in answer.text
    assert "0 found" in client.get("/0/records", params={"q": "tea", "kind": "strategy"}).text
    assert memory.get(kept.tea).utility.retrieved == 1  # type: ignore[union-attr]


def test_record_shows_versions_sources_and_use(client: TestClient, kept: Any):
    answer = client.get("/0/record", params={"id": kept.tea})
    assert "<del>" in answer.text
    words = " ".join(_page(answer).words.split())
    assert "Version 2" in words
    assert "removed: without" in words
    assert "added: with oat" in words
    assert "1 +1 helped \u22120 harmed" in words
    learnt = client.get("/0/episode", params={"id": kept.episode})
    link = next(link for link in _page(learnt).links() if link.startswith("/0/record?"))
    assert "Serve Ada" in client.get(link).text  # and back to the episode


def test_record_of_a_thousand_versions_is_still_a_page(memory: Memory):
    (id,) = memory.add("text 0")
    for n in range(1, 130):
        memory.apply([Update(id, {"content": f"text {n}"})], "", "")
    answer = _client(memory).get("/0/record", params={"id": id})
    assert "The newest 100 of 130" in answer.text


def test_approve_forget_undo_and_feedback(client: TestClient, memory: Memory, kept: Any):
    answer = _post(client, "/0/approve", id=kept.held)
    assert answer.url.path == "/0/quarantine"
    assert "Approved." in answer.text
    assert "Nothing is in quarantine." in answer.text
    assert memory.get(kept.held).status == "active"  # type: ignore[union-attr]
    assert memory.changes(1)[0].actor == "web page"
    assert "Approved." not in client.get(answer.url.path, params=answer.url.params).text  # said once
    assert "Nothing was done" in _post(client, "/0/approve", id=kept.held).text

    assert "with its one version" not in client.get("/0/forget", params={"id": kept.held}).text
    answer = _post(client, "/0/erase", id=kept.held)
    assert "no byte of it is left" in answer.text
    assert memory.get(kept.held) is None
    assert "Nothing was done" in _post(client, "/0/erase", id=kept.held).text
    assert client.get("/0/record", params={"id": kept.held}).status_code == 404

    answer = _post(client, "/0/undo", change=kept.change)
    assert f"Change {kept.change} was taken back." in answer.text
    assert memory.get(kept.tea).content == "Ada takes her tea without milk."  # type: ignore[union-attr]
    assert _post(client, "/0/undo", change=kept.change).status_code == 409
    assert _post(client, "/0/undo", change=12345).status_code == 400
    assert _post(client, "/0/undo", change="9" * 40).status_code == 400

    answer = _post(client, "/0/feedback", id=kept.episode, verdict="failure")
    assert "The verdict is now failure." in answer.text
    assert memory.store.episode(memory.scope, kept.episode).verdict == "failure"  # type: ignore[union-attr]
    assert _post(client, "/0/feedback", id=kept.episode, verdict="great").status_code == 400


def test_odd_ids_are_reached(client: TestClient, memory: Memory, kept: Any):
    assert client.get("/0/record", params={"id": kept.nasty}).status_code == 200
    page = _page(client.get("/0/forget", params={"id": kept.nasty}))
    (erase,) = page.forms()
    assert "Forgotten." in client.post(erase, data={"csrf": KEYS.csrf}).text
    assert memory.get(kept.nasty) is None


def test_scopes_that_were_not_named_do_not_exist(client: TestClient, other: Memory):
    assert client.get("/1/").status_code == 404
    assert client.get("/1/records").status_code == 404
    assert client.get("/0/record", params={"id": "secret"}).status_code == 404
    assert client.get("/0/change", params={"change": other.changes()[0].number}).status_code == 404
    assert "0 found" in client.get("/0/records", params={"q": "Bob's secret"}).text
    assert "Nothing was done" in _post(client, "/0/erase", id="secret").text
    assert "Nothing was done" in _post(client, "/0/approve", id="held").text
    assert _post(client, "/1/erase", id="secret").status_code == 404
    assert _post(client, "/0/undo", change=other.changes()[0].number).status_code == 400
    assert other.stats() == {"active": 1, "quarantined": 1, "pending": 0}


def test_scopes_that_were_named_are_chosen_from(memory: Memory, kept: Any, other: Memory):
    client = _client(memory, other)
    assert "tenant-b" in client.get("/0/").text
    assert client.get("/", params={"scope": "1"}).url.path == "/1/"
    assert client.get("/", params={"scope": "7"}).url.path == "/0/"
    assert "Bob" in client.get("/1/records").text
    assert "Bob" not in client.get("/0/records?status=all").text


def test_read_only_offers_and_takes_no_change(memory: Memory, kept: Any):
    client = _client(memory, read_only=True)
    for path in ("quarantine", f"record?id={kept.tea}", f"episode?id={kept.episode}", f"change?change={kept.change}"):
        page = _page(client.get(f"/0/{path}"))
        assert page.forms() == []
        assert not [link for link in page.links() if "forget" in link]
    answer = _post(client, "/0/erase", id=kept.tea)
    assert answer.status_code == 403
    assert "--read-only" in answer.text
    assert memory.get(kept.tea) is not None


def test_stamp_changes_with_whatever_a_page_shows(client: TestClient, memory: Memory, kept: Any):
    stamps = [client.get("/0/live").json()["stamp"]]
    acts = (
        lambda: memory.add("new"),
        lambda: memory.open_episode("t", id="e"),
        lambda: memory.close_episode("e", "failure"),
        lambda: memory.forget(kept.tea),
    )
    for act in acts:
        act()
        stamps.append(client.get("/0/live").json()["stamp"])
    assert len(set(stamps)) == len(stamps)
    assert client.get("/0/live").json()["stamp"] == stamps[-1]


def test_fault_of_the_store_is_a_message(client: TestClient, memory: Memory):
    memory.store.close()
    answer = client.get("/0/records")
    assert answer.status_code == 503
    assert "was closed" in answer.text


def test_notices_are_taken_once_and_bounded():
    notices = Notices()
    keys = [notices.put(str(n), []) for n in range(MOST_NOTICES + 1)]
    assert notices.take(keys[0]) is None
    assert notices.take(keys[1]) == ("1", [])
    assert notices.take(keys[1]) is None
