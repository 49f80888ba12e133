"""Training: a resumed run equals an unbroken one, and the schedule is what it says."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from remnant.cli import main
from remnant.errors import ConfigError
from remnant.testbed import cli_api, score
from remnant.testbed.batches import Stage
from remnant.testbed.train import PRESETS, Preset, train

TINY = Preset((Stage(3, 20, 80, 1.0), Stage(3, 64, 128, 0.5)), knots=((0, 0.5), (1, 1.0)))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PRESETS, "tiny", TINY)


class StopNow(Exception):
    pass


@pytest.mark.slow
def test_resumed_equals_unbroken(tmp_path: Path):
    steps: list[int] = []

    def stop(step: int, total: int, metrics: dict[str, float]) -> None:
        steps.append(step)
        if step == 4:
            raise StopNow

    whole = train("tiny", tmp_path / "whole", device="cpu", seed=3)
    with pytest.raises(StopNow):
        train("tiny", tmp_path / "parts", device="cpu", seed=3, report=stop, save_every=2)
    train("tiny", tmp_path / "parts", device="cpu", seed=3, report=lambda step, *_: steps.append(step), save_every=2)
    assert steps == [1, 2, 3, 4, 3, 4, 5, 6]
    from safetensors.torch import load_file

    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert whole["steps"] == 6
    assert whole["preset"] == "tiny"


def test_schedule():
    assert TINY.steps == 6
    assert TINY.stage_at(0) is TINY.stage_at(2) is TINY.stages[0]
    assert TINY.stage_at(3) is TINY.stage_at(99) is TINY.stages[1]
    rates = [TINY.lr_at(step) for step in range(6)]
    assert rates[0] < rates[1] >= rates[-1] > 0


def test_unknown_preset():
    with pytest.raises(ConfigError, match="quick"):
        train("slow")


def test_info_needs_no_weights():
    found = cli_api.info()
    assert (found["layers"], found["kv_heads"], found["context"]) == (4, 2, 4096)
    assert "tree" in found["tasks"]
    assert {"recall", "passkey-early", "passkey-late", "length"} <= set(found["scores_long"])


@pytest.mark.slow
def test_the_command_trains_stops_goes_on_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """`remnant testbed train --preset quick` to its end, with five steps and scores at 128 tokens."""
    monkeypatch.setitem(PRESETS, "quick", Preset((Stage(5, 32, 64, 0.5),), knots=((0, 1.0), (5, 0.1))))
    for name in ("final_scores", "long_scores"):
        monkeypatch.setattr(score, name, partial(getattr(score, name), length=128))
    arguments = ["testbed", "train", "--preset", "quick", "--out", str(tmp_path), "--device", "cpu", "--json"]

    def stop(*_: object, **__: object) -> None:
        raise StopNow

    with monkeypatch.context() as patch:
        patch.setattr(cli_api, "write_scores", stop)
        with pytest.raises(StopNow):
            main(arguments)
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert main([*arguments, "--resume"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert record == json.loads((tmp_path / "provenance.json").read_text())
    assert record["steps"] == 5
    assert set(record["scores"]) >= {"recall", "recurrence-rare", "perplexity", "baselines"}
    assert record["scores_long"]["length"] == 128
