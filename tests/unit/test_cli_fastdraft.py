"""`remnant fastdraft`: the command trains, says what it measured, goes on where it stopped, and refuses bad input."""

import json
from pathlib import Path

import pytest
import torch

from remnant.cli import main
from remnant.testbed import load


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("target")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    load()[1].save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def arguments(target: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("Words that are said again and again. " * 60)
    (folder / "p.txt").write_text("\n".join(f"Words {i}" for i in range(12)))
    text = (
        "fastdraft TARGET --corpus A --prompts P --width 16 --depth 1 --budget 0.5 --pretrain-steps 3 --align-steps 2"
    )
    rest = "--samples 8 --new 6 --rows 2 --length 32 --device cpu"
    places = {"TARGET": str(target), "A": str(folder / "a.txt"), "P": str(folder / "p.txt")}
    return [places.get(word, word) for word in f"{text} {rest}".split()]


def test_json_and_table_and_resume(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "draft")
    assert main([*arguments, "--out", out, "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert (card["shape"]["width"], card["shape"]["depth"]) == (16, 1)
    assert card["parameters"] <= card["target_parameters"] // 2
    assert set(card["after"]) >= {"greedy", "T=0.6", "cost", "seconds"}
    assert card["plan"] == {"pretrain_steps": 3, "more_steps": 0, "samples": 8, "align_steps": 2}
    assert json.loads((Path(out) / "fastdraft.json").read_text())["draft_sha256"] == card["draft_sha256"]
    # A second run into the folder is refused; resumed, it finds all done and shows it again.
    assert main([*arguments, "--out", out, "--json"]) != 0
    assert "--resume" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main([*arguments, "--out", out, "--resume"]) == 0
    shown = capsys.readouterr().out
    for word in ("tau", "MBSU", "greedy", "T=0.6", "accepted before", out):
        assert word in shown


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (["--budget-params", "100"], "at least"),
        (["--budget-params", "99999999"], "smaller than its target"),
        (["--budget", "1.5"], "--budget-params"),
        (["--loss", "mse"], "ce+kl"),
        (["--on-policy", "0.5"], "ask the target"),
        (["--corpus", "nothing.txt"], "does not exist"),
        (["--device", "toaster"], "device 'toaster'"),
        (["--budget", "nan"], "finite"),
        (["--lr", "inf"], "finite"),
        (["--minutes", "nan"], "finite"),
        (["--out", f"{__file__}/x"], "is a file"),
    ],
)
def test_errors_are_data(
    arguments: list[str], extra: list[str], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*arguments, "--out", str(tmp_path / "x"), "--json", *extra]) != 0
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "ConfigError"
    assert match in error["message"]
    assert not (tmp_path / "x").exists()
