"""Reading and writing single tokens in a paged cache, whose layout belongs to the attention kernel."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from remnant_kernels import get_op
from remnant_vllm._compat.engine import ops

__all__ = ["Codec", "PackedCodec", "PlainCodec"]


class Codec(Protocol):
    """How one kernel lays out `[blocks, H, block_size, 2 * D]`."""

    def read(self, layer: Any, cache: Tensor, blocks: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[H, count, D]` of the first `count` slots of some blocks `[n]`."""
        ...

    def write(self, layer: Any, cache: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Store `[H, n, D]` keys and values at `[n]` slots of the whole cache."""
        ...

    def pack(
        self, layer: Any, cache: Tensor, table: Tensor, keep: Tensor, start: int, whole: tuple[Tensor, Tensor]
    ) -> None:
        """Move the slots `keep` `[H, K]`, ascending, of one request to its slots `start` and on.

        Args:
            layer: the attention module.
            cache: see the class.
            table: `[n]` the request's blocks, in order.
            keep: none of them moves down: the i-th is at most `start + i`.
            start: the first slot that is written.
            whole: the request's keys and values `[1, H, S, D]`, if a codec would rather copy from them.
        """
        ...


class PackedCodec:
    """The CPU backend: key planes are packed for the instruction set, so their order is asked for, not assumed.

    Codes are written through the stock operation once and read back; that gives the place of every element.
    """

    def read(self, layer: Any, cache: Tensor, blocks: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """See `Codec.read`."""
        _, heads, size, width = cache.shape
        orders = _orders(cache.dtype, size, width // 2, layer.isa)
        planes = cache.view(cache.shape[0], heads, 2, -1)[blocks]
        k, v = (
            order.tokens(planes[:, :, i], size).transpose(0, 1).reshape(heads, len(blocks) * size, -1)[:, :count]
            for i, order in enumerate(orders)
        )
        return k, v

    def write(self, layer: Any, cache: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """See `Codec.write`."""
        _reshape_and_cache(cache, slots, k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous(), layer.isa)

    def pack(
        self, layer: Any, cache: Tensor, table: Tensor, keep: Tensor, start: int, whole: tuple[Tensor, Tensor]
    ) -> None:
        """See `Codec.pack`."""
        size, at = cache.shape[2], torch.arange(start, start + keep.shape[1], device=keep.device)
        k, v = (x[0].gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1])) for x in whole)
        self.write(layer, cache, table[at // size].long() * size + at % size, k, v)


def _reshape_and_cache(cache: Tensor, slots: Tensor, k: Tensor, v: Tensor, isa: str) -> None:
    blocks, heads, size, _ = cache.shape
    keys, values = cache.view(blocks, heads, 2 * size, -1).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(k, v, keys, values, slots, isa)


@dataclass(frozen=True)
class _Order:
    """How one plane of a block is laid out.

    Attributes:
        place: flat offsets in the order (token, channel).
        tile: tokens per tile, where tiles follow one another and each is stored channel by channel; 0 for other orders.
        plain: tokens follow one another.
    """

    place: Tensor
    tile: int
    plain: bool

    @staticmethod
    def of(place: Tensor, size: int, dim: int) -> _Order:
        for tile in (32, 16, size):
            if size % tile == 0:
                whole = torch.arange(size * dim).view(size // tile, dim, tile).transpose(1, 2)
                if torch.equal(place, whole.reshape(-1)):
                    return _Order(place, tile, False)
        return _Order(place, 0, torch.equal(place, torch.arange(size * dim)))

    def tokens(self, plane: Tensor, size: int) -> Tensor:
        """Planes `[n, H, size * D]` -> `[n, H, size, D]`; a view where the order allows one."""
        if self.plain:
            return plane.unflatten(2, (size, -1))
        if self.tile:
            return plane.unflatten(2, (size // self.tile, -1, self.tile)).transpose(3, 4).flatten(2, 3)
        return plane.index_select(2, self.place).unflatten(2, (size, -1))


@functools.lru_cache
def _orders(dtype: torch.dtype, size: int, dim: int, isa: str) -> tuple[_Order, _Order]:
    """The order of a block's key and value plane."""

    def seen(code: Tensor) -> tuple[Tensor, Tensor]:
        cache = torch.zeros(1, 1, size, 2 * dim, dtype=dtype)
        rows = code.view(size, 1, dim).to(dtype)
        _reshape_and_cache(cache, torch.arange(size), rows.contiguous(), rows.clone(), isa)
        k, v = cache.view(2, -1).long()
        return k, v

    # Two passes, because half precision does not count far enough to number all elements at once.
    tokens = seen(torch.arange(size).view(size, 1).expand(size, dim).reshape(-1))
    channels = seen(torch.arange(dim).view(1, dim).expand(size, dim).reshape(-1))
    out = []
    for token, channel in zip(tokens, channels, strict=True):
        place = torch.empty(size * dim, dtype=torch.int64)
        place[token * dim + channel] = torch.arange(size * dim)
        out.append(_Order.of(place, size, dim))
    return out[0], out[1]


class PlainCodec:
    """FlashAttention and Triton backends: each token's key and value stand side by side in the last dimension."""

    def read(self, layer: Any, cache: Tensor, blocks: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """See `Codec.read`."""
        both = cache[blocks].transpose(0, 1).flatten(1, 2)[:, :count]
        k, v = both.chunk(2, dim=-1)
        return k, v

    def write(self, layer: Any, cache: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """See `Codec.write`."""
        size = cache.shape[2]
        cache[slots // size, :, slots % size] = torch.cat([k, v], -1).transpose(0, 1)

    def pack(
        self, layer: Any, cache: Tensor, table: Tensor, keep: Tensor, start: int, whole: tuple[Tensor, Tensor]
    ) -> None:
        """See `Codec.pack`; keys and values move together, inside the cache."""
        begin = torch.full((1,), start, device=keep.device)
        get_op("compact_paged")(pages=cache, table=table.long()[None], keep=keep[None], start=begin, towards_end=True)
