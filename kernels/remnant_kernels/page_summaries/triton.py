"""One program per page: its keys are read once, and three rows are written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from remnant_kernels._jit import next_power
from remnant_kernels.page_summaries.naive import Summaries

__all__ = ["page_summaries"]


@triton.jit(do_not_specialize=["S"])
def _summary_kernel(
    p_k, p_lens, p_mean, p_low, p_high, S, skb, skh, sks,
    H: tl.constexpr, P: tl.constexpr, BP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, LENS: tl.constexpr,
):  # fmt: skip
    """Mean, minimum and maximum over the slots of one page that are in use."""
    row, n = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    b, h = row // H, row % H
    used = tl.load(p_lens + row) if LENS else S
    p, d = tl.arange(0, BP), tl.arange(0, BD)
    at = n * P + p
    m_p = (p < P) & (at < used)
    m_k = m_p[:, None] & (d[None, :] < D)
    x = tl.load(p_k + b * skb + h * skh + at[:, None] * sks + d[None, :], mask=m_k, other=0.0).to(tl.float32)
    number = tl.sum(m_p.to(tl.int32), 0)
    mean = tl.sum(x, 0) / tl.maximum(number, 1)
    low = tl.min(tl.where(m_k, x, float("inf")), 0)
    high = tl.max(tl.where(m_k, x, float("-inf")), 0)
    place = (row * tl.num_programs(1) + n) * D + d
    m_d = d < D
    some = number > 0
    kind = p_mean.dtype.element_ty
    tl.store(p_mean + place, mean.to(kind), mask=m_d)
    tl.store(p_low + place, tl.where(some, low, 0.0).to(kind), mask=m_d)
    tl.store(p_high + place, tl.where(some, high, 0.0).to(kind), mask=m_d)


def page_summaries(k: Tensor, page: int, lens: Tensor | None = None) -> Summaries:
    """See `naive_page_summaries`."""
    b, h, s, d = k.shape
    k = k if k.stride(-1) == 1 else k.contiguous()
    count = triton.cdiv(s, page)
    out = Summaries(*(torch.empty(b, h, count, d, dtype=k.dtype, device=k.device) for _ in range(3)))
    if count:
        _summary_kernel[b * h, count](
            k, None if lens is None else lens.contiguous(), *out, s, *k.stride()[:3],
            h, page, next_power(page, 1), d, next_power(d, 1), lens is not None, num_warps=2,
        )  # fmt: skip
    return out
