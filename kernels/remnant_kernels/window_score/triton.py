"""Two sweeps over the keys, or one where the log-sum-exp is known; no row of probabilities is ever stored.

A program holds a tile of keys and takes the queries of one head after another, so keys are read once for a whole
group. The first sweep gives each query's log-sum-exp in shares that are merged afterwards.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from remnant_kernels._jit import dot, next_power, upcast
from remnant_kernels.window_score.naive import Over, Pooling, Reduce

__all__ = ["window_score"]

_REDUCE = {"mean": 0, "max": 1, "sum": 2}
_TILE = 64


@triton.jit
def _logits(b_q, b_k, rows, at, m_s, b_hidden, S, W, scale, softcap, CAP: tl.constexpr, UPCAST: tl.constexpr):
    """Masked logits `[rows, slots]`, natural."""
    x = dot(b_q, tl.trans(b_k), UPCAST) * scale
    if CAP:
        x = softcap * (1.0 - 2.0 / (tl.exp2(x * (2.0 * 1.4426950408889634 / softcap)) + 1.0))
    seen = (at[None, :] <= S - W + rows[:, None]) & m_s[None, :] & (rows[:, None] < W) & (b_hidden == 0)[None, :]
    return tl.where(seen, x, float("-inf"))


@triton.jit(do_not_specialize=["S", "chunk"])
def _lse_kernel(
    p_q, p_k, p_hidden, p_lse, S, chunk, scale, softcap, sqb, sqh, sqw, skb, skh, sks,
    H: tl.constexpr, G: tl.constexpr, W: tl.constexpr, D: tl.constexpr, BW: tl.constexpr, BD: tl.constexpr,
    BS: tl.constexpr, HIDDEN: tl.constexpr, CAP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One share of the slots for a block of queries of one query head: base-2 log-sum-exp."""
    head, block, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    b, hq = head // (H * G), head % (H * G)
    h = hq // G
    rows, d = block * BW + tl.arange(0, BW), tl.arange(0, BD)
    m_q = (rows[:, None] < W) & (d[None, :] < D)
    b_q = tl.load(p_q + b * sqb + hq * sqh + rows[:, None] * sqw + d[None, :], mask=m_q, other=0.0)
    top = tl.full((BW,), float("-inf"), tl.float32)
    total = tl.zeros((BW,), tl.float32)
    first = split.to(tl.int64) * chunk
    for start in range(first, tl.minimum(first + chunk, S), BS):
        at = start + tl.arange(0, BS)
        m_s = at < S
        m_k = m_s[:, None] & (d[None, :] < D)
        b_k = tl.load(p_k + b * skb + h * skh + at[:, None] * sks + d[None, :], mask=m_k, other=0.0)
        b_hidden = tl.zeros((BS,), tl.int8)
        if HIDDEN:
            b_hidden = tl.load(p_hidden + (b * H + h) * S + at, mask=m_s, other=0)
        x = _logits(b_q, b_k, rows, at, m_s, b_hidden, S, W, scale, softcap, CAP, UPCAST) * 1.4426950408889634
        new = tl.maximum(top, tl.max(x, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp2(top - safe) + tl.sum(tl.exp2(x - safe[:, None]), 1)
        top = new
    out = tl.where(total == 0.0, float("-inf"), top + tl.log2(tl.where(total == 0.0, 1.0, total)))
    tl.store(p_lse + (split * tl.num_programs(0) + head) * W + rows, out, mask=rows < W)


@triton.jit(do_not_specialize=["S"])
def _column_kernel(
    p_q, p_k, p_hidden, p_lse, p_out, S, scale, softcap, sqb, sqh, sqw, skb, skh, sks,
    H: tl.constexpr, G: tl.constexpr, W: tl.constexpr, D: tl.constexpr, BW: tl.constexpr, BD: tl.constexpr,
    BS: tl.constexpr, HIDDEN: tl.constexpr, CAP: tl.constexpr, MAXIMUM: tl.constexpr, REDUCE: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of slots of one KV head: the columns of every query of the group."""
    row = tl.program_id(0).to(tl.int64)
    b, h = row // H, row % H
    at, d = tl.program_id(1).to(tl.int64) * BS + tl.arange(0, BS), tl.arange(0, BD)
    m_s = at < S
    m_k = m_s[:, None] & (d[None, :] < D)
    b_k = tl.load(p_k + b * skb + h * skh + at[:, None] * sks + d[None, :], mask=m_k, other=0.0)
    b_hidden = tl.zeros((BS,), tl.int8)
    if HIDDEN:
        b_hidden = tl.load(p_hidden + row * S + at, mask=m_s, other=0)
    out = tl.zeros((BS,), tl.float32)
    for g in range(G):
        hq = h * G + g
        column = tl.zeros((BS,), tl.float32)
        for start in range(0, W, BW):
            rows = start + tl.arange(0, BW)
            m_q = (rows[:, None] < W) & (d[None, :] < D)
            b_q = tl.load(p_q + b * sqb + hq * sqh + rows[:, None] * sqw + d[None, :], mask=m_q, other=0.0)
            lse = tl.load(p_lse + (b * H * G + hq) * W + rows, mask=rows < W, other=0.0)
            lse = tl.where(lse == float("-inf"), 0.0, lse)
            x = _logits(b_q, b_k, rows, at, m_s, b_hidden, S, W, scale, softcap, CAP, UPCAST)
            p = tl.exp2((x - lse[:, None]) * 1.4426950408889634)
            column = tl.maximum(column, tl.max(p, 0)) if MAXIMUM else column + tl.sum(p, 0)
        out = tl.maximum(out, column) if REDUCE == 1 else out + column
    if REDUCE == 0:
        out = out / G
    tl.store(p_out + row * S + at, out, mask=m_s)


@triton.jit(do_not_specialize=["S"])
def _pool_kernel(
    p_in, p_among, p_out, S,
    KERNEL: tl.constexpr, BS: tl.constexpr, AMONG: tl.constexpr, MAXIMUM: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """One tile of one head; the halo comes out of the cache."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64) * BS + tl.arange(0, BS)
    out = tl.full((BS,), float("-inf"), tl.float32) if MAXIMUM else tl.zeros((BS,), tl.float32)
    count = tl.zeros((BS,), tl.float32)
    for offset in tl.static_range(KERNEL):
        near = at + offset - KERNEL // 2
        inside = (near >= 0) & (near < S)
        if AMONG:
            inside = inside & (tl.load(p_among + row * S + near, mask=inside, other=0) != 0)
        x = tl.load(p_in + row * S + near, mask=inside, other=0.0)
        if MAXIMUM:
            out = tl.maximum(out, tl.where(inside, x, float("-inf")))
        else:
            out += x
            count += inside.to(tl.float32)
    if not MAXIMUM:
        out = out / KERNEL if PAD else out / tl.maximum(count, 0.5)
    tl.store(p_out + row * S + at, out, mask=at < S)


def window_score(
    q: Tensor,
    k: Tensor,
    lse: Tensor | None = None,
    hidden: Tensor | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    over: Over = "sum",
    reduce: Reduce = "mean",
    kernel: int = 1,
    pooling: Pooling = "none",
    pad_counts: bool = False,
    among: Tensor | None = None,
) -> Tensor:
    """See `naive_window_score`."""
    b, hq, w, d = q.shape
    h, s = k.shape[1], k.shape[2]
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    factor, cap = d**-0.5 if scale is None else scale, softcap or 1.0
    veiled = None if hidden is None else hidden.contiguous().view(torch.int8)
    shape = (h, hq // h, w, d, min(64, next_power(w)), next_power(d), _TILE)
    if lse is None:
        lse = _log_sum_exp(q, k, veiled, sinks, factor, cap, softcap is not None, shape)
    out = torch.empty(b, h, s, dtype=torch.float32, device=q.device)
    if s:
        _column_kernel[b * h, triton.cdiv(s, _TILE)](
            q, k, veiled, lse.float().contiguous(), out, s, factor, cap, *q.stride()[:3], *k.stride()[:3], *shape,
            hidden is not None, softcap is not None, over == "max", _REDUCE[reduce], upcast(q.dtype), num_warps=4,
        )  # fmt: skip
    if pooling == "none" or kernel == 1 or s == 0:
        return out
    smooth = torch.empty_like(out)
    some = None if among is None else among.contiguous().view(torch.int8)
    _pool_kernel[b * h, triton.cdiv(s, 512)](
        out, some, smooth, s, kernel, 512, among is not None, pooling == "max", pad_counts, num_warps=4
    )
    return smooth


def _log_sum_exp(
    q: Tensor,
    k: Tensor,
    veiled: Tensor | None,
    sinks: Tensor | None,
    factor: float,
    cap: float,
    capped: bool,
    shape: tuple[int, ...],
) -> Tensor:
    """`[B, G*H, W]` float32, natural; the shares of the programs are merged here, a few numbers per query."""
    b, hq, w, _ = q.shape
    s = k.shape[2]
    blocks = triton.cdiv(w, shape[4])
    tiles = max(1, triton.cdiv(s, _TILE))
    splits = max(1, min(16, tiles, triton.cdiv(512, b * hq * blocks)))
    chunk = triton.cdiv(tiles, splits) * _TILE
    splits = max(1, triton.cdiv(s, chunk))
    shares = torch.empty(splits, b, hq, w, dtype=torch.float32, device=q.device)
    _lse_kernel[b * hq, blocks, splits](
        q, k, veiled, shares, s, chunk, factor, cap, *q.stride()[:3], *k.stride()[:3], *shape,
        veiled is not None, capped, upcast(q.dtype), num_warps=4,
    )  # fmt: skip
    lse = torch.logsumexp(shares * 0.6931471805599453, 0)
    return lse if sinks is None else torch.logaddexp(lse, sinks.view(1, hq, 1).float())
