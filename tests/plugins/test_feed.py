"""Long prompts in blocks."""

from typing import Any

import pytest
import torch

from remnant.errors import ConfigError, ShapeError
from remnant_hf._feed import blocks, feed
from remnant_hf.cache import RemnantCache


def prompt(n=70, rows=1, seed=0):
    return torch.randint(2, 128, (rows, n), generator=torch.Generator().manual_seed(seed))


def test_blocks_are_never_single_tokens():
    assert blocks(9, 4) == [(0, 4), (4, 7), (7, 9)]
    assert blocks(4, 3) == [(0, 2), (2, 4)]
    assert blocks(8, 4) == [(0, 4), (4, 8)]
    assert blocks(1, 4) == [(0, 1)]
    with pytest.raises(ConfigError):
        blocks(9, 2)


@pytest.mark.parametrize("policy", ["full", "snapkv", "knorm", "h2o"])
def test_blocks_change_nothing(letters_model, policy):
    ids = prompt()
    options: dict[str, Any] = {"window": 8} if policy == "snapkv" else {}
    whole, parts = (RemnantCache(letters_model.config, policy, budget=24, **options) for _ in range(2))
    steps: list[tuple[int, int]] = []
    a = feed(letters_model, ids, whole, block=100)
    b = feed(letters_model, ids, parts, block=23, progress=lambda done, total, text: steps.append((done, total)))
    assert steps == [(23, 70), (46, 70), (68, 70), (70, 70)]
    assert a == pytest.approx(b, abs=1e-4)
    with torch.no_grad():
        assert a[0] == pytest.approx(letters_model(ids).logits[0, -1], abs=1e-4)
    for layer in range(2):
        assert torch.equal(whole.kept_positions(layer), parts.kept_positions(layer))
    assert parts.tokens is not None
    assert parts.tokens.tolist() == ids.tolist()


def test_prefill_block_bounds_the_peak(letters_model):
    ids = prompt(700)
    cache = RemnantCache(letters_model.config, "keydiff", budget=16, prefill_block=32)
    feed(letters_model, ids, cache)
    assert cache.kept_positions(0).shape[-1] == 16
    free = RemnantCache(letters_model.config, "keydiff", budget=16)
    feed(letters_model, ids, free, block=32)
    assert free.kept_positions(0).shape[-1] == 16
    assert cache.stats().peak_bytes < free.stats().peak_bytes / 3


def test_left_padding_row_by_row(letters_model):
    ids = prompt(40, rows=2)
    mask = torch.ones_like(ids)
    mask[1, :13] = 0
    got = feed(letters_model, ids, RemnantCache(letters_model.config, "full"), block=9, attention_mask=mask)
    alone = feed(letters_model, ids[1:, 13:], RemnantCache(letters_model.config, "full"))
    assert got[1] == pytest.approx(alone[0], abs=1e-4)


def test_a_second_turn_continues(letters_model):
    ids = prompt(50)
    cache = RemnantCache(letters_model.config, "full")
    feed(letters_model, ids[:, :30], cache, block=8)
    got = feed(letters_model, ids[:, 30:], cache, block=8)
    with torch.no_grad():
        assert got[0] == pytest.approx(letters_model(ids).logits[0, -1], abs=1e-4)
    assert cache.tokens is not None
    assert cache.tokens.tolist() == ids.tolist()


def test_refusals(letters_model):
    cache = RemnantCache(letters_model.config, "full")
    with pytest.raises(ShapeError):
        feed(letters_model, torch.zeros(1, 0, dtype=torch.long), cache)
    with pytest.raises(ShapeError, match="past"):
        feed(letters_model, prompt(9), cache, attention_mask=torch.ones(1, 4))
