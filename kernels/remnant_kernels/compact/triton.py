"""Rows are copied whole, 256 bytes or so at a time.

Into new tensors every tile of slots is a program of its own. In place, a program takes one head, and one slab of
columns, through all tiles in ascending order: a kept slot never moves to the right, so what a tile writes no later
tile reads. Slots that stay where they are are not touched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from remnant_kernels._jit import next_power

__all__ = ["compact"]

_TILE = 64


@triton.jit(do_not_specialize=["K", "total"])
def _copy_kernel(
    p_in, p_out, p_keep, K, total, sib, sih, sis, sob, soh, sos,
    H: tl.constexpr, W: tl.constexpr, BW: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of destination slots of one head; places without a slot become zeros."""
    row = tl.program_id(0).to(tl.int64)
    b, h = row // H, row % H
    at = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    w = tl.arange(0, BW)
    slot = tl.load(p_keep + row * K + at, mask=at < K, other=-1)
    m_w = w[None, :] < W
    p_from = p_in + b * sib + h * sih + slot[:, None] * sis + w[None, :]
    x = tl.load(p_from, mask=(slot >= 0)[:, None] & m_w, other=0)
    tl.store(p_out + b * sob + h * soh + at[:, None] * sos + w[None, :], x, mask=(at < total)[:, None] & m_w)


@triton.jit(do_not_specialize=["K"])
def _shift_kernel(
    p_x, p_keep, K, sxb, sxh, sxs,
    H: tl.constexpr, W: tl.constexpr, BW: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One slab of columns of one head, all tiles in order."""
    row = tl.program_id(0).to(tl.int64)
    b, h = row // H, row % H
    w = tl.program_id(1) * BW + tl.arange(0, BW)
    p_x += b * sxb + h * sxh
    m_w = w[None, :] < W
    for start in range(0, K, TILE):
        at = (start + tl.arange(0, TILE)).to(tl.int64)
        slot = tl.load(p_keep + row * K + at, mask=at < K, other=-1)
        moves = (at < K) & (slot != at)
        x = tl.load(p_x + slot[:, None] * sxs + w[None, :], mask=(moves & (slot >= 0))[:, None] & m_w, other=0)
        tl.debug_barrier()  # every load of this tile comes before its first store
        tl.store(p_x + at[:, None] * sxs + w[None, :], x, mask=moves[:, None] & m_w)
        tl.debug_barrier()


def compact(*, k: Tensor, v: Tensor, keep: Tensor, sides: Sequence[Tensor] = (), spare: int = 0,
            in_place: bool = False) -> tuple[Tensor, ...]:  # fmt: skip
    """See `naive_compact`."""
    keep = keep.contiguous()
    return tuple(_shifted(x, keep) if in_place else _copied(x, keep, spare) for x in (k, v, *sides))


def _copied(x: Tensor, keep: Tensor, spare: int) -> Tensor:
    b, h, kept = keep.shape
    rows = _rows(x)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    out = torch.empty(b, h, kept + spare, rows.shape[3], dtype=rows.dtype, device=x.device)
    tiles = triton.cdiv(kept + spare, _TILE)
    if tiles:
        _copy_kernel[b * h, tiles](
            rows, out, keep, kept, kept + spare, *rows.stride()[:3], *out.stride()[:3],
            h, rows.shape[3], next_power(rows.shape[3], 1), _TILE, num_warps=4,
        )  # fmt: skip
    return out.view(x.dtype).view(b, h, kept + spare, *x.shape[3:])


def _shifted(x: Tensor, keep: Tensor) -> Tensor:
    b, h, kept = keep.shape
    rows = _rows(x)
    width = rows.shape[3]
    slab = min(next_power(width, 1), 32)
    if kept:
        _shift_kernel[b * h, triton.cdiv(width, slab)](
            rows, keep, kept, *rows.stride()[:3], h, width, slab, _TILE, num_warps=4
        )
    return x[:, :, :kept]


def _rows(x: Tensor) -> Tensor:
    """`[B, H, S, W]` whose elements are plain numbers: a copy moves bits and asks not what they mean."""
    flat = x if x.dim() == 4 else x[..., None]
    return flat.view(torch.int8) if flat.dtype == torch.bool else flat
