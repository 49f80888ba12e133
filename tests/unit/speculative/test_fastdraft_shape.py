"""Shapes of drafters: what they cost, which fit a budget, how their steps are timed, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from remnant.errors import ConfigError
from remnant.speculative.fastdraft.evaluate import time_step
from remnant.speculative.fastdraft.plan import default_lr, given_shape
from remnant.speculative.fastdraft.search import Row, Timing, choose, fit_times, search
from remnant.speculative.fastdraft.settings import Settings
from remnant.speculative.fastdraft.shape import (
    Shape,
    block_of,
    borrow_embedding,
    candidates,
    draft_config,
    new_draft,
    smallest,
)
from remnant.speculative.fastdraft.target import read_target


def configs() -> list[Any]:
    from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    scaled: Any = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500_000.0}
    sizes: dict[str, Any] = {"vocab_size": 500, "num_hidden_layers": 6, "hidden_size": 256, "num_attention_heads": 4}
    return [
        LlamaConfig(**sizes, rope_parameters=scaled, eos_token_id=[3, 4]),
        MistralConfig(**sizes, sliding_window=128),
        Qwen2Config(**sizes, max_window_layers=6),
        Qwen3Config(**sizes, head_dim=64),
        GPT2Config(vocab_size=500),
    ]


@pytest.mark.parametrize("config", configs(), ids=lambda c: c.model_type)
def test_the_count_is_that_of_the_model_and_what_the_target_says_of_tokens_stays(config: Any):
    block = block_of(config)
    assert block == ("llama" if config.model_type == "gpt2" else config.model_type)
    shapes = candidates(500, 90_000, 64, block)
    for shape in shapes[:2]:
        made = draft_config(config, shape)
        model = new_draft(made, 0)
        assert sum(p.numel() for p in model.parameters()) == shape.parameters(500) <= 90_000
        assert (made.vocab_size, made.eos_token_id) == (500, config.eos_token_id)
        assert made.tie_word_embeddings
        assert made.num_hidden_layers == shape.depth
        if config.model_type == "llama":
            assert made.rope_parameters == config.rope_parameters


def test_candidates_spend_the_budget_wide_and_shallow_first():
    target = read_target("testbed")
    budget = target.parameters // 8
    shapes = candidates(target.vocab, budget, target.head_dim)
    assert [(s.width, s.depth) for s in shapes][:2] == [(48, 1), (32, 2)]
    assert all(0.8 * budget <= s.parameters(target.vocab) <= budget for s in shapes)
    assert [s.width for s in shapes] == sorted((s.width for s in shapes), reverse=True)
    assert len(set(shapes)) == len(shapes)


def test_a_budget_below_the_vocabulary_is_refused():
    least = smallest(2048)
    assert candidates(2048, least)
    with pytest.raises(ConfigError, match=f"at least {least}"):
        candidates(2048, least - 1)


def test_drafts_of_one_seed_are_equal():
    config = draft_config(read_target("testbed").config, Shape(16, 1, 2, 1, 32, 32))
    torch.manual_seed(1)
    one = new_draft(config, 5)
    torch.manual_seed(2)
    two, other = new_draft(config, 5), new_draft(config, 6)
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(one.get_input_embeddings().weight, other.get_input_embeddings().weight)


def test_the_fit_finds_what_made_the_times_and_is_never_negative():
    shapes = [Shape(w, d, 2, 1, 32, 4 * w) for w, d in ((64, 1), (64, 4), (128, 2), (256, 1), (256, 8))]
    truth = [1e-4 + 2e-4 * s.depth + 1e-10 * s.parameters(1000) for s in shapes]
    predict = fit_times(shapes, 1000, truth)
    new = Shape(128, 6, 2, 1, 32, 512)
    assert predict(new) == pytest.approx(1e-4 + 2e-4 * 6 + 1e-10 * new.parameters(1000), rel=1e-6)
    falling = fit_times(shapes, 1000, [1e-3 - 1e-5 * s.depth for s in shapes])
    assert falling(Shape(64, 100, 2, 1, 32, 256)) > 0


def test_the_search_times_tries_and_takes_the_fastest():
    config = read_target("testbed").config
    shapes = candidates(2048, 131_000, 32)
    asked: list[Shape] = []

    def pilot(shape: Shape) -> float:
        asked.append(shape)
        return 0.9 if shape.depth == 2 else 0.1

    rows = search(shapes, config, Timing(1.0, 1.2), 3, "cpu", pilot, pilots=2)
    assert [(s.width, s.depth) for s in asked] == [(48, 1), (32, 2)]
    assert rows[0].shape.depth == 2  # the target's step costs a second: acceptance alone decides
    assert rows[0].speedup == pytest.approx((1 + 0.9 + 0.81 + 0.729) / 1.2, rel=0.05)
    assert {row.shape for row in rows} == set(shapes)
    assert all(row.predicted > 0 and row.measured is not None for row in rows)


def test_without_trials_the_fastest_step_wins():
    wide, deep = Shape(48, 1, 2, 1, 32, 96), Shape(32, 4, 2, 1, 32, 96)
    assert choose([Row(deep, 1, 2.0), Row(wide, 1, 1.0)]).shape is wide
    assert choose([Row(deep, 1, 2.0), Row(wide, 1, 1.0, measured=3.0)]).shape is deep


def test_a_deeper_drafter_takes_longer():
    config = read_target("testbed").config
    made = [new_draft(draft_config(config, Shape(32, depth, 2, 1, 32, 64)), 0).eval() for depth in (1, 8)]
    assert time_step(made[1]) > 2 * time_step(made[0])


def test_rates_fall_with_width():
    assert default_lr(768) == pytest.approx(6e-4)
    assert default_lr(48) > default_lr(256) > default_lr(2048)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target": "some/model"}, "corpus"),
        ({"target": "testbed", "corpus": (Path("x"),)}, "brings its own"),
        ({"target": "testbed", "width": 32}, "both"),
        ({"target": "testbed", "loss": "mse"}, "ce\\+tvd"),
        ({"target": "testbed", "on_policy": 0.5}, "losses that ask the target"),
        ({"target": "testbed", "on_policy": 1.5, "loss": "kl"}, "0 to 1"),
        ({"target": "testbed", "length": 8}, "at least 32"),
        ({"target": "testbed", "minutes": 0}, "above 0"),
    ],
)
def test_settings_that_cannot_be_meant(options: dict[str, Any], match: str):
    with pytest.raises(ConfigError, match=match):
        Settings(**options)


def test_a_drafter_is_smaller_than_its_target_and_a_shape_fits_its_budget():
    target = read_target("testbed")
    assert Settings("testbed").parameters(800) == 100
    assert Settings("testbed", budget=300).parameters(800) == 300
    with pytest.raises(ConfigError, match="smaller than its target"):
        Settings("testbed", budget=800).parameters(800)
    fixed = given_shape(Settings("testbed", width=32, depth=2), target, 131_000)
    assert fixed is not None
    assert (fixed.width, fixed.depth) == (32, 2)
    with pytest.raises(ConfigError, match="48 x 1"):
        given_shape(Settings("testbed", width=64, depth=1), target, 131_000)


def test_the_borrowed_embedding_keeps_which_tokens_are_alike():
    from remnant.testbed import load

    model = load()[0]
    config = draft_config(model.config, Shape(48, 1, 2, 1, 32, 96))
    plain, told = new_draft(config, 0), new_draft(config, 0)
    borrow_embedding(told, model, 0)

    def alike(matrix: torch.Tensor) -> torch.Tensor:
        unit = torch.nn.functional.normalize(matrix.detach()[300:700], dim=-1)
        return (unit @ unit.T).flatten()

    truth, one, two = (alike(m.get_input_embeddings().weight) for m in (model, told, plain))
    assert torch.corrcoef(torch.stack([truth, one]))[0, 1] > 0.6
    assert torch.corrcoef(torch.stack([truth, two]))[0, 1] < 0.4
    weights = [m.get_input_embeddings().weight for m in (told, plain)]
    assert weights[0].std().item() == pytest.approx(weights[1].std().item(), rel=1e-4)
    wide = new_draft(draft_config(model.config, Shape(160, 1, 2, 1, 32, 320)), 0)
    before = wide.get_input_embeddings().weight.clone()
    borrow_embedding(wide, model, 0)
    assert torch.equal(before, wide.get_input_embeddings().weight)


@pytest.mark.parametrize("head_dim", [32, 40, 80, 96])
def test_heads_divide_the_width_whatever_the_targets_are(head_dim: int):
    """Phi-3-mini has heads of 96; transformers refuses widths that their number does not divide."""
    from transformers import LlamaConfig

    target = LlamaConfig(vocab_size=500, hidden_size=8 * head_dim, num_attention_heads=8, head_dim=head_dim)
    shapes = candidates(500, 3_000_000, head_dim)
    assert len(shapes) > 3
    for shape in shapes:
        assert shape.width % shape.heads == shape.heads % shape.kv_heads == 0
        config = draft_config(target, shape)
        assert (config.hidden_size, config.num_attention_heads) == (shape.width, shape.heads)
