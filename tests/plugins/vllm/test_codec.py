"""Single tokens in paged caches: what is read is what the stock operation wrote, and the other way round."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vllm is not installed")

import torch
from vllm import _custom_ops as ops

from remnant_vllm.codec import PackedCodec, PlainCodec, _Order

pytestmark = pytest.mark.vllm
HEADS, BLOCKS = 3, 5


@pytest.mark.parametrize("isa", ["vec", "vec16"])
@pytest.mark.parametrize(("size", "dim"), [(32, 32), (64, 64), (128, 96), (32, 80), (96, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed(isa: str, size: int, dim: int, dtype: torch.dtype) -> None:
    if isa == "vec" and dim % 32:
        pytest.skip("vec takes multiples of 32 channels")
    layer, codec = SimpleNamespace(isa=isa), PackedCodec()
    torch.manual_seed(0)
    k, v = torch.randn(2, BLOCKS * size, HEADS, dim).to(dtype)
    cache = torch.zeros(BLOCKS, HEADS, size, 2 * dim, dtype=dtype)
    keys, values = cache.view(BLOCKS, HEADS, 2 * size, -1).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(k.contiguous(), v.contiguous(), keys, values, torch.arange(BLOCKS * size), isa)
    order = torch.tensor([3, 0, 4])
    count = 2 * size + 7
    tokens = torch.cat([torch.arange(b * size, (b + 1) * size) for b in order.tolist()])[:count]
    got_k, got_v = codec.read(layer, cache, order, count)
    assert torch.equal(got_k, k[tokens].transpose(0, 1))
    assert torch.equal(got_v, v[tokens].transpose(0, 1))
    slots = torch.randperm(BLOCKS * size)[:40]
    new_k, new_v = torch.randn(2, HEADS, 40, dim).to(dtype)
    codec.write(layer, cache, slots, new_k, new_v)
    k[slots], v[slots] = new_k.transpose(0, 1), new_v.transpose(0, 1)
    all_k, all_v = codec.read(layer, cache, torch.arange(BLOCKS), BLOCKS * size)
    assert torch.equal(all_k, k.transpose(0, 1))
    assert torch.equal(all_v, v.transpose(0, 1))


def test_any_order_is_understood() -> None:
    """An instruction set that packs in a way of its own is read by its permutation."""
    torch.manual_seed(1)
    place = torch.randperm(32 * 4)
    order = _Order.of(place, 32, 4)
    assert not order.tile
    assert not order.plain
    plane = torch.randn(2, HEADS, 32 * 4)
    assert torch.equal(order.tokens(plane, 32), plane[:, :, place].view(2, HEADS, 32, 4))


def test_plain() -> None:
    """FlashAttention and Triton: key and value of a token side by side, in any physical order of heads and slots."""
    torch.manual_seed(2)
    size, dim = 16, 8
    cache = torch.randn(BLOCKS, size, HEADS, 2 * dim).transpose(1, 2)
    codec, order = PlainCodec(), torch.tensor([4, 1])
    k, v = codec.read(None, cache, order, 20)
    both = torch.cat([cache[4], cache[1]], 1)[:, :20]
    assert torch.equal(torch.cat([k, v], -1), both)
    slots = torch.tensor([3, 17, 70])
    new_k, new_v = torch.randn(2, HEADS, 3, dim)
    codec.write(None, cache, slots, new_k, new_v)
    for i, slot in enumerate(slots.tolist()):
        assert torch.equal(cache[slot // size, :, slot % size], torch.cat([new_k[:, i], new_v[:, i]], -1))
