"""`remnant route`: what it prints, as text and as JSON."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from remnant.cli.route import route
from remnant.errors import ConfigError

APP = typer.Typer()
APP.command()(route)


def run(tmp_path: Path, count: int, *arguments: str) -> str:
    path = tmp_path / "history.json"
    path.write_text(json.dumps([["x" * 4000]] * count))
    result = CliRunner().invoke(APP, ["--history", str(path), "--model-window", "1000000", *arguments])
    if result.exception:
        raise result.exception
    return result.stdout


def test_json_holds_the_decision_and_its_cost(tmp_path: Path):
    found = json.loads(run(tmp_path, 12, "--price", "0.5", "--price-out", "2", "--query", "Where?", "--json"))
    assert (found["mode"], found["zone"], found["query_type"]) == ("full", 0, "user_fact")
    assert found["history"] == {"conversations": 12, "tokens": 12_000, "estimated": True}
    assert found["cost"]["usd"] == pytest.approx((12_002 * 0.5 + 300 * 2) / 1e6)
    assert len(found["considered"]) == 6


def test_text_says_mode_cost_and_why(tmp_path: Path):
    out = run(tmp_path, 200, "--price", "0.5", "--query", "Where?")
    assert "mode     rag" in out
    assert "over 150 conversations" in out
    assert "retrieve_then_block" in out


def test_thresholds_and_budgets_are_heard(tmp_path: Path):
    assert json.loads(run(tmp_path, 12, "--high", "40", "--low", "5", "--json"))["zone"] == 1
    dear = ("--price", "10", "--budget-usd", "0.01", "--json")
    assert json.loads(run(tmp_path, 12, *dear))["mode"] != "full"


def test_an_empty_history(tmp_path: Path):
    assert "there is no history" in run(tmp_path, 0)


@pytest.mark.parametrize("wrong", [("--query-type", "x"), ("--tier", "x"), ("--low", "9", "--high", "3")])
def test_what_is_wrong_is_an_error_of_ours(tmp_path: Path, wrong: tuple[str, ...]):
    with pytest.raises(ConfigError):
        run(tmp_path, 3, *wrong)
