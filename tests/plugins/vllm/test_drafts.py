"""Speculative decoding over compressed caches: drafts change no token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from remnant.kv import get_policy
from remnant.kv.pace import paced

pytestmark = pytest.mark.vllm
BLOCK, BUDGET, NEW = 32, 128, 24


@pytest.mark.parametrize("name", ["snapkv", "random"])
def test_draft_model(
    name: str, engine: Any, checkpoints: Any, prompts: Callable[..., list[list[int]]], in_hf: Callable[..., list[int]]
) -> None:
    """A draft model on the same backend shares the block table; its own cache is compressed in the same way.

    `random` keeps by layer number, so it also shows that draft layers do not shift those of the target.
    """
    model, given = checkpoints("llama"), prompts(600, 517, 100)
    policy = paced(get_policy(name), "prompt", BLOCK)
    wanted = [in_hf(model, prompt, NEW, policy, BUDGET) for prompt in given]
    spec = {"method": "draft_model", "model": str(model), "num_speculative_tokens": 3, "attention_backend": "CUSTOM"}
    running = engine(model, {"policy": name, "budget": BUDGET, "mode": "prompt"}, blocks=140, speculative_config=spec)
    assert running.run(given, NEW) == wanted
    assert running.steps < 20, "drafts of the target itself are accepted"


def test_a_draft_model_elsewhere_is_refused(engine: Any, checkpoints: Any) -> None:
    spec = {"method": "draft_model", "model": str(checkpoints("llama")), "num_speculative_tokens": 3}
    with pytest.raises(Exception, match="another attention backend"):
        engine(checkpoints("llama"), {"policy": "snapkv", "budget": BUDGET}, speculative_config=spec)
