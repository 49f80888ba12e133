"""The KV connector: a fresh engine goes on where another one stopped, and says the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.vllm

BLOCK, NEW = 32, 16
BLOCK_BYTES = 2 * 2 * BLOCK * 2 * 32 * 4  # layers, heads, tokens, keys and values, dimensions, float32


def store_flag(path: Path | None, role: str = "kv_both", **options: Any) -> Any:
    """What --kv-transfer-config gives."""
    from vllm.config import KVTransferConfig

    extra = {"path": str(path), "disk_bytes": 1 << 30} if path is not None else {}
    return KVTransferConfig(
        kv_connector="RemnantConnector",
        kv_connector_module_path="remnant_vllm.connector",
        kv_role=role,  # type: ignore[arg-type]
        kv_connector_extra_config={"host_bytes": 1 << 28, **extra, **options},
    )


def store_of(engine: Any) -> Any:
    """The store of a running engine."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    engine.scheduler  # noqa: B018  it must be running
    return get_kv_transfer_group().store  # type: ignore[attr-defined]


def cached(engine: Any, count: int) -> list[int]:
    return [engine.cached[str(i)] for i in range(count)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.kv"))


@pytest.fixture
def case(engine: Any, checkpoints: Any, prompts: Any) -> Case:
    return Case(engine, checkpoints("llama"), prompts)


class Case:
    """Two prompts, a sibling of the first, and what an engine without a store says."""

    answers: list[list[int]] | None = None

    def __init__(self, engine: Callable[..., Any], model: Path, prompts: Any) -> None:
        self.engine, self.model = engine, model
        first, second = prompts(300, 200)
        (rest,) = prompts(40, seed=2)
        self.given = [first, second, first[:260] + rest]

    def expected(self) -> list[list[int]]:
        if Case.answers is None:
            Case.answers = self.engine(self.model).run(self.given, NEW)
        return Case.answers

    def start(self, flag: Any, remnant: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        return self.engine(self.model, remnant, kv_transfer_config=flag, **kwargs)


def test_a_fresh_engine_loads_what_an_earlier_one_stored(case: Case, tmp_path: Path) -> None:
    expected = case.expected()
    first = case.start(store_flag(tmp_path))
    assert first.run(case.given[:2], NEW) == expected[:2]
    assert cached(first, 2) == [0, 0]
    saved = (300 + NEW - 1) // BLOCK + (200 + NEW - 1) // BLOCK
    assert store_of(first).counts.total["saved_blocks"] == saved
    second = case.start(store_flag(tmp_path))
    assert len(files(tmp_path)) == saved, "shutdown wrote what waited"
    assert second.run(case.given, NEW) == expected
    assert cached(second, 3) == [288, 192, 256]
    total = store_of(second).counts.total
    assert total["loaded_blocks"] == (288 + 192 + 256) // BLOCK
    assert (total["disk_hits"], total["host_hits"]) == (9 + 6, 8)
    assert store_of(second).gauges()["host_bytes"] == store_of(second).gauges()["disk_bytes"] - len(
        files(tmp_path)
    ) * 112 - (saved - 15) * BLOCK_BYTES, "generated blocks are on disk, and nobody asked for them"
    assert second.run(case.given, NEW) == expected
    assert store_of(second).counts.total["saved_blocks"] == 1, "the sibling's own block; nothing is stored twice"
