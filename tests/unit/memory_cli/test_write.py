"""`remnant memory`: the commands that change something."""

import io
import socket
import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from remnant.cli import main, memory_write
from remnant.memory import Memory
from remnant.memory.sqlite import connection, schema

Run = Callable[..., Any]


def test_undo_takes_a_change_back(run: Run, kept: Any):
    done = run("undo", kept.change, "--json").json()
    assert (done["undoes"], done["ids"], done["scope"]) == (kept.change, [kept.tea], "tenant-a")
    assert run("show", kept.tea, "--json").json()["content"] == "Ada takes her tea without milk."
    assert run("undo", done["number"]).code == 0
    assert run("show", kept.tea, "--json").json()["content"] == "Ada takes her tea with oat milk."
    ran = run("undo", 99)
    assert ran.code == 2
    assert "no change 99" in ran.err


def test_approve_lets_it_be_recalled_and_takes_all_or_none(run: Run, kept: Any):
    assert run("search", "instructions", "--json").json()["hits"] == []
    ran = run("approve", kept.held, kept.tea)
    assert ran.code == 2
    assert "is active" in ran.err
    assert run("search", "instructions", "--json").json()["hits"] == []
    assert run("approve", kept.held, "--json").json()["ids"] == [kept.held]
    assert run("search", "instructions", "--json").json()["hits"][0]["id"] == kept.held
    assert "command line" in run("audit", kept.held, "--json").json()["versions"][-1]["change"]["actor"]


def test_forget_needs_a_word(run: Run, kept: Any):
    for flags in ((), ("--json",)):
        assert run("forget", kept.tea, *flags).code == 2
    assert run("show", kept.tea).code == 0


@pytest.mark.parametrize(("answer", "code"), [("n\n", 130), ("y\n", 0)])
def test_forget_asks_and_shows_what_is_at_stake(
    run: Run, kept: Any, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
):
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    learnt = run("episodes", kept.episode, "--json").json()["taught"][0]["id"]
    ran = run("forget", learnt)
    assert ran.code == code
    assert "versions: 1  Ada likes biscuits." in ran.out
    assert f"episodes it came from: {kept.episode}" in ran.out
    assert run("show", learnt).code == (2 if code == 0 else 0)


def test_forget_prints_its_receipt_and_leaves_no_byte(run: Run, kept: Any, path: Path):
    receipt = run("forget", kept.tea, kept.nasty, "--yes", "--json").json()
    assert receipt["ids"] == [kept.tea, kept.nasty]
    assert (receipt["versions"], receipt["words"], receipt["clean"]) == (3, 2, True)
    assert b"umbrella" not in path.read_bytes()
    out = run("forget", run("episodes", kept.episode, "--json").json()["taught"][0]["id"], "-y").out
    assert "no byte of it is left" in out
    assert "steps     1" in out


def test_forget_takes_all_or_none(run: Run, kept: Any):
    ran = run("forget", kept.tea, "no such", "--yes")
    assert ran.code == 2
    assert "nothing was done" in ran.err
    assert run("show", kept.tea).code == 0


def test_feedback_queues_another_distillation(run: Run, kept: Any, path: Path):
    done = run("feedback", kept.episode, "failure", "--json").json()
    assert (done["verdict"], done["pending"]) == ("failure", 1)
    with Memory.open(path, scope="tenant-a") as memory:
        assert memory.flush(10)
        assert memory.records()[-1].outcome == "failure"
    assert run("feedback", kept.episode, "great").code == 2
    assert run("feedback", kept.open, "success").code == 2


def test_export_and_import_carry_a_scope(run: Run, kept: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cube, other = tmp_path / "cube.jsonl", tmp_path / "other.db"
    assert run("export", cube, "--json").json()["records"] == 4
    ran = run("export", cube)
    assert ran.code == 2
    assert "--force" in ran.err
    assert run("export", cube, "--force").code == 0
    assert main(["memory", "import", str(other), str(cube)]) == 2
    assert "--scope" in capsys.readouterr().err
    assert main(["memory", "import", str(other), str(cube), "--scope", "tenant-z"]) == 0
    with Memory.open(other, scope="tenant-z", strict=True) as memory:
        assert memory.recall("tea")[0].id == kept.tea
        assert memory.get(kept.held).status == "quarantined"  # type: ignore[union-attr]
    capsys.readouterr()
    again = run("import", cube, "--json").json()
    assert (again["added"], again["here_already"]) == (0, 4)


def test_import_of_a_damaged_cube_makes_no_store(run: Run, tmp_path: Path):
    cube = tmp_path / "cube.jsonl"
    run("export", cube)
    cube.write_text(cube.read_text().replace("oat", "soy"))
    other = tmp_path / "other.db"
    assert main(["memory", "import", str(other), str(cube), "--scope", "a"]) == 2
    assert not other.exists()


def test_export_into_no_folder(run: Run, tmp_path: Path):
    ran = run("export", tmp_path / "no" / "cube.jsonl")
    assert ran.code == 2
    assert "no folder" in ran.err


def test_progress_of_a_large_cube(run: Run, tmp_path: Path, path: Path):
    with Memory.open(path, scope="tenant-a") as memory:
        told: list[tuple[int, int, str]] = []
        memory.export(tmp_path / "cube.jsonl", lambda *step: told.append(step))
        assert (told[0], told[-1]) == ((0, 4, "writing"), (4, 4, "writing"))
        other = memory.scoped("tenant-b")
        other.import_(tmp_path / "cube.jsonl", lambda *step: told.append(step))
        assert (6, 6, "reading") in told
        assert told[-1] == (0, 4, "writing")


@pytest.mark.parametrize("command", [["approve", "{held}"], ["undo", "1"], ["feedback", "{episode}", "failure"]])
def test_writing_leaves_the_episodes_of_others_alone(run: Run, kept: Any, path: Path, command: list[str]):
    with sqlite3.connect(path) as c:
        c.execute("UPDATE episodes SET owner = ?", (f"{socket.gethostname()}:1:0",))  # long gone
    c.close()
    run(*(part.format(**kept._asdict()) for part in command))
    rows = run("episodes", "--json").json()["episodes"]
    assert [row["closed_at"] for row in rows if row["id"] == kept.open] == [None]


def test_only_what_writes_brings_a_store_up_to_date_and_says_so(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch):
    assert run("migrate", "--json").json()["migrated"] is False
    newer = (*schema.MIGRATIONS, "CREATE TABLE later (a)")
    monkeypatch.setattr(schema, "MIGRATIONS", newer)
    monkeypatch.setattr(connection, "migrate", partial(schema.migrate, migrations=newer))
    before = path.read_bytes()
    ran = run("list")
    assert ran.code == 2
    assert "remnant memory migrate" in ran.err
    assert path.read_bytes() == before
    ran = run("migrate", "--json")
    assert ran.json()["migrated"] is True
    assert Path(ran.json()["backup"]).read_bytes()
    assert "brought to the newest schema; as it was: " in ran.err
    assert run("list").code == 0


def test_actor_without_a_name(monkeypatch: pytest.MonkeyPatch):
    def nobody() -> str:
        raise KeyError("uid")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert memory_write._actor() == "command line"
