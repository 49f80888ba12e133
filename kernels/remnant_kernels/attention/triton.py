"""Tiles of queries against tiles of keys with a running softmax; masks are computed only where they cut a tile.

Source: the recurrence of Dao et al. 2022, arXiv 2205.14135, rows outside and columns inside as in arXiv 2307.08691.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from remnant_kernels._jit import dot, next_power, upcast
from remnant_kernels.attention.naive import Attended

__all__ = ["attention"]


@triton.jit
def _step(
    acc, top, total, b_q, p_k, p_v, start, rows, offset, nk, window, scale, softcap, sks, svs,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BN: tl.constexpr, MASK: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of keys for one tile of queries: the recurrence of the softmax."""
    at, d, dv = (start + tl.arange(0, BN)).to(tl.int64), tl.arange(0, BD), tl.arange(0, BDV)
    b_k = tl.load(p_k + at[:, None] * sks + d[None, :], mask=(at < nk)[:, None] & (d[None, :] < D), other=0.0)
    x = dot(b_q, tl.trans(b_k), UPCAST) * scale
    if CAP:
        x = softcap * (1.0 - 2.0 / (tl.exp2(x * (2.0 * 1.4426950408889634 / softcap)) + 1.0))
    x = x * 1.4426950408889634
    if MASK:
        seen = (at < nk)[None, :] & (rows[:, None] >= 0)
        if CAUSAL:
            seen = seen & (at[None, :] <= rows[:, None] + offset)
        if WINDOW:
            seen = seen & (at[None, :] > rows[:, None] + offset - window)
        x = tl.where(seen, x, float("-inf"))
    new = tl.maximum(top, tl.max(x, 1))
    safe = tl.where(new == float("-inf"), 0.0, new)
    e, keep = tl.exp2(x - safe[:, None]), tl.exp2(top - safe)
    b_v = tl.load(p_v + at[:, None] * svs + dv[None, :], mask=(at < nk)[:, None] & (dv[None, :] < DV), other=0.0)
    return acc * keep[:, None] + dot(e.to(b_v.dtype), b_v, UPCAST), new, total * keep + tl.sum(e, 1)


@triton.jit(do_not_specialize=["SQ", "SK", "NB"])
def _attention_kernel(
    p_q, p_k, p_v, p_lens_q, p_lens_k, p_sinks, p_rows, p_columns, p_out, p_lse, SQ, SK, NB, window, scale, softcap,
    sqb, sqh, sqs, skb, skh, sks, svb, svh, svs,
    HQ: tl.constexpr, G: tl.constexpr, PHASES: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr,
    BDV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr, LENS_Q: tl.constexpr, LENS_K: tl.constexpr, SINKS: tl.constexpr, SPARSE: tl.constexpr,
    BLOCK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head. Late tiles, which read most, are started first."""
    tile, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, hq = head // HQ, head % HQ
    nq = tl.load(p_lens_q + b).to(tl.int32) if LENS_Q else SQ
    nk = tl.load(p_lens_k + b).to(tl.int32) if LENS_K else SK
    offset = nk - nq
    rows, d, dv = tile * BM + tl.arange(0, BM), tl.arange(0, BD), tl.arange(0, BDV)
    p_q += b * sqb + hq * sqh
    p_k += b * skb + (hq // G) * skh
    p_v += b * svb + (hq // G) * svh
    b_q = tl.load(
        p_q + rows[:, None].to(tl.int64) * sqs + d[None, :], mask=(rows < nq)[:, None] & (d[None, :] < D), other=0.0
    )
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BDV), tl.float32)
    if SINKS:
        top = tl.zeros((BM,), tl.float32) + tl.load(p_sinks + hq).to(tl.float32) * 1.4426950408889634
        total = tl.full((BM,), 1.0, tl.float32)
    end = tl.minimum(nk, (tile + 1) * BM + offset) if CAUSAL else nk
    if SPARSE:
        row = p_rows + (hq % PHASES) * (NB + 1) + tile * BM // BLOCK
        for i in range(tl.load(row), tl.load(row + 1)):
            first = tl.load(p_columns + i) * BLOCK
            for part in range(0, BLOCK, BN):
                if first + part < end:
                    acc, top, total = _step(
                        acc, top, total, b_q, p_k, p_v, first + part, rows, offset, tl.minimum(nk, first + BLOCK),
                        window, scale, softcap, sks, svs, D, DV, BD, BDV, BN, True, CAUSAL, WINDOW, CAP, UPCAST,
                    )  # fmt: skip
    else:
        begin = 0
        if WINDOW:
            begin = tl.maximum(0, (tile * BM + offset - window + 1) // BN * BN)
        # Tiles that every query of this tile sees whole need no mask.
        whole = tl.minimum(nk, tile * BM + offset + 1) // BN * BN if CAUSAL else nk // BN * BN
        if WINDOW:
            whole = begin
        whole = tl.maximum(whole, begin)
        for start in range(begin, whole, BN):
            acc, top, total = _step(
                acc, top, total, b_q, p_k, p_v, start, rows, offset, nk, window, scale, softcap, sks, svs,
                D, DV, BD, BDV, BN, False, CAUSAL, WINDOW, CAP, UPCAST,
            )  # fmt: skip
        for start in range(whole, end, BN):
            acc, top, total = _step(
                acc, top, total, b_q, p_k, p_v, start, rows, offset, nk, window, scale, softcap, sks, svs,
                D, DV, BD, BDV, BN, True, CAUSAL, WINDOW, CAP, UPCAST,
            )  # fmt: skip
    some = total > 0.0
    if not SINKS:
        some = some & (top > float("-inf"))
    use = (rows < nq) & some
    acc = tl.where(use[:, None], acc / tl.where(some, total, 1.0)[:, None], 0.0)
    lse = (top + tl.log2(tl.where(some, total, 1.0))) * 0.6931471805599453
    place = head * SQ + rows
    m_d = (rows < SQ)[:, None] & (dv[None, :] < DV)
    tl.store(p_out + place[:, None] * DV + dv[None, :], acc.to(p_out.dtype.element_ty), mask=m_d)
    tl.store(p_lse + place, tl.where(use, lse, float("-inf")), mask=rows < SQ)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    lens_q: Tensor | None = None,
    lens_k: Tensor | None = None,
    window: int | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    block: int = 64,
) -> Attended:
    """See `naive_attention`; a sparse tile of queries lies within one block, so `block` is a power of two from 16."""
    b, hq, sq, d = q.shape
    h, sk, dv = k.shape[1], k.shape[2], v.shape[3]
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    bd, bdv = next_power(d), next_power(dv)
    bm = min(block, 64) if rows is not None else 128 if max(bd, bdv) <= 128 and sq >= 128 else 64
    bn = min(block, 64) if rows is not None else 64 if max(bd, bdv) <= 128 else 32
    out = torch.empty(b, hq, sq, dv, dtype=q.dtype, device=q.device)
    lse = torch.empty(b, hq, sq, dtype=torch.float32, device=q.device)
    phases, blocks = (1, 0) if rows is None else (rows.shape[0], rows.shape[1] - 1)
    if sq:
        _attention_kernel[triton.cdiv(sq, bm), b * hq](
            q, k, v, lens_q, lens_k, sinks, None if rows is None else rows.contiguous(), columns, out, lse, sq, sk,
            blocks, window or 0, d**-0.5 if scale is None else scale, softcap or 1.0,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            hq, hq // h, phases, d, dv, bd, bdv, bm, bn, causal, causal and window is not None, softcap is not None,
            lens_q is not None, lens_k is not None, sinks is not None, rows is not None, block, upcast(q.dtype),
            num_warps=8 if bm == 128 else 4, num_stages=2,
        )  # fmt: skip
    return Attended(out, lse)
