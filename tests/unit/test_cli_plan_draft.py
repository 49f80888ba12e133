"""`remnant plan-draft`: plans, refusals and the chart, without torch being asked for a tensor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remnant.cli import main

TARGET: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "torch_dtype": "float16",
}
SMALL = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_key_value_heads": 12}
DRAFT = TARGET | SMALL | {"num_hidden_layers": 12}


@pytest.fixture
def target(tmp_path: Path) -> str:
    return written(tmp_path / "target", TARGET)


@pytest.fixture
def draft(tmp_path: Path) -> str:
    return written(tmp_path / "draft", DRAFT)


def written(folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["plan-draft", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_plan_as_data(capsys: pytest.CaptureFixture[str], target: str, draft: str):
    code, found = asked(capsys, "--target", target, "--draft", draft, "--budget", "24GiB", "--context", "2048")
    assert code == 0
    assert found["target"]["kv_bytes_per_token"] == 512 * 1024
    assert found["refusal"] is None
    plan = found["plan"]
    assert plan["n"] == plan["gamma"] + 1 > 2
    assert (plan["L_max"], plan["batch"], plan["top_k"]) == (2048, 1, 1)
    assert plan["total"] == plan["bytes"]["total"] == sum(v for k, v in plan["bytes"].items() if k != "total")
    assert plan["total"] <= 24 * 2**30
    assert plan["speedup"] > 1
    assert [row["n"] for row in found["table"]] == list(range(1, len(found["table"]) + 1))
    assert found["lower_bound"]["total"] == plan["bound"]
    assert any("assumed" in note for note in found["notes"])


def test_a_refusal_says_the_missing_bytes_exactly(capsys: pytest.CaptureFixture[str], target: str):
    same = ["--target", target, "--draft", "lookup", "--context", "4096", "--batch", "2"]
    code, found = asked(capsys, *same, "--budget", "8GiB")
    assert code == 2
    assert found["plan"] is None
    missing = found["refusal"]["missing_bytes"]
    assert found["refusal"]["error"]["type"] == "ConfigError"
    assert str(missing) in found["refusal"]["error"]["message"]
    assert asked(capsys, *same, "--budget", str(8 * 2**30 + missing - 1))[0] == 2
    code, found = asked(capsys, *same, "--budget", str(8 * 2**30 + missing))
    assert (code, found["refusal"]) == (0, None)
    assert found["plan"]["total"] <= 8 * 2**30 + missing


def test_below_the_lower_bound_only_where_it_is_wanted(capsys: pytest.CaptureFixture[str], target: str, draft: str):
    same = ["--target", target, "--draft", draft, "--context", "1024"]
    bound = asked(capsys, *same, "--budget", "40GiB")[1]["lower_bound"]["total"]
    assert asked(capsys, *same, "--budget", str(bound - 1))[0] == 0
    code, found = asked(capsys, *same, "--budget", str(bound - 1), "--strict")
    assert (code, found["refusal"]["missing_bytes"]) == (2, 1)


def test_trees_batches_and_bounded_caches(capsys: pytest.CaptureFixture[str], target: str, draft: str):
    same = ["--target", target, "--draft", draft, "--budget", "40GiB", "--context", "4000"]
    tree = asked(capsys, *same, "--ranks", "4")[1]["plan"]
    assert tree["top_k"] > 1
    assert tree["depth"] == max(map(len, tree["nodes"]))
    many = asked(capsys, *same, "--batch", "0")[1]["plan"]
    assert many["batch"] > 1
    bounded = asked(capsys, *same, "--batch", "0", "--kv-budget", "512")[1]["plan"]
    assert bounded["kv_length"] == 512 < bounded["L_max"]
    assert bounded["batch"] > many["batch"]


def test_options_reach_the_model(capsys: pytest.CaptureFixture[str], target: str, draft: str):
    same = ["--target", target, "--draft", draft, "--budget", "40GiB", "--context", "512", "--max-nodes", "8"]
    plain = asked(capsys, *same)[1]["plan"]["bytes"]
    other = asked(
        capsys, *same, "--slack", "0", "--weights-bytes", "4GiB", "--draft-weights-bytes", "1GiB", "--lazy-logits",
        "--chunk", "256", "--host", "engine", "--sampling", "--draft-context", "100", "--device", "h100",
    )[1]["plan"]["bytes"]  # fmt: skip
    assert (plain["slack"], other["slack"]) == (512 * 2**20, 0)
    assert (other["weights_target"], other["weights_draft"]) == (4 * 2**30, 2**30)
    assert other["activations"] > plain["activations"]
    assert other["draft"] > plain["draft"]
    assert other["kv"] < plain["kv"]
    assert other["logits"] < plain["logits"]


def test_lazy_logits(capsys: pytest.CaptureFixture[str], target: str):
    """Planned for where something does it; what only copies them all is refused."""
    same = ["--target", target, "--budget", "40GiB", "--batch", "8", "--context", "512", "--host"]
    made = [asked(capsys, *same, "engine", *more)[1] for more in ([], ["--lazy-logits"])]
    assert [one["plan"]["lazy_logits"] for one in made] == [False, True]
    eager, lazy = (one["plan"]["bytes"]["logits"] for one in made)
    assert lazy == 12 * eager // (8 * made[0]["plan"]["n"] * 2)
    best = asked(capsys, *same, "engine", "--lazy-logits", "--greedy")[1]["plan"]["bytes"]["logits"]
    assert best * 12 == lazy * 8  # one row of logits per row, and none to work with
    assert any("speculate then switch on" in note for note in made[1]["notes"])
    code, found = asked(capsys, *same, "transformers", "--lazy-logits")
    assert code == 2
    assert "lazy logits on host 'transformers'" in str(found)


def test_the_page_for_people(capsys: pytest.CaptureFixture[str], target: str, draft: str):
    assert main(["plan-draft", "--target", target, "--draft", draft, "--budget", "24GiB"]) == 0
    shown = capsys.readouterr().out
    for word in ("512.00 KiB per token", "plan ", "bound ", "weights_target", "tokens/pass", "note"):
        assert word in shown
    assert main(["plan-draft", "--target", target, "--draft", draft, "--budget", "1GiB"]) == 2
    assert "bytes are missing" in capsys.readouterr().out


def test_the_chart(capsys: pytest.CaptureFixture[str], target: str, draft: str, tmp_path: Path):
    pytest.importorskip("matplotlib", reason="pip install 'remnant[plot]'")
    path = tmp_path / "charts" / "speed.png"
    code, found = asked(capsys, "--target", target, "--draft", draft, "--budget", "20GiB", "--chart", str(path))
    assert (code, found["chart"]) == (0, str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "much"], "budget"),
        (["--budget", "24GiB", "--device", "h10"], "unknown device"),
        (["--budget", "24GiB", "--draft", "/nowhere/at/all"], "no such folder"),
        (["--budget", "24GiB", "--epsilon", "1"], "epsilon"),
        (["--budget", "24GiB", "--now", "9000"], "now"),
        (["--budget", "24GiB", "--chart", "speed.pdf"], "ends in .png"),
        (["--budget", "24GiB", "--chart", f"{__file__}/speed.png"], "cannot be written"),
        (["--budget", "0"], "budget"),
        (["--budget", "24GiB", "--host", "vllm"], "unknown host"),
    ],
)
def test_what_is_wrong_is_a_typed_error(capsys: pytest.CaptureFixture[str], target: str, more: list[str], message: str):
    code, found = asked(capsys, "--target", target, *more)
    assert code == 2
    assert found["error"]["type"] == "ConfigError"
    assert message in found["error"]["message"]


def test_drafters_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str], target: str, tmp_path: Path):
    other = written(tmp_path / "other", DRAFT | {"vocab_size": 32001})
    larger = written(tmp_path / "larger", TARGET | {"num_hidden_layers": 40})
    for folder, message in ((other, "token ids"), (larger, "larger than its target")):
        code, found = asked(capsys, "--target", target, "--draft", folder, "--budget", "80GiB")
        assert code == 2
        assert message in found["error"]["message"]
    code, _ = asked(capsys, "--target", target, "--draft", larger, "--budget", "80GiB", "--allow-larger")
    assert code == 0


def test_planning_needs_no_torch(target: str, draft: str):
    code = (
        "import sys; from remnant.cli import main; "
        f"code = main(['plan-draft', '--target', {target!r}, '--draft', {draft!r}, '--budget', '24GiB']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
