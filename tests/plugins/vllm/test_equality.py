"""The promise: every token is the one that `RemnantCache` gives for the same policy, budget and prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remnant.kv import get_policy
from remnant.kv.pace import paced
from remnant_vllm import kept_tokens

pytestmark = pytest.mark.vllm

BLOCK, BUDGET, NEW = 32, 128, 24
LENGTHS = (600, 517, 300, 100)
PROMPT_POLICIES: dict[str, dict[str, Any]] = {
    "streaming": {},
    "window": {},
    "random": {"seed": 3},
    "knorm": {"sinks": 4, "recent": 16},
    "keydiff": {"recent": 16},
    "snapkv": {"window": 32},
    "tova": {},
    "expected": {},
    "pyramidkv": {"beta": 4},
    "h2o": {},
    "trimkv": {"gates": "uniform", "share": "head", "sinks": 4},
}
STREAM_POLICIES: dict[str, dict[str, Any]] = {
    name: options for name, options in PROMPT_POLICIES.items() if name != "expected"
} | {"lazyeviction": {"window": 32}}
Prompts = Callable[..., list[list[int]]]
Hf = Callable[..., list[int]]


def references(in_hf: Hf, model: Path, given: list[list[int]], policy: Any, budget: int = BUDGET, **kw: Any) -> Any:
    return [in_hf(model, prompt, NEW, policy, budget, **kw) for prompt in given]


@pytest.mark.parametrize("name", PROMPT_POLICIES)
def test_prompt_mode(name: str, engine: Any, checkpoints: Any, prompts: Prompts, in_hf: Hf) -> None:
    """Plain, in chunks, with a prefix cache and in a small pool: one reference for all, several requests at once."""
    model, given, options = checkpoints("llama"), prompts(*LENGTHS), PROMPT_POLICIES[name]
    policy = paced(get_policy(name, **options), "prompt", BLOCK)
    wanted = references(in_hf, model, given, policy)
    assert wanted != references(in_hf, model, given, None), "the budget must bite"
    settings = {"policy": name, "budget": BUDGET, "mode": "prompt", **options}
    assert engine(model, settings).run(given, NEW) == wanted
    chunked = engine(model, settings, max_num_batched_tokens=100, max_num_seqs=4, enable_prefix_caching=True)
    for _ in range(2):  # the second time with what the first one left in the prefix cache
        assert chunked.run(given, NEW) == wanted
    assert (chunked.cached["0"] > 0) == (name not in ("h2o", "expected"))
    small = engine(model, settings, blocks=26 if name != "pyramidkv" else 52, max_model_len=640)
    assert small.run(given, NEW) == wanted
    assert small.free == small.pool.num_gpu_blocks - 1


@pytest.mark.parametrize("name", STREAM_POLICIES)
def test_stream_mode(name: str, engine: Any, checkpoints: Any, prompts: Prompts, in_hf: Hf) -> None:
    """The cache stays bounded while decoding, too; in chunks as Hugging Face in blocks."""
    model, given, options = checkpoints("llama"), prompts(*LENGTHS), STREAM_POLICIES[name]
    policy = paced(get_policy(name, **options), "stream", BLOCK)
    settings = {"policy": name, "budget": BUDGET, "mode": "stream", **options}
    long = 80
    wanted = [in_hf(model, prompt, long, policy, BUDGET) for prompt in given]
    running = engine(model, settings, max_num_batched_tokens=4096)
    most: list[int] = []
    got = running.run(given, long, watch=lambda e: most.append(held(e)))
    assert got == wanted
    limit = -(-(BUDGET + BLOCK) // BLOCK) if name != "pyramidkv" else 8
    assert max(most[3:]) <= limit
    if name == "pyramidkv":
        return  # its shares go by the length of the prompt, which a cache that is fed in blocks does not know yet
    for prompt in given[:2]:
        blocks = in_hf(model, prompt, long, policy, BUDGET, prefill_block=128)
        chunked = engine(model, settings, max_num_batched_tokens=128)
        assert chunked.run([prompt], long) == [blocks]


def held(engine: Any) -> int:
    """Most blocks that one request holds in one group."""
    rows = [row for manager in engine.managers for row in manager.req_to_blocks.values()]
    return max((sum(not block.is_null for block in row) for row in rows), default=0)


def test_contract(engine: Any, checkpoints: Any, prompts: Prompts, in_hf: Hf) -> None:
    """As the documentation states it: the Hugging Face budget is the count that vLLM really keeps."""
    model, given = checkpoints("llama"), prompts(600, 550, 500, 300, 100, 640)
    settings = {"policy": "snapkv", "budget": 128, "mode": "prompt", "window": 32}
    got = engine(model, settings).run(given, 40)
    for prompt, tokens in zip(given, got, strict=True):
        kept = kept_tokens(len(prompt), 128, BLOCK)
        assert tokens == in_hf(model, prompt, 40, "snapkv", kept, window=32)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
@pytest.mark.parametrize("name", ["snapkv", "h2o"])
def test_architectures(kind: str, name: str, engine: Any, checkpoints: Any, prompts: Prompts, in_hf: Hf) -> None:
    """Query-key norms, and sliding layers between full ones: the former are left alone."""
    model, given = checkpoints(kind), prompts(600, 300, 90)
    policy = paced(get_policy(name), "prompt", BLOCK)
    wanted = references(in_hf, model, given, policy)
    assert wanted != references(in_hf, model, given, None)
    running = engine(model, {"policy": name, "budget": BUDGET, "mode": "prompt"}, blocks=80, max_num_batched_tokens=256)
    assert running.run(given, NEW) == wanted
    kinds = {type(manager).__name__ for manager in running.managers}
    assert kinds == ({"RemnantManager", "SlidingWindowManager"} if kind == "gemma3" else {"RemnantManager"})
