"""Evicted values sorted by target: a program sums the run that belongs to one kept value, always in the same order.

No atomics: the same input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from remnant_kernels._jit import next_power

__all__ = ["fold"]

_RUN = 16


@triton.jit(do_not_specialize=["C", "E"])
def _fold_kernel(
    p_v, p_kept, p_own, p_src, p_weight, p_order, p_begin, p_out, C, E, svb, svh, svs,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """One kept value: itself, and its run of evicted ones."""
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    b, h = row // H, row % H
    p_v += b * svb + h * svh
    d = tl.arange(0, BD)
    slot = tl.load(p_kept + row * C + c)
    m_own = (d < D) & (slot + tl.zeros((BD,), tl.int64) >= 0)
    acc = tl.load(p_v + slot * svs + d, mask=m_own, other=0.0).to(tl.float32) * tl.load(p_own + row * C + c)
    begin, end = tl.load(p_begin + row * (C + 1) + c), tl.load(p_begin + row * (C + 1) + c + 1)
    for start in range(begin, end, RUN):
        i = start + tl.arange(0, RUN)
        here = i < end
        e = tl.load(p_order + row * E + i, mask=here, other=0)
        src = tl.load(p_src + row * E + e, mask=here, other=-1)
        share = tl.load(p_weight + row * E + e, mask=here, other=0.0)
        m = (src >= 0)[:, None] & (d[None, :] < D)
        x = tl.load(p_v + src[:, None] * svs + d[None, :], mask=m, other=0.0).to(tl.float32)
        acc += tl.sum(x * share[:, None], 0)
    tl.store(p_out + (row * C + c) * D + d, acc.to(p_out.dtype.element_ty), mask=d < D)


def fold(v: Tensor, kept: Tensor, own: Tensor, src: Tensor, dst: Tensor, weight: Tensor) -> Tensor:
    """See `naive_fold`."""
    b, h, count = kept.shape
    v = v if v.stride(-1) == 1 else v.contiguous()
    out = torch.empty(b, h, count, v.shape[3], dtype=v.dtype, device=v.device)
    target = dst.masked_fill(src < 0, count)  # those of nobody come last, behind every run
    ordered, order = target.sort(dim=-1, stable=True)
    bounds = torch.arange(count + 1, device=v.device).expand(b, h, count + 1).contiguous()
    begin = torch.searchsorted(ordered.contiguous(), bounds)
    if count:
        _fold_kernel[b * h, count](
            v, kept.contiguous(), own.contiguous(), src.contiguous(), weight.contiguous(), order.contiguous(), begin,
            out, count, src.shape[2], *v.stride()[:3], h, v.shape[3], next_power(v.shape[3], 1), _RUN, num_warps=2,
        )  # fmt: skip
    return out
