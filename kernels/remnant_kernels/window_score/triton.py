"""Two sweeps over the keys, or one where the log-sum-exp is known; no row of probabilities is ever stored.

A program holds a tile of keys and takes the queries of one head after another, so keys are read once for a whole
group. The first sweep gives each query's log-sum-exp in shares that are merged afterwards.
"""

from __future__ import annotations

from typing import Any

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
def _logits(b_q, b_k, m_w, now, m_s, pos, scale, softcap, CAP: tl.constexpr, UPCAST: tl.constexpr):
    """Masked logits `[rows, slots]`, natural, of the queries `m_w` that stand at `now`."""
    x = dot(b_q, tl.trans(b_k), UPCAST) * scale
    if CAP:
        x = softcap * (1.0 - 2.0 / (tl.exp2(x * (2.0 * 1.4426950408889634 / softcap)) + 1.0))
    sees = (pos[None, :] <= now[:, None]) & m_s[None, :] & m_w[:, None]
    return tl.where(sees, x, float("-inf"))


@triton.jit
def _shown(
    p_hidden, p_pos, b, h, at, S, first, spb, sph, sps, H: tl.constexpr, HIDDEN: tl.constexpr, POS: tl.constexpr
):  # fmt: skip
    """Which slots of a tile anybody may see, and their positions; all before slot `first` are older than any query."""
    m_s = at < S
    pos = at.to(tl.int64)
    if HIDDEN:
        m_s = m_s & (tl.load(p_hidden + (b * H + h) * S + at, mask=m_s, other=1) == 0)
    if POS:
        pos = tl.load(p_pos + b * spb + h * sph + at * sps, mask=m_s & (at >= first), other=-1)
    return m_s, pos


@triton.jit(do_not_specialize=["S", "N", "chunk", "now", "first"])
def _lse_kernel(
    p_q, p_k, p_hidden, p_pos, p_real, p_lse, S, N, chunk, now, first, scale, softcap,
    sqb, sqh, sqw, skb, skh, sks, spb, sph, sps,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BW: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr,
    HIDDEN: tl.constexpr, POS: tl.constexpr, REAL: tl.constexpr, CAP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One share of the slots for a block of queries of one query head: base-2 log-sum-exp."""
    head, block, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    b, hq = head // (H * G), head % (H * G)
    h = hq // G
    rows, d = block * BW + tl.arange(0, BW), tl.arange(0, BD)
    m_w = rows < N
    m_q = m_w[:, None] & (d[None, :] < D)
    b_q = tl.load(p_q + b * sqb + hq * sqh + rows[:, None] * sqw + d[None, :], mask=m_q, other=0.0)
    if REAL:
        m_w = m_w & (tl.load(p_real + b * N + rows, mask=m_w, other=0) != 0)
    top = tl.full((BW,), float("-inf"), tl.float32)
    total = tl.zeros((BW,), tl.float32)
    begin = split.to(tl.int64) * chunk
    for start in range(begin, tl.minimum(begin + chunk, S), BS):
        at = start + tl.arange(0, BS)
        m_k = (at < S)[:, None] & (d[None, :] < D)
        b_k = tl.load(p_k + b * skb + h * skh + at[:, None] * sks + d[None, :], mask=m_k, other=0.0)
        m_s, pos = _shown(p_hidden, p_pos, b, h, at, S, first, spb, sph, sps, H, HIDDEN, POS)
        x = _logits(b_q, b_k, m_w, now + rows, m_s, pos, scale, softcap, CAP, UPCAST) * 1.4426950408889634
        new = tl.maximum(top, tl.max(x, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp2(top - safe) + tl.sum(tl.exp2(x - safe[:, None]), 1)
        top = new
    out = tl.where(total == 0.0, float("-inf"), top + tl.log2(tl.where(total == 0.0, 1.0, total)))
    tl.store(p_lse + (split * tl.num_programs(0) + head) * N + rows, out, mask=rows < N)


@triton.jit(do_not_specialize=["S", "N", "now", "first"])
def _column_kernel(
    p_q, p_k, p_hidden, p_pos, p_real, p_lse, p_out, S, N, now, first, scale, softcap,
    sqb, sqh, sqw, skb, skh, sks, spb, sph, sps,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BW: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr,
    HIDDEN: tl.constexpr, POS: tl.constexpr, REAL: tl.constexpr, CAP: tl.constexpr, UPCAST: tl.constexpr,
    MAXIMUM: tl.constexpr, REDUCE: tl.constexpr,
):  # fmt: skip
    """One tile of slots of one KV head: the columns of every query of the group."""
    row = tl.program_id(0).to(tl.int64)
    b, h = row // H, row % H
    at, d = tl.program_id(1).to(tl.int64) * BS + tl.arange(0, BS), tl.arange(0, BD)
    m_k = (at < S)[:, None] & (d[None, :] < D)
    b_k = tl.load(p_k + b * skb + h * skh + at[:, None] * sks + d[None, :], mask=m_k, other=0.0)
    m_s, pos = _shown(p_hidden, p_pos, b, h, at, S, first, spb, sph, sps, H, HIDDEN, POS)
    out = tl.zeros((BS,), tl.float32)
    for g in range(G):
        hq = h * G + g
        column = tl.zeros((BS,), tl.float32)
        for start in range(0, N, BW):
            rows = start + tl.arange(0, BW)
            m_w = rows < N
            m_q = m_w[:, None] & (d[None, :] < D)
            b_q = tl.load(p_q + b * sqb + hq * sqh + rows[:, None] * sqw + d[None, :], mask=m_q, other=0.0)
            lse = tl.load(p_lse + (b * H * G + hq) * N + rows, mask=m_w, other=0.0)
            lse = tl.where(lse == float("-inf"), 0.0, lse)
            if REAL:
                m_w = m_w & (tl.load(p_real + b * N + rows, mask=m_w, other=0) != 0)
            x = _logits(b_q, b_k, m_w, now + rows, m_s, pos, scale, softcap, CAP, UPCAST)
            p = tl.exp2((x - lse[:, None]) * 1.4426950408889634)
            column = tl.maximum(column, tl.max(p, 0)) if MAXIMUM else column + tl.sum(p, 0)
        out = tl.maximum(out, column) if REDUCE == 1 else out + column
    if REDUCE == 0:
        out = out / G
    tl.store(p_out + row * S + at, out, mask=at < S)


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
    positions: Tensor | None = None,
    seen: int | None = None,
    ordered: bool = True,
    real: Tensor | None = None,
) -> Tensor:
    """See `naive_window_score`."""
    b, hq, w, d = q.shape
    h, s = k.shape[1], k.shape[2]
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    first = max(s - w, 0) if ordered and hidden is None else 0  # of the slots that may be newer than a query
    place = ((s if seen is None else seen) - w, first, d**-0.5 if scale is None else scale, softcap or 1.0)
    strides = (*q.stride()[:3], *k.stride()[:3], *((0, 0, 0) if positions is None else positions.stride()))
    shape = (h, hq // h, d, min(64, next_power(w)), next_power(d), _TILE)
    given = (hidden is not None, positions is not None, real is not None, softcap is not None, upcast(q.dtype))
    read = (q, k, _bytes(hidden), positions, _bytes(real))
    if lse is None:
        lse = _log_sum_exp(read, sinks, place, (*strides, *shape, *given))
    out = torch.empty(b, h, s, dtype=torch.float32, device=q.device)
    if s:
        _column_kernel[b * h, triton.cdiv(s, _TILE)](
            *read, lse.float().contiguous(), out, s, w, *place, *strides, *shape, *given,
            over == "max", _REDUCE[reduce], num_warps=4,
        )  # fmt: skip
    if pooling == "none" or kernel == 1 or s == 0:
        return out
    smooth = torch.empty_like(out)
    _pool_kernel[b * h, triton.cdiv(s, 512)](
        out, _bytes(among), smooth, s, kernel, 512, among is not None, pooling == "max", pad_counts, num_warps=4
    )
    return smooth


def _bytes(mask: Tensor | None) -> Tensor | None:
    """A mask as a kernel reads it."""
    return None if mask is None else mask.contiguous().view(torch.int8)


def _log_sum_exp(
    read: tuple[Any, ...], sinks: Tensor | None, place: tuple[Any, ...], constants: tuple[Any, ...]
) -> Tensor:
    """`[B, G*H, W]` float32, natural; the shares of the programs are merged here, a few numbers per query."""
    b, hq, w, _ = read[0].shape
    s = read[1].shape[2]
    blocks = max(1, triton.cdiv(w, min(64, next_power(w))))  # of no queries an empty one
    tiles = max(1, triton.cdiv(s, _TILE))
    splits = max(1, min(16, tiles, triton.cdiv(512, b * hq * blocks)))
    chunk = triton.cdiv(tiles, splits) * _TILE
    splits = max(1, triton.cdiv(s, chunk))
    shares = torch.empty(splits, b, hq, w, dtype=torch.float32, device=read[0].device)
    _lse_kernel[b * hq, blocks, splits](*read, shares, s, w, chunk, *place, *constants, num_warps=4)
    lse = torch.logsumexp(shares * 0.6931471805599453, 0)
    return lse if sinks is None else torch.logaddexp(lse, sinks.view(1, hq, 1).float())
