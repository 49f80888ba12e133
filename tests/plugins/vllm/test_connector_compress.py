"""One folder for engines that compress and engines that do not: blocks that eviction writes to never reach it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remnant.kv import get_policy
from remnant.kv.pace import paced

pytestmark = pytest.mark.vllm

BLOCK, BUDGET, NEW = 32, 96, 24
LENGTHS = (300, 200, 90)
POLICIES: dict[str, dict[str, Any]] = {
    "snapkv": {"window": 32},
    "knorm": {"sinks": 4, "recent": 16},
    "h2o": {},
    "pyramidkv": {"beta": 4},
}


def store_flag(path: Path, **options: Any) -> Any:
    from vllm.config import KVTransferConfig

    return KVTransferConfig(
        kv_connector="RemnantConnector",
        kv_connector_module_path="remnant_vllm.connector",
        kv_role="kv_both",
        kv_connector_extra_config={"path": str(path), "disk_bytes": 1 << 30, "host_bytes": 1 << 28, **options},
    )


def counted() -> dict[str, int]:
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group().store.counts.total  # type: ignore[attr-defined]


def cached(engine: Any) -> list[int]:
    return [engine.cached[str(i)] for i in range(len(LENGTHS))]


@pytest.mark.parametrize("name", POLICIES)
def test_both_kinds_of_engine_share_a_folder(
    name: str, engine: Any, checkpoints: Any, prompts: Any, in_hf: Any, tmp_path: Path
) -> None:
    model, given, options = checkpoints("llama"), prompts(*LENGTHS), POLICIES[name]
    policy = paced(get_policy(name, **options), "prompt", BLOCK)
    small = [in_hf(model, prompt, NEW, policy, BUDGET) for prompt in given]
    full = [in_hf(model, prompt, NEW) for prompt in given]
    assert small[0] != full[0]
    settings = {"policy": name, "budget": BUDGET, "mode": "prompt", **options}

    first = engine(model, settings, kv_transfer_config=store_flag(tmp_path))
    assert first.run(given, NEW) == small
    plain = engine(model, kv_transfer_config=store_flag(tmp_path))
    assert plain.run(given, NEW) == full, "what a compressing engine stored is sound"
    hits = cached(plain)
    if name != "pyramidkv":
        assert hits == [(300 - 96) // 32 * 32, (200 - 96) // 32 * 32, 64]
    else:
        assert 0 < hits[0] < 192, "the layer with the largest budget decides"
    again = engine(model, settings, kv_transfer_config=store_flag(tmp_path))
    assert again.run(given, NEW) == small, "and what a plain engine stored beyond that is not used"
    assert cached(again)[:2] == ([0, 0] if name == "h2o" else hits[:2])
    assert counted()["corrupt_files"] == counted()["foreign_files"] == 0


def test_requests_choose_for_themselves(
    engine: Any, checkpoints: Any, prompts: Any, in_hf: Any, tmp_path: Path
) -> None:
    """A request that is off may load and store everything; one with a smaller budget loads more than the engine's."""
    model, given = checkpoints("llama"), prompts(300, 300, 300)
    given = [given[0]] * 3
    options = POLICIES["snapkv"]
    policy = paced(get_policy("snapkv", **options), "prompt", BLOCK)
    extra: list[Any] = [{"remnant": {"off": True}}, {"remnant": {"budget": 64}}, None]
    wanted = [
        in_hf(model, given[0], NEW),
        in_hf(model, given[0], NEW, policy, 64),
        in_hf(model, given[0], NEW, policy, BUDGET),
    ]
    settings = {"policy": "snapkv", "budget": BUDGET, "mode": "prompt", **options}
    for hits in ([0, 0, 0], [288, (300 - 64) // 32 * 32, (300 - 96) // 32 * 32]):
        running = engine(model, settings, kv_transfer_config=store_flag(tmp_path))
        assert running.run(given, NEW, extra) == wanted
        assert cached(running) == hits


def test_in_chunks_in_a_small_pool(engine: Any, checkpoints: Any, prompts: Any, tmp_path: Path) -> None:
    model, given = checkpoints("llama"), prompts(300, 290, 280, 270, seed=7)
    settings = {"policy": "snapkv", "budget": BUDGET, "mode": "prompt", **POLICIES["snapkv"]}
    wanted = engine(model, settings).run(given, 100)
    tight = {"blocks": 34, "max_num_batched_tokens": 100, "max_num_seqs": 4, "enable_prefix_caching": True}
    for _ in range(2):
        running = engine(model, settings, kv_transfer_config=store_flag(tmp_path), **tight)
        for _ in range(2):
            assert running.run(given, 100) == wanted
            assert running.free == running.pool.num_gpu_blocks - 1
    assert counted()["loaded_blocks"] > 0


def test_a_bounded_cache_keeps_no_block_worth_storing(
    engine: Any, checkpoints: Any, prompts: Any, tmp_path: Path
) -> None:
    model, given = checkpoints("llama"), prompts(*LENGTHS)
    settings = {"policy": "tova", "budget": BUDGET, "mode": "stream"}
    wanted = engine(model, settings).run(given, NEW)
    engine(model, kv_transfer_config=store_flag(tmp_path)).run(given, NEW)
    before = len(list(tmp_path.rglob("*.kv")))
    running = engine(model, settings, kv_transfer_config=store_flag(tmp_path))
    assert running.run(given, NEW) == wanted
    assert cached(running) == [0, 0, 0]
    assert counted()["saved_blocks"] == 0
    assert len(list(tmp_path.rglob("*.kv"))) == before
