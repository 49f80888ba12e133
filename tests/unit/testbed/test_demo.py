"""The demo, on the testbed and on a checkpoint and a file of one's own."""

from pathlib import Path

import pytest
import torch

from remnant.errors import ConfigError
from remnant.testbed import demo, load
from remnant_hf import RemnantCache
from remnant_hf.chart import kept_chart

PNG = b"\x89PNG"


@pytest.mark.slow
def test_testbed_answers_and_draws(tmp_path: Path):
    found = demo.run(out=tmp_path / "kept.png")
    assert (tmp_path / "kept.png").read_bytes().startswith(PNG)
    rows = {(row["scene"], row["policy"]): row for row in found["rows"]}
    full, snapkv = rows["passkey-early", "full"], rows["passkey-early", "snapkv"]
    assert full["right"] == full["of"] == 6
    assert snapkv["right"] >= 5
    assert rows["passkey-early", "streaming"]["right"] <= 1
    assert snapkv["bytes"] < 0.15 * full["bytes"]
    assert full["bytes"] == full["bytes_full"]


@pytest.mark.slow
def test_own_model_and_file(tmp_path: Path):
    model, tokenizer = load()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("The parser reads one line after the other and returns a list of tokens. " * 20)
    found = demo.run(str(tmp_path / "model"), text, "What does it return?", "streaming", 64, tmp_path / "kept.png")
    full, bounded = found["rows"]
    assert (full["policy"], bounded["policy"]) == ("full", "streaming")
    assert bounded["bytes"] < full["bytes"] == full["bytes_full"]
    assert (tmp_path / "kept.png").read_bytes().startswith(PNG)


def test_questions_need_a_model_and_a_model_needs_them(tmp_path: Path):
    with pytest.raises(ConfigError, match="--model"):
        demo.run(question="What?")
    with pytest.raises(ConfigError, match="--prompt-file"):
        demo.run(model="somewhere")
    (tmp_path / "text.txt").write_text("A text.")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        demo.run(model=str(tmp_path / "nothing"), prompt_file=tmp_path / "text.txt", question="What?")


def test_chart_of_one_cache(tmp_path: Path):
    model, _ = load()
    cache = RemnantCache(model.config, "adakv", budget=48)
    with pytest.raises(ConfigError, match="nothing"):
        kept_chart(cache, tmp_path / "empty.png")
    with torch.no_grad():
        model(torch.arange(300, 500)[None], past_key_values=cache)
    assert kept_chart(cache, tmp_path / "kept.png", [(10, 14)]).read_bytes().startswith(PNG)
