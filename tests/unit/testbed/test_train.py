"""Training: a resumed run equals an unbroken one, and the schedule is what it says."""

from pathlib import Path

import pytest
import torch

from remnant.errors import ConfigError
from remnant.testbed import cli_api
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
