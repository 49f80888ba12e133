"""A tile of evicted keys against all kept ones, normalised as they are loaded, with a running arg-max."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from remnant_kernels._jit import next_power
from remnant_kernels.nearest.naive import Nearest

__all__ = ["nearest"]

_ROWS, _COLUMNS = 64, 64


@triton.jit
def _units(p_k, slot, d, sks, D: tl.constexpr):
    """Keys of some slots, scaled to length 1, float32; zeros where there is no slot."""
    m = (slot >= 0)[:, None] & (d[None, :] < D)
    x = tl.load(p_k + slot[:, None] * sks + d[None, :], mask=m, other=0.0).to(tl.float32)
    return x / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)[:, None]


@triton.jit(do_not_specialize=["E", "C"])
def _nearest_kernel(
    p_k, p_src, p_kept, p_best, p_place, E, C, skb, skh, sks,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Equal similarities go to the later place, so the running maximum gives way to its equal."""
    row = tl.program_id(0).to(tl.int64)
    b, h = row // H, row % H
    p_k += b * skb + h * skh
    e, d = tl.program_id(1).to(tl.int64) * BE + tl.arange(0, BE), tl.arange(0, BD)
    src = tl.load(p_src + row * E + e, mask=e < E, other=-1)
    x = _units(p_k, src, d, sks, D)
    best = tl.full((BE,), float("-inf"), tl.float32)
    place = tl.zeros((BE,), tl.int64)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        slot = tl.load(p_kept + row * C + c, mask=c < C, other=-1)
        y = _units(p_k, slot, d, sks, D)
        if EXACT:
            likeness = tl.dot(x, tl.trans(y), input_precision="ieee")
        else:
            likeness = tl.dot(x.to(tl.float16), tl.trans(y).to(tl.float16))
        likeness = tl.where((slot >= 0)[None, :], likeness, float("-inf"))
        top = tl.max(likeness, 1)
        at = tl.max(tl.where(likeness == top[:, None], c[None, :], -1), 1).to(tl.int64)
        better = (top >= best) & (top > float("-inf"))
        best, place = tl.where(better, top, best), tl.where(better, at, place)
    gone = src < 0
    tl.store(p_best + row * E + e, tl.where(gone, float("-inf"), best), mask=e < E)
    tl.store(p_place + row * E + e, tl.where(gone, 0, place), mask=e < E)


def nearest(k: Tensor, src: Tensor, kept: Tensor) -> Nearest:
    """See `naive_nearest`. Half precision keys are compared in half precision, with sums in float32."""
    b, h, e = src.shape
    k = k if k.stride(-1) == 1 else k.contiguous()
    best = torch.empty(b, h, e, dtype=torch.float32, device=k.device)
    place = torch.empty(b, h, e, dtype=torch.int64, device=k.device)
    if e:
        _nearest_kernel[b * h, triton.cdiv(e, _ROWS)](
            k, src.contiguous(), kept.contiguous(), best, place, e, kept.shape[2], *k.stride()[:3],
            h, k.shape[3], next_power(k.shape[3]), _ROWS, _COLUMNS, k.dtype == torch.float32, num_warps=4,
        )  # fmt: skip
    return Nearest(best, place)
