"""Copies whole blocks between the engine's KV cache and memory; knows nothing of what is in them.

Whole blocks keep this independent of how an attention kernel arranges keys and values: the CPU packs keys in tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BlockCopier", "Placed"]

CHUNK = 64
"""Blocks copied at once: bounds the memory that a copy needs on top."""


@dataclass(frozen=True)
class Placed:
    """One layer's cache.

    Attributes:
        name: of the layer.
        group: which block table it follows.
        cache: `[blocks, ...]`, or more kernel blocks than blocks; the bytes of one block in the given order.
    """

    name: str
    group: int
    cache: Tensor


class BlockCopier:
    """All layers of a worker.

    Args:
        layers: in any order; payloads hold them sorted by name, so that two engines agree even if they group layers
            in another way.
        blocks: blocks in the pool.

    Attributes:
        layout: what a payload depends on, as plain data.
        block_bytes: bytes of one block over all layers.
    """

    def __init__(self, layers: Sequence[Placed], blocks: int) -> None:
        """See the class."""
        self._layers = [(_by_byte(layer.cache, blocks), layer.group) for layer in sorted(layers, key=lambda x: x.name)]
        self.layout = [
            (layer.name, str(layer.cache.dtype), list(cache.shape[1:]))
            for layer, (cache, _) in zip(sorted(layers, key=lambda x: x.name), self._layers, strict=True)
        ]
        self.block_bytes = sum(cache[0].numel() for cache, _ in self._layers)

    def read(self, ids: Sequence[Sequence[int]]) -> Iterator[memoryview]:
        """Copies of blocks, in order; every one has memory of its own.

        Args:
            ids: per group, the block ids.
        """
        for chunk in _chunks(ids):
            count = len(chunk[0])
            payloads = [torch.empty(self.block_bytes, dtype=torch.uint8) for _ in range(count)]
            at = 0
            for cache, group in self._layers:
                picked = cache.index_select(0, _index(chunk[group], cache)).reshape(count, -1).cpu()
                for payload, row in zip(payloads, picked, strict=True):
                    payload[at : at + row.numel()] = row
                at += picked.shape[1]
            yield from (payload.numpy().data for payload in payloads)

    def write(self, ids: Sequence[Sequence[int]], payloads: Sequence[memoryview]) -> None:
        """Put payloads into blocks.

        Args:
            ids: per group, the block ids.
            payloads: one per block, as `read` gave them.
        """
        done = 0
        for chunk in _chunks(ids):
            count = len(chunk[0])
            rows = [torch.frombuffer(payload, dtype=torch.uint8) for payload in payloads[done : done + count]]
            at, done = 0, done + count
            for cache, group in self._layers:
                size = cache[0].numel()
                stacked = torch.stack([row[at : at + size] for row in rows]).to(cache.device)
                cache.index_copy_(0, _index(chunk[group], cache), stacked.reshape(count, *cache.shape[1:]))
                at += size


def _by_byte(cache: Tensor, blocks: int) -> Tensor:
    """`[blocks, ..., bytes]` uint8 on the same memory: copies need not know the dtype, fp8 included."""
    raw = cache if cache.dtype == torch.uint8 else cache.view(torch.uint8)
    return raw if raw.shape[0] == blocks else raw.unflatten(0, (blocks, -1))


def _chunks(ids: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    for start in range(0, len(ids[0]), CHUNK):
        yield [group[start : start + CHUNK] for group in ids]


def _index(ids: Sequence[int], cache: Tensor) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64, device=cache.device)
