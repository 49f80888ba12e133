"""Compaction by itself, in the layout of the CUDA backends and where a pool block is several kernel blocks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vllm is not installed")

import torch

from remnant.kv import KVView
from remnant_vllm.codec import PlainCodec
from remnant_vllm.compact import Compactor, Place
from remnant_vllm.rows import rows
from remnant_vllm.settings import Settings
from remnant_vllm.shift import Job, Shift
from remnant_vllm.spec import RemnantSpec

pytestmark = pytest.mark.vllm
H, D, POOL, KERNEL = 2, 8, 32, 16


def cache_of(n: int, table: list[int], blocks: int = 64) -> tuple[Any, Any, Any]:
    """A paged cache of kernel blocks that holds n random tokens at the table's blocks."""
    torch.manual_seed(0)
    k, v = torch.randn(2, n, H, D)
    cache = torch.full((blocks, H, KERNEL, 2 * D), torch.nan)
    for p in range(n):
        cache[table[p // KERNEL], :, p % KERNEL] = torch.cat([k[p], v[p]], -1)
    return cache, k, v


@pytest.mark.parametrize("name", ["knorm", "snapkv", "h2o"])
@pytest.mark.parametrize("n", [100, 129, 200])
def test_survivors_stand_behind_the_blocks_that_go(name: str, n: int) -> None:
    """Exactly the tokens of the policy's plan, head by head; slots before them are not read again."""
    options = {"window": 8} if name == "snapkv" else {}
    settings = Settings.parse({"policy": name, "budget": 40, "mode": "prompt", **options})
    table = torch.randperm(60, generator=torch.Generator().manual_seed(1))[: -(-n // KERNEL)]
    cache, k, v = cache_of(n, table.tolist())
    q = torch.randn(n, 2 * H, D)
    place = Place(0, 1, D**-0.5)
    compactor = Compactor(PlainCodec(), place)
    going = settings.gone(n, n, POOL) * POOL
    job = Job(0, "r", settings, n, 0, n, 0, going, 0)
    compactor(job, None, q, k, v, cache, table, torch.empty_like(q))
    policy = settings.make()
    keys, values = (x.transpose(0, 1).unsqueeze(0) for x in (k, v))
    queries = q.transpose(0, 1).unsqueeze(0)
    view = KVView(keys, values, torch.arange(n).expand(1, H, n), n, queries=queries)
    if name == "h2o":
        side, _ = policy.observe(replace(view, side={"mass": torch.zeros(1, H, n)}))
        view = replace(view, side=side)
    elif name == "snapkv":
        view = replace(view, queries=queries[:, :, -8:])
    keep = policy.plan(view, n - going).indices[0]
    left = table[going // KERNEL :].long()
    got_k, got_v = PlainCodec().read(None, cache, left, n - going)
    for head in range(H):
        assert torch.equal(got_k[head], k[keep[head], head])
        assert torch.equal(got_v[head], v[keep[head], head])
    assert not compactor.tracks


def test_tables_count_kernel_blocks() -> None:
    """The pool frees blocks of 32 where the kernel reads blocks of 16; buffers keep their addresses."""
    settings = Settings.parse({"policy": "knorm", "budget": 40, "mode": "prompt"})
    spec = RemnantSpec(
        block_size=KERNEL, num_kv_heads=H, head_size=D, dtype=torch.float32, remnant=settings, in_flight=64
    )
    here = rows()
    here.block_sizes = {"layer": POOL}
    here.ids, here.prompt_lens, here.settings = ["a", "b"], [200, 30], [settings, settings]
    shift = Shift(spec, "layer")
    table = torch.arange(2 * 16, dtype=torch.int32).view(2, 16)
    common = SimpleNamespace(
        num_reqs=2, block_table_tensor=table, seq_lens=torch.tensor([201, 31], dtype=torch.int32),
        query_start_loc_cpu=torch.tensor([0, 1, 2]), seq_lens_cpu_upper_bound=None,
    )  # fmt: skip
    common.replace = lambda **kw: SimpleNamespace(**{**vars(common), **kw})
    seen = []
    try:
        for _ in range(2):
            moved, jobs = shift(common)
            assert not jobs
            gone = (200 - 40) // POOL * POOL
            assert moved.seq_lens.tolist() == [201 - gone, 31]
            assert moved.block_table_tensor[0, : 16 - gone // KERNEL].tolist() == list(range(gone // KERNEL, 16))
            assert moved.block_table_tensor[1].tolist() == table[1].tolist()
            seen.append((moved.block_table_tensor.data_ptr(), moved.seq_lens.data_ptr()))
        assert seen[0] == seen[1]
        assert table[0].tolist() == list(range(16)), "the runner's own table is untouched"
    finally:
        here.clear()
        here.block_sizes = {}


def test_cuda_builders_keep_out_of_full_graphs() -> None:
    """Not yet run on a GPU; what can be asked here is asked here."""
    from remnant_vllm._compat.cuda import AttentionCGSupport
    from remnant_vllm.cuda import RemnantFlashBackend, RemnantTritonBackend

    settings = Settings.parse({"policy": "knorm", "budget": 40})
    spec = RemnantSpec(block_size=16, num_kv_heads=H, head_size=D, dtype=torch.float16, remnant=settings, in_flight=64)
    for backend in (RemnantFlashBackend, RemnantTritonBackend):
        assert backend.get_name() == "CUSTOM"
        builder = backend.get_builder_cls()
        assert builder.get_cudagraph_support(None, spec) == AttentionCGSupport.NEVER
        assert not builder.supports_update_block_table
        assert isinstance(backend.get_impl_cls().remnant_codec, PlainCodec)
