"""The command line: its contract, its errors, its output."""

import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from remnant.cli import app, main
from remnant.cli import testbed as testbed_cli
from remnant.cli._output import print_json
from remnant.cli._parse import parse_budget, parse_options
from remnant.errors import ConfigError, MissingExtra, RemnantError

LOOKING = ["list", "show", "search", "audit", "diff", "stats", "episodes", "ui"]
CHANGING = ["undo", "approve", "forget", "feedback", "export", "import", "reindex", "migrate"]
COMMANDS = [
    ["demo"],
    ["policies"],
    ["systems"],
    ["plugins"],
    ["plan"],
    ["route"],
    ["bench"],
    ["train-gates"],
    ["trim-vocab"],
    ["fastdraft"],
    ["plan-draft"],
    ["kinetics"],
    ["version"],
    ["testbed", "info"],
    ["testbed", "train"],
    ["testbed", "eval"],
    ["testbed", "export"],
    ["testbed", "agents"],
    *(["memory", name] for name in LOOKING + CHANGING),
]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_and_json(capsys: pytest.CaptureFixture[str], command: list[str]):
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    assert "--json" in out


def test_the_list_of_commands_above_is_complete():
    groups = [group.typer_instance for group in app.registered_groups]
    callbacks = [command.callback for one in (app, *groups) if one for command in one.registered_commands]
    assert len(callbacks) == len(COMMANDS)


def test_bare_command_shows_help(capsys: pytest.CaptureFixture[str]):
    _, out, err = run(capsys)
    assert "policies" in out
    assert err == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("128", 128),
        ("1", 1),
        ("0.1", Fraction(1, 10)),
        ("1.0", Fraction(1)),
        ("10%", Fraction(1, 10)),
        ("1/8", Fraction(1, 8)),
    ],
)
def test_budget(text: str, value: Any):
    parsed = parse_budget(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["", "0", "-3", "0.0", "1.5", "120%", "many", "1/0", "nan", "%"])
def test_budget_that_is_none(text: str):
    with pytest.raises(ConfigError, match="budget"):
        parse_budget(text)


def test_options():
    pairs = ["window=32", "pooling=avg", "ratio=0.4", "on=true", "a-b=x=y"]
    values = {"window": 32, "pooling": "avg", "ratio": 0.4, "on": True, "a_b": "x=y"}
    assert parse_options(pairs) == values


@pytest.mark.parametrize("pair", ["window", "=3", ""])
def test_option_without_key_or_value(pair: str):
    with pytest.raises(ConfigError, match="key=value"):
        parse_options([pair])


def test_error_is_a_line_on_stderr(capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, "testbed", "eval", "--task", "passkey")
    assert code == 2
    assert out == ""
    assert err.startswith("remnant: unknown task 'passkey'; accepted: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["testbed", "eval", "--budget", "0"],
        ["testbed", "eval", "--no-such-option"],
        ["demo", "--prompt-file", "/no/such/file"],
        ["no-such-command"],
    ],
)
def test_error_with_json_is_an_object(capsys: pytest.CaptureFixture[str], arguments: list[str]):
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 2
    assert json.loads(out)["error"]["type"] == "ConfigError"
    assert err == ""


class FakeApi:
    def __init__(self, error: RemnantError | None = None) -> None:
        self.error = error
        self.seen: tuple[Any, ...] = ()

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        print("noise")
        self.seen = (*arguments[:6], options)
        arguments[6](1, 2, "half way")
        if self.error:
            raise self.error
        return {"accuracy": 0.5, "bytes": 10}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    api = FakeApi()
    monkeypatch.setattr(testbed_cli, "_api", lambda: api)
    return api


EVAL = ["testbed", "eval", "--task", "recall", "--policy", "snapkv", "--budget", "10%"]
EVAL += ["--length", "256", "--n", "4", "--seed", "7"]


def test_eval_hands_over_what_was_typed(api: FakeApi, capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(capsys, *EVAL, "--option", "window=8", "--option", "pooling=avg", "--json")
    assert code == 0
    assert json.loads(out) == {"accuracy": 0.5, "bytes": 10}
    options = {"window": 8, "pooling": "avg"}
    assert api.seen == ("recall", "snapkv", Fraction(1, 10), 256, 4, 7, options)


def test_eval_for_people_is_a_line_per_field(api: FakeApi, capsys: pytest.CaptureFixture[str]):
    _, out, err = run(capsys, *EVAL)
    assert out == "accuracy  0.5\nbytes     10\n"
    assert err == "noise\n"


def test_missing_extra_is_a_message(api: FakeApi, capsys: pytest.CaptureFixture[str]):
    api.error = MissingExtra("remnant.testbed", "torch", "torch")
    code, _, err = run(capsys, *EVAL)
    assert code == 2
    assert "pip install 'remnant[torch]'" in err


@pytest.mark.parametrize("command", ["policies", "testbed info", "demo"])
def test_without_torch_the_command_is_named(command: str):
    code = "import sys; sys.modules['torch'] = None; from remnant.cli import main; sys.exit(main())"
    arguments = [sys.executable, "-c", code, *command.split()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search(r"torch.*pip install 'remnant\[(torch|hf)\]'\n", done.stderr)


def test_bug_is_not_hidden(api: FakeApi):
    api.evaluate = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        main(EVAL)


def test_systems_are_all_there(capsys: pytest.CaptureFixture[str]):
    rows = json.loads(run(capsys, "systems", "--json")[1])
    assert [row["number"] for row in rows] == list(range(1, 49))
    assert all(bool(row["command"]) == (row["state"] == "ready") for row in rows)
    assert all(row["open_doors"] or row["state"] == "planned" for row in rows)


def test_system_is_ready_when_its_policy_is_here(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("torch", reason="needs the extra torch")
    policies = {row["name"] for row in json.loads(run(capsys, "policies", "--json")[1])}
    for row in json.loads(run(capsys, "systems", "--json")[1])[:7]:
        expected = "ready" if row["home"].rpartition("/")[2] in policies else "planned"
        assert row["state"] == expected, row["name"]


def test_policies_have_every_field(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("torch", reason="needs the extra torch")
    rows = json.loads(run(capsys, "policies", "--json")[1])
    fields = ("name", "when", "layout", "source", "claim")
    assert not [row["name"] for row in rows for field in fields if not row[field]]
    assert all(isinstance(row["needs"], list) for row in rows)


def test_tables_are_for_people(capsys: pytest.CaptureFixture[str]):
    assert "LazyEviction" in run(capsys, "systems")[1]
    assert "langchain" in run(capsys, "plugins")[1]


def test_bench_runs_the_script_of_a_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    script = tmp_path / "benchmarks" / "run.py"
    script.parent.mkdir()
    script.write_text("import sys, json; print('hi'); print(json.dumps({'args': sys.argv[1:]}))")
    code, out, _ = run(capsys, "bench", "quality", "--dir", str(tmp_path), "--json", "--n", "3")
    assert code == 0
    assert json.loads(out)["rows"] == [{"args": ["quality", "--n", "3"]}]


def test_bench_without_a_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, _, err = run(capsys, "bench", "quality", "--dir", str(tmp_path))
    assert code == 2
    assert "source checkout" in err


def test_numbers_that_json_does_not_have_are_null(capsys: pytest.CaptureFixture[str]):
    print_json({"a": [float("nan"), 1.5, (float("inf"), None)], 2: {"b": -float("inf")}})
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=lambda name: pytest.fail(name)) == {
        "a": [None, 1.5, [None, None]],
        "2": {"b": None},
    }
