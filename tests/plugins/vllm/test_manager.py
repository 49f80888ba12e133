"""The scheduler's side alone: a real manager over a real pool, driven by random schedules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vllm is not installed")

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.v1.core.block_pool import BlockPool

from remnant_vllm import gone_blocks, kept_tokens
from remnant_vllm.counts import stable_blocks
from remnant_vllm.manager import RemnantManager
from remnant_vllm.settings import Settings
from remnant_vllm.spec import RemnantSpec

pytestmark = pytest.mark.vllm
BLOCK = 16


def make(mode: str, budget: int, blocks: int = 200, in_flight: int = 64) -> RemnantManager:
    chosen = Settings.parse({"policy": "knorm", "budget": budget, "mode": mode})
    spec = RemnantSpec(
        block_size=BLOCK, num_kv_heads=2, head_size=32, dtype=torch.float32, remnant=chosen, in_flight=in_flight
    )
    pool = BlockPool(num_gpu_blocks=blocks, enable_caching=True, hash_block_size=BLOCK)
    return RemnantManager(spec, block_pool=pool, enable_caching=True, kv_cache_group_id=0, scheduler_block_size=BLOCK)


def request(name: str, prompt_len: int, extra: dict[str, Any] | None = None) -> Any:
    params = SimpleNamespace(extra_args={"remnant": extra} if extra else None)
    return SimpleNamespace(request_id=name, num_prompt_tokens=prompt_len, sampling_params=params)


OPS = st.lists(
    st.tuples(st.sampled_from(["new", "step", "step", "step", "preempt", "end"]), st.integers(1, 90)), max_size=80
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(OPS, st.sampled_from(["prompt", "stream"]), st.integers(1, 120))
def test_random_schedules(ops: list[tuple[str, int]], mode: str, budget: int) -> None:
    """Whatever is started, preempted and ended: rows hold what the counts say, and nothing is lost or freed twice."""
    manager = make(mode, budget)
    pool = manager.block_pool
    start, live, number = pool.get_num_free_blocks(), {}, 0
    for op, n in ops:
        if op == "new" and len(live) < 4:
            number += 1
            name = f"r{number}"
            extra = {"budget": max(1, budget // 2)} if n % 3 == 0 else None
            manager.meet(request(name, 1 + n * 3, extra))
            live[name] = [0, 1 + n * 3, extra["budget"] if extra else budget]
        elif live:
            name = list(live)[n % len(live)]
            if op == "step":
                advance(manager, name, live[name], n)
            else:
                manager.free(name)
                assert name not in manager.asked
                live[name][0] = 0
                if op == "end":
                    del live[name]
                else:
                    manager.meet(request(name, live[name][1], {"budget": live[name][2]}))
        check(manager, live, mode)
    for name in live:
        manager.free(name)
    assert pool.get_num_free_blocks() == start
    assert not manager.req_to_blocks
    assert not manager.asked


def advance(manager: RemnantManager, name: str, state: list[int], n: int) -> None:
    """One scheduled step: free what is settled, then make room for new tokens, as the scheduler does."""
    computed, prompt_len, _ = state
    manager.remove_skipped_blocks(name, computed, prompt_len)
    if computed + n > 900:
        return
    manager.allocate_new_blocks(name, computed + n, computed + n)
    state[0] = computed + n


def check(manager: RemnantManager, live: dict[str, list[int]], mode: str) -> None:
    held: list[int] = []
    for name, (_, prompt_len, budget) in live.items():
        row = manager.req_to_blocks.get(name, [])
        empty = [block.is_null for block in row]
        assert empty == sorted(empty, reverse=True), "only leading blocks go"
        if mode == "prompt":
            assert sum(empty) in (0, gone_blocks("prompt", prompt_len, prompt_len, budget, BLOCK))
        held += [block.block_id for block in row if not block.is_null]
    assert len(held) == len(set(held)), "no block belongs to two"
    pool = manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1 - len(held)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["prompt", "stream"]), st.integers(1, 5000), st.integers(1, 600), st.sampled_from([16, 32, 128]))
def test_counts(mode: Any, prompt_len: int, budget: int, block: int) -> None:
    """Never below the budget, never a whole block above it, never fewer than before."""
    kept = kept_tokens(prompt_len, budget, block, mode)
    assert kept == prompt_len or budget <= kept < budget + block
    steps = [gone_blocks(mode, n, prompt_len, budget, block) for n in range(0, prompt_len + 200, 7)]
    assert steps == sorted(steps)
    stable = stable_blocks(mode, prompt_len, budget, block)
    assert stable in (None, 0) if mode == "stream" else stable == (steps[-1] or None)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_agree(ranks: int) -> None:
    """Tensor parallel ranks hold other heads and choose other tokens; how many they keep follows from lengths."""
    chosen = Settings.parse({"policy": "snapkv", "budget": 64})
    counts = [[chosen.gone(n, 500, BLOCK) for n in range(0, 600, 13)] for _ in range(ranks)]
    assert all(c == counts[0] for c in counts)
    specs = [
        RemnantSpec(block_size=BLOCK, num_kv_heads=8 // ranks, head_size=32, dtype=torch.float32, remnant=chosen,
                    in_flight=64)
        for _ in range(ranks)
    ]  # fmt: skip
    assert all(spec == specs[0] for spec in specs)


def test_specs_do_not_share_a_group_with_others() -> None:
    spec = make("prompt", 64).kv_cache_spec
    other = make("prompt", 65).kv_cache_spec
    assert spec.is_uniform_with_collection({"a": spec, "b": spec})
    assert not spec.is_uniform_with_collection({"a": spec, "b": other})
    assert RemnantSpec.merge([spec, spec]) == spec
    with pytest.raises(AssertionError, match="cannot share"):
        RemnantSpec.merge([spec, other])


def test_a_spec_survives_the_way_to_another_process() -> None:
    import pickle

    spec = make("stream", 64).kv_cache_spec
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_admission_is_capped_in_stream_mode() -> None:
    """A request whose prompt is longer than the pool is admitted: it never holds more than its share at once."""
    manager = make("stream", 64, blocks=14, in_flight=64)
    manager.meet(request("a", 800))
    needed = manager.get_num_blocks_to_allocate("a", 800, [], 0, 0, 800, apply_admission_cap=True)
    assert needed == manager.kv_cache_spec.live_blocks() < 14
