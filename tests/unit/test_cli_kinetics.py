"""`remnant kinetics`: the table, what is chosen from accuracies, the chart, and all without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remnant.cli import main
from remnant.kinetics import Block, Dense, eflops, read_shape

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 28,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
}
LARGE = SMALL | {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_hidden_layers": 36}


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    for name, config in (("small", SMALL), ("large", LARGE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return ["--model", str(tmp_path / "small"), "--model", str(tmp_path / "large"), "--context", "512"]


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["kinetics", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_what_a_budget_buys(capsys: pytest.CaptureFixture[str], models: list[str], tmp_path: Path):
    code, found = asked(capsys, *models, "--budget-eflops", "1e16", "--lengths", "1024,8192", "--trials", "1,16")
    assert code == 0
    assert [one["name"] for one in found["models"]] == ["small", "large"]
    assert [one["name"] for one in found["policies"]] == ["dense", "block:1024:16:16"]
    assert found["request"]["intensity"] == pytest.approx(989e12 / 3350e9)
    rows = {(row["model"], row["policy"], row["y"]): row for row in found["by_length"]}
    shape = read_shape(str(tmp_path / "large"))
    for label, policy in (("dense", Dense()), ("block:1024:16:16", Block(1024))):
        row = rows["large", label, 8192]
        cost = eflops(shape, 512, 8192, row["N"], policy, intensity=found["request"]["intensity"])
        assert row["cost"]["eflops"] == cost.eflops <= 1e16
        assert row["cost"]["compute"] + row["cost"]["memory"] == row["cost"]["eflops"]
        assert row["tokens"] == row["N"] * 8192
        assert row["seconds"] == pytest.approx(cost.eflops / 989e12)
    assert rows["large", "block:1024:16:16", 8192]["N"] > rows["large", "dense", 8192]["N"] > 0
    assert rows["small", "dense", 8192]["N"] > rows["large", "dense", 8192]["N"]
    (short, long) = found["exchange"]
    assert [(one["model"], one["policy"]) for one in long["choices"]] == [
        ("small", "block:1024:16:16"),
        ("large", "block:1024:16:16"),
    ]
    assert [one["policy"] for one in short["choices"]] == ["dense", "dense"]  # short answers share the prompt
    assert {row["N"] for row in found["by_trials"]} == {1, 16}
    assert all(row["y"] <= 40960 - 512 for row in found["by_trials"])
    assert any(row["limited"] == "positions" for row in found["by_trials"])
    assert (found["buys"], found["measured"], found["best"]) == ("tokens and samples", [], None)
    assert any("not how good" in note for note in found["notes"])


def test_seconds_buy_as_their_operations_do(capsys: pytest.CaptureFixture[str], models: list[str]):
    same = [*models, "--device", "h200", "--lengths", "2048", "--trials", "1"]
    _, seconds = asked(capsys, *same, "--budget-seconds", "10")
    _, operations = asked(capsys, *same, "--budget-eflops", str(10 * 989e12))
    assert seconds == operations


def test_the_best_of_measured_accuracies(capsys: pytest.CaptureFixture[str], models: list[str], tmp_path: Path):
    rows = [
        {"model": "small", "policy": "dense", "y": 8192, "n": 64, "c": c, "problem": i} for i, c in enumerate((0, 16))
    ]
    rows += [{"model": "large", "policy": "block:1024", "y": 8192, "n": 8, "c": c} for c in (4, 2)]
    rows += [{"model": "unasked", "policy": "dense", "y": 8192, "N": 1, "accuracy": 1.0}]
    table = tmp_path / "accuracies.json"
    table.write_text(json.dumps(rows))
    same = [*models, "--accuracy", str(table), "--lengths", "8192", "--trials", "1,4"]
    code, found = asked(capsys, *same, "--budget-eflops", "1e18")
    assert (code, found["buys"]) == (0, "accuracy")
    assert [one["name"] for one in found["policies"]] == ["dense", "block:1024:16:16"]  # those of the table
    best = found["best"]
    assert (best["model"], best["policy"], best["N"], best["accuracy"]) == ("large", "block:1024:16:16", 8, 1.0)
    assert max(row["N"] for row in found["measured"] if row["model"] == "small") == 64
    assert any("unasked" in note for note in found["notes"])
    _, tight = asked(capsys, *same, "--budget-eflops", "1e15")
    assert (tight["best"]["model"], tight["best"]["N"], tight["best"]["accuracy"]) == ("large", 1, 0.375)
    assert all(row["cost"]["eflops"] > 1e15 for row in tight["measured"] if row["model"] == "small")
    _, none = asked(capsys, *same, "--budget-eflops", "1e9")
    assert none["best"] is None
    assert none["by_length"] == none["by_trials"] == []


def test_for_people_and_as_a_chart(capsys: pytest.CaptureFixture[str], models: list[str], tmp_path: Path):
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    chart = tmp_path / "made" / "bought.png"
    table = tmp_path / "accuracies.csv"
    table.write_text("model,policy,y,N,accuracy\nlarge,dense,1024,4,0.5\nsmall,dense,1024,4,0.25\n")
    same = ["kinetics", *models, "--budget-eflops", "1e16", "--lengths", "1024", "--chart", str(chart)]
    assert main([*same, "--policy", "dense", "--policy", "topk:512"]) == 0
    printed = capsys.readouterr().out
    assert "topk:512" in printed
    assert "lower bound" in printed
    assert chart.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    bought = chart.read_bytes()
    assert main([*same, "--accuracy", str(table)]) == 0
    assert "best     large with dense, 4 answers of 1024 tokens: 50.0%" in capsys.readouterr().out
    assert chart.read_bytes() != bought


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--budget-eflops", "1e15", "--budget-seconds", "1"], "two budgets"),
        (["--budget-eflops", "-1"], "more than 0"),
        (["--budget-eflops", "1e15", "--device", "abacus"], "abacus"),
        (["--budget-eflops", "1e15", "--policy", "dens"], "did you mean|topk:B"),
        (["--budget-eflops", "1e15", "--lengths", "1,x"], "lengths"),
        (["--budget-eflops", "1e15", "--trials", "0"], "trials"),
        (["--budget-eflops", "1e15", "--parameters", "1e9"], "one for each"),
        (["--budget-eflops", "1e15", "--chart", "a.svg"], "png"),
        (["--budget-eflops", "1e15", "--accuracy", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], models: list[str], more: list[str], said: str):
    code, found = asked(capsys, *models, *more)
    assert code != 0
    assert any(part in found["error"]["message"] for part in said.split("|"))


def test_no_torch_is_needed(models: list[str]):
    code = "import sys; sys.modules['torch'] = None; from remnant.cli import main; sys.exit(main())"
    asked = ["kinetics", *models, "--budget-eflops", "1e15", "--lengths", "1024", "--trials", "1", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["by_length"]


def test_without_a_model_two_shapes_come_along(capsys: pytest.CaptureFixture[str]):
    code, found = asked(capsys)
    assert code == 0
    assert [one["name"] for one in found["models"]] == ["dense-0.6b", "dense-8b"]
    assert found["models"][1]["parameters"] == pytest.approx(8.19e9, rel=0.01)
    assert all(row["spent"] <= 1 for row in found["by_length"])
