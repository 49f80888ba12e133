"""One program per head and slab of columns; tiles go in the order in which nothing is overwritten before it is read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from remnant_kernels._jit import next_power

__all__ = ["compact_paged"]

_TILE = 64


@triton.jit(do_not_specialize=["K", "T"])
def _pack_kernel(
    p_pages, p_table, p_keep, p_start, K, T, spn, sph, sps,
    H: tl.constexpr, P: tl.constexpr, W: tl.constexpr, BW: tl.constexpr, TILE: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Loads of a tile come before its stores; with `UP` the last tile goes first."""
    row = tl.program_id(0).to(tl.int64)
    b, h = row // H, row % H
    c = tl.program_id(1) * BW + tl.arange(0, BW)
    m_c = c[None, :] < W
    first = tl.load(p_start + b)
    p_pages += h * sph
    tiles = tl.cdiv(K, TILE)
    for step in range(0, tiles):
        tile = tiles - 1 - step if UP else step
        at = (tile * TILE + tl.arange(0, TILE)).to(tl.int64)
        slot = tl.load(p_keep + row * K + at, mask=at < K, other=-1)
        to = first + at
        moves = (slot >= 0) & (slot != to)
        source = tl.load(p_table + b * T + slot // P, mask=moves, other=0)
        target = tl.load(p_table + b * T + to // P, mask=moves, other=0)
        m_x = moves[:, None] & m_c
        x = tl.load(p_pages + source[:, None] * spn + (slot % P)[:, None] * sps + c[None, :], mask=m_x, other=0)
        tl.debug_barrier()
        tl.store(p_pages + target[:, None] * spn + (to % P)[:, None] * sps + c[None, :], x, mask=m_x)
        tl.debug_barrier()


def compact_paged(*, pages: Tensor, table: Tensor, keep: Tensor, start: Tensor, towards_end: bool) -> Tensor:
    """See `naive_compact_paged`."""
    b, h, kept = keep.shape
    width = pages.shape[3]
    slab = min(next_power(width, 1), 64)
    table, start = table.to(torch.int64).contiguous(), start.to(torch.int64).contiguous()
    if kept:
        _pack_kernel[b * h, triton.cdiv(width, slab)](
            pages, table, keep.contiguous(), start, kept, table.shape[1], *pages.stride()[:3],
            h, pages.shape[2], width, slab, _TILE, towards_end, num_warps=4,
        )  # fmt: skip
    return pages
