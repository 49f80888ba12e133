"""`remnant memory`: the commands that look."""

import hashlib
import json
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from remnant.cli import _memory_show, main
from remnant.cli._memory import embedder_of, without_password
from remnant.memory import Memory, Record, Update

Run = Callable[..., Any]

READING = [
    ("list",),
    ("list", "--status", "all"),
    ("show", "{nasty}"),
    ("search", "umbrella"),
    ("audit",),
    ("audit", "{nasty}"),
    ("diff", "0"),
    ("diff", "--change", "1"),
    ("stats",),
    ("episodes",),
    ("episodes", "{episode}"),
]


def _filled(command: tuple[str, ...], kept: Any) -> list[str]:
    return [part.format(**kept._asdict()) for part in command]


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_json_names_the_scope_and_is_all_there_is(run: Run, kept: Any, command: tuple[str, ...]):
    ran = run(*_filled(command, kept), "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json()["scope"] == "tenant-a"


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_people_see_the_scope_and_no_control_character(run: Run, kept: Any, command: tuple[str, ...]):
    ran = run(*_filled(command, kept))
    assert (ran.code, ran.err) == (0, "")
    assert "tenant-a" in ran.out
    assert [char for char in ran.out if not char.isprintable() and char != "\n"] == []


def test_markup_of_a_memory_is_text_in_colour_too(
    run: Run, kept: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    console = lambda: Console(force_terminal=True, color_system="truecolor", width=400, highlight=False, emoji=False)  # noqa: E731
    monkeypatch.setattr(_memory_show, "stdout", console)
    monkeypatch.setattr("remnant.cli._output.stdout", console)
    for command in (["list"], ["search", "umbrella"], ["audit", kept.nasty], ["diff", "--change", "1"]):
        out = run(*command).out
        assert "Pack an [bold red]umbrella[/] :warning: \\x1b[31mred\\x1b]0;title\\x07 \\u202egnirts \\x9b2J" in out
        assert "\x1b]" not in out
        assert "\x1b[31mred" not in out
        assert not {"\x07", "\x9b", "\u202e"} & set(out)
    coloured = run("diff", "--change", kept.change).out
    assert "\x1b[9;31mwithout\x1b[0m\x1b[32mwith oat\x1b[0m" in coloured


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_looking_changes_nothing(run: Run, kept: Any, path: Path, command: tuple[str, ...]):
    """Not even an episode that a dead process left open, which an agent would close."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE episodes SET owner = ?", (f"{socket.gethostname()}:1:0",))
    connection.close()
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    assert run(*_filled(command, kept)).code == 0
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_list_pages_through_everything_newest_first(run: Run, path: Path):
    with Memory.open(path, scope="tenant-a") as memory:
        memory.add([Record(f"text {n}", kind="odd" if n % 2 else "even") for n in range(25)])
    seen: list[str] = []
    after: list[str] = []
    while True:
        page = run("list", "--status", "all", "--limit", 10, *after, "--json").json()
        seen += [record["id"] for record in page["records"]]
        if page["next"] is None:
            break
        after = ["--after", page["next"]]
    assert len(seen) == 29
    assert seen == sorted(seen, reverse=True)
    oldest = run("list", "--status", "all", "--oldest", "--limit", 100, "--json").json()["records"]
    assert [record["id"] for record in oldest] == seen[::-1]
    odd = run("list", "--kind", "odd", "--limit", 100, "--json").json()["records"]
    assert [record["content"] for record in odd] == [f"text {n}" for n in range(23, 0, -2)]
    assert "--after" in run("list", "--limit", 3).out


def test_list_of_statuses(run: Run, kept: Any):
    held = run("list", "--status", "quarantined", "--json").json()["records"]
    assert [record["id"] for record in held] == [kept.held]
    ran = run("list", "--status", "quarantine")
    assert ran.code == 2
    assert "did you mean 'quarantined'?" in ran.err or "accepted" in ran.err


def test_show_has_every_field(run: Run, kept: Any):
    record = run("show", kept.tea, "--json").json()
    assert record["content"] == "Ada takes her tea with oat milk."
    assert (record["version"], record["utility"]["helped"]) == (2, 1)
    assert "used         1 (+1 -0)" in run("show", kept.tea).out
    ran = run("show", "no such")
    assert (ran.code, ran.out) == (2, "")
    assert "no record 'no such' in scope 'tenant-a'" in ran.err


def test_search_shows_scores_and_trust_and_counts_nothing(run: Run, kept: Any):
    found = run("search", "tea milk", "--json").json()
    assert found["strategy"] == "facts"
    (hit,) = found["hits"]
    assert (hit["id"], hit["trust"]) == (kept.tea, "user")
    assert 0 < hit["score"] <= 1
    assert hit["parts"]["words"] > 0
    line = run("search", "tea milk").out.splitlines()[-1]
    assert line.startswith(f"{hit['score']:.3f}")
    assert "user" in line
    assert run("show", kept.tea, "--json").json()["utility"]["retrieved"] == 1  # by the episode alone
    assert run("search", "tea", "--as-of", 1, "--json").json()["hits"][0]["text"] == "Ada takes her tea without milk."
    assert "nothing found" in run("search", "zebra").out


def test_search_by_vectors_once_they_are_there(run: Run, kept: Any):
    query = ("search", "teas and milks", "--embedder", "hash-64", "--json")
    assert "dense" not in str(run(*query).json()["hits"])
    ran = run("reindex", "--embedder", "hash-64", "--json")
    assert ran.json()["embedded"] == 3
    assert run(*query).json()["hits"][0]["parts"]["dense"] > 0
    assert run("reindex").code == 2


def test_audit_of_a_record_says_who_when_and_why(run: Run, kept: Any):
    first, second = run("audit", kept.tea, "--json").json()["versions"]
    assert (first["change"]["actor"], second["change"]["actor"]) == ("user", "ada")
    assert second["change"]["reason"] == "she said so"
    assert second["record"]["content"] == "Ada takes her tea with oat milk."
    out = run("audit", kept.tea).out
    assert "ada  she said so" in out
    assert "content: Ada takes her tea [-without-]{+with oat+} milk." in out
    changes = run("audit", "--json").json()["changes"]
    assert [change["number"] for change in changes] == [4, 3, 2, 1]
    assert len(run("audit", "--limit", 2, "--json").json()["changes"]) == 2


def test_diff_between_states_and_of_one_change(run: Run, kept: Any):
    (only,) = run("diff", "--change", kept.change, "--json").json()["differences"]
    assert (only["before"]["content"], only["after"]["content"]) == (
        "Ada takes her tea without milk.",
        "Ada takes her tea with oat milk.",
    )
    assert run("diff", 1, 2, "--json").json()["differences"] == [only]
    assert len(run("diff", 0, "--json").json()["differences"]) == 4
    assert "no difference" in run("diff", 4).out
    assert run("diff").code == run("diff", 1, "--change", 1).code == 2


def test_stats_counts(run: Run):
    found = run("stats", "--json").json()
    assert found["records"] == {"active": 3, "quarantined": 1, "archived": 0, "deleted": 0}
    assert found["episodes"] == {"success": 1, "failure": 0, "unknown": 0, "open": 1}
    assert (found["distillations"], found["last_change"]) == ({"pending": 0, "failed": 0}, 4)
    assert found["strategies"] == ["facts"]
    assert found["bytes"] > 0


def test_episodes_and_what_one_taught(run: Run, kept: Any):
    rows = run("episodes", "--json").json()["episodes"]
    assert [(row["id"], row["distillation"]) for row in rows] == [(kept.open, ""), (kept.episode, "done")]
    found = run("episodes", kept.episode, "--json").json()
    assert found["steps"] == [{"role": "user", "content": "Ada likes biscuits."}]
    assert [record["content"] for record in found["taught"]] == ["Ada likes biscuits."]
    assert "taught" in run("episodes", kept.episode).out
    assert run("episodes", "no such").code == 2


def test_scope_is_asked_for_where_there_are_several(run: Run, path: Path):
    with Memory.open(path, scope="tenant-b") as memory:
        memory.add("Bob's secret")
    ran = run("list")
    assert ran.code == 2
    assert "'tenant-a', 'tenant-b'" in ran.err
    assert "--scope" in ran.err
    for command in (("list",), ("search", "secret"), ("diff", "0"), ("audit",)):
        assert "Bob" not in run(*command, "--scope", "tenant-a").out
    assert "Bob" in run("list", "--scope", "tenant-b").out
    ran = run("list", "--scope", "tenant-c")
    assert (ran.code, ran.out) == (2, "")
    assert "no scope 'tenant-c'" in ran.err


def test_scope_that_tries_to_write_on_the_terminal_is_shown(run: Run, path: Path):
    with Memory.open(path, scope="\x1b[2Jtenant\u202e") as memory:
        memory.add("text")
    assert "'\\x1b[2Jtenant\\u202e'" in run("list").err
    assert "\\x1b[2Jtenant" in run("list", "--scope", "\x1b[2Jtenant\u202e").out


@pytest.mark.parametrize("command", ["list", "undo", "ui"])
def test_no_store_is_made_by_a_slip_of_the_pen(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str):
    place = tmp_path / "typo.db"
    assert main(["memory", command, str(place), *(["1"] if command == "undo" else []), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "ConfigError"
    assert main(["memory", command, f"sqlite:///{place}", *(["1"] if command == "undo" else [])]) == 2
    assert list(tmp_path.iterdir()) == []


def test_another_programs_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    place = tmp_path / "notes.txt"
    place.write_text("no database at all, but long enough to be taken for the header of one " * 9)
    assert main(["memory", "list", str(place)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_strategy_is_told_from_what_distilled(run: Run, path: Path):
    with Memory.open(path, "tim", scope="tenant-a", write="inline") as memory:
        memory.apply([Update(memory.records()[0].id, {"kind": "thought"})], "as if distilled", "tim")
    ran = run("search", "tea")
    assert ran.code == 2
    assert "facts, tim" in ran.err
    assert run("search", "tea", "--strategy", "tim", "--json").json()["strategy"] == "tim"
    assert run("list").code == 0
    assert run("search", "tea", "--strategy", "nope").code == 2


@pytest.mark.parametrize("arguments", [["memory", "--help"], ["memory", "list"], ["memory", "audit"]], ids=" ".join)
def test_looking_loads_no_model_and_no_server(path: Path, arguments: list[str]):
    code = "import json, sys; from remnant.cli import main; main(); print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code, *arguments, *([] if "--help" in arguments else [str(path), "--json"])]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loaded = {name.partition(".")[0] for name in json.loads(out.splitlines()[-1])}
    assert not loaded & {"torch", "transformers", "numpy", "starlette", "uvicorn", "jinja2", "psycopg", "openai"}


def test_a_server_is_used_as_a_file_is(
    new_schema: Callable[[], dict[str, str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    place: dict[str, Any] = new_schema()
    address = f"{place['path_or_url']}#{place['schema']}"

    def run(command: str, *arguments: str) -> Any:
        capsys.readouterr()
        code = main(["memory", command, address, *arguments, "--json"])
        return code, json.loads(capsys.readouterr().out)

    assert run("list")[0] == 2  # nothing is made by looking
    with Memory.open(**place, scope="tenant-pg") as memory:
        (tea,) = memory.add("Ada takes her tea without milk.")
        memory.apply([Update(tea, {"content": "Ada takes her tea with oat milk."})], "", "")
    assert run("list")[1]["records"][0]["id"] == tea
    assert run("search", "tea")[1]["hits"][0]["id"] == tea
    assert len(run("diff", "--change", "2")[1]["differences"]) == 1
    assert run("stats")[1]["bytes"] is None
    assert run("undo", "2")[0] == 0
    assert run("export", str(tmp_path / "cube.jsonl"))[1]["records"] == 1
    receipt = run("forget", tea, "--yes")[1]
    assert (receipt["ids"], receipt["versions"]) == ([tea], 3)
    assert run("import", str(tmp_path / "cube.jsonl"))[1]["added"] == 1


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("a:b@c.db", "a:b@c.db"),
        ("postgresql://ada:se@cret@host:5432/db#s", "postgresql://ada@host:5432/db#s"),
        ("postgresql://host/db?password=secret", "postgresql://host/db"),
    ],
)
def test_passwords_are_not_shown(place: str, shown: str):
    assert without_password(place) == shown


def test_embedders_have_names(monkeypatch: pytest.MonkeyPatch):
    assert embedder_of(None) is None
    assert embedder_of("hash-32").model_id == "hash-32"  # type: ignore[union-attr]
    asked: list[str] = []
    monkeypatch.setattr("remnant.memory.SentenceTransformerEmbedder", asked.append, raising=False)
    embedder_of("all-minilm")
    assert asked == ["all-minilm"]
