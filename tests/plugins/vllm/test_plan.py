"""The plan's arithmetic against vLLM's own: blocks of the pool, concurrency as it logs it, blocks held step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remnant.serving.model import Model, read_model
from remnant.serving.plan import Memory, Request, plan
from remnant.serving.pool import Engine, Eviction, Pool, Use, buckets

# pyright: reportMissingImports=false

pytestmark = pytest.mark.vllm

BLOCK, BUDGET, LONGEST = 32, 128, 1024
MODES = [None, "prompt", "stream"]


def settings(mode: str | None, policy: str = "snapkv") -> dict[str, Any] | None:
    return None if mode is None else {"policy": policy, "budget": BUDGET, "mode": mode, "window": 8}


def planned(path: Path, running: Any, memory: int, mode: Any, budgets: tuple[int, ...] = (BUDGET,)) -> Pool:
    """The pool that the plan expects of an engine's configuration."""
    config = running.llm.llm_engine.vllm_config
    chunk = config.scheduler_config.max_num_batched_tokens
    engine = Engine(BLOCK, 4, chunk=chunk, overlap=config.max_concurrent_batches)
    eviction = None if mode is None else Eviction(mode, budgets)
    return Pool(buckets(read_model(str(path)).layers, engine, eviction), engine, memory)


def bytes_of(model: Model, blocks: int) -> int:
    return blocks * BLOCK * sum(layer.token_bytes(4) for layer in model.layers)


def compare(running: Any, pool: Pool, use: Use) -> None:
    """Blocks, tables and the concurrency of an engine against those of a plan."""
    from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config

    config = running.scheduler.kv_cache_config
    assert config.num_blocks == pool.blocks
    assert len(config.kv_cache_groups) == sum(pool.tables)
    found = get_max_concurrency_for_kv_cache_config(running.llm.llm_engine.vllm_config, config)
    assert found == pytest.approx(use.concurrency, rel=1e-12)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("mode", MODES)
def test_engine_holds_what_was_planned(
    engine: Any, checkpoints: Any, prompts: Callable[..., Any], kind: str, mode: str | None
) -> None:
    """One request in chunks of 200 tokens, then 70 new ones: the blocks in use after every step."""
    path, chunk, prompt, new = checkpoints(kind), 200, 600, 70
    memory = bytes_of(read_model(str(path)), 70)
    running = engine(path, settings(mode), max_num_batched_tokens=chunk, kv_cache_memory_bytes=memory)
    pool = planned(path, running, memory, mode)
    compare(running, pool, pool.use(LONGEST, LONGEST))

    used: list[int] = []
    running.run(prompts(prompt), new, watch=lambda e: used.append(e.pool.num_gpu_blocks - 1 - e.free))
    steps = [(min(start + chunk, prompt), start) for start in range(0, prompt, chunk)]
    steps += [(t + 1, t) for t in range(prompt, prompt + new - 2)]  # the last step has given everything back
    wanted = [pool.held(*step, prompt) for step in steps]
    assert used == [*wanted, 0]
    use = pool.use(prompt, prompt + new - 2)
    assert use.peak_blocks == max(used)
    assert use.steady_blocks == max(used[-1 - 2 * BLOCK :])


@pytest.mark.parametrize("mode", ["prompt", "stream"])
def test_as_many_requests_as_planned(engine: Any, checkpoints: Any, prompts: Callable[..., Any], mode: Any) -> None:
    """The planned number runs at once without preemption, where a stock engine of the same memory holds fewer."""
    path = checkpoints("llama")
    model, (prompt, new, blocks) = read_model(str(path)), (600, 40, 33)
    memory = Memory(given=bytes_of(model, blocks))
    request = Request(prompt, new)
    stock = engine(path, None, blocks, max_model_len=request.total)
    chunk = stock.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    result = plan(model, Engine(BLOCK, 4, chunk=chunk, overlap=1), memory, request, BUDGET, mode)
    few, many = result["without"]["requests"], result["with"]["requests"]
    assert many > few
    given = prompts(*[prompt] * many)
    stock.run(given, new)
    assert stock.most_running == few
    running = engine(path, settings(mode), blocks, max_model_len=request.total)
    running.run(given, new)
    assert running.most_running == many
    assert not any(running.preemptions.values())


@pytest.mark.parametrize("mode", [None, "prompt", "stream"])
def test_groups_of_mixed_models(engine: Any, checkpoints: Any, mode: Any) -> None:
    """vLLM's own planning over real specifications: many layers of two kinds, with one budget or one for each."""
    import torch
    from vllm.v1.core.kv_cache_utils import get_kv_cache_configs, get_max_concurrency_for_kv_cache_config
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    from remnant.serving.model import Layer
    from remnant_vllm.settings import Settings
    from remnant_vllm.spec import RemnantSpec

    config = engine(checkpoints("llama"), settings(mode)).llm.llm_engine.vllm_config
    shape: dict[str, Any] = {"block_size": 16, "num_kv_heads": 4, "head_size": 64, "dtype": torch.bfloat16}
    server = Engine(16, 2, chunk=config.scheduler_config.max_num_batched_tokens, overlap=config.max_concurrent_batches)
    memory = 3 * 10**9 + 12345
    for full, sliding, own in [
        (8, 40, False),
        (12, 13, False),
        (5, 17, False),
        (6, 0, False),
        (6, 0, True),
        (4, 9, True),
    ]:
        specs: dict[str, Any] = {}
        for i in range(full):
            place = {"layer": i, "layers": full} if own else {}
            specs[f"model.layers.{i}.attn"] = (
                FullAttentionSpec(**shape)
                if mode is None
                else RemnantSpec(
                    **shape, **place, remnant=Settings.parse(settings(mode)), in_flight=config.max_in_flight_tokens
                )
            )
        for i in range(full, full + sliding):
            specs[f"model.layers.{i}.attn"] = SlidingWindowSpec(**shape, sliding_window=100)
        (found,) = get_kv_cache_configs(config, [specs], [memory])

        layers = [Layer(4, 128)] * full + [Layer(4, 128, "sliding", 100)] * sliding
        budgets = (BUDGET,) * (full if own else 1)
        pool = Pool(buckets(layers, server, None if mode is None else Eviction(mode, budgets)), server, memory)
        assert found.num_blocks == pool.blocks
        assert len(found.kv_cache_groups) == sum(pool.tables)
        concurrency = get_max_concurrency_for_kv_cache_config(config, found)
        assert concurrency == pytest.approx(pool.use(LONGEST, LONGEST).concurrency, rel=1e-12)
