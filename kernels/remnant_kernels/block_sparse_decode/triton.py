"""Three steps: a streaming pass over the summaries, a selection, and split-KV decoding through the list of pages."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from remnant_kernels._jit import dot, next_power, upcast
from remnant_kernels.block_sparse_decode.naive import Sparse
from remnant_kernels.decode_attention.triton import merge_parts
from remnant_kernels.topk.triton import topk

__all__ = ["block_sparse_decode"]


@triton.jit(do_not_specialize=["S", "N"])
def _page_score_kernel(
    p_q, p_mean, p_low, p_high, p_lens, p_out, S, N, sinks, local, sqb, sqh,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, P: tl.constexpr, BN: tl.constexpr,
    BOUND: tl.constexpr, LENS: tl.constexpr,
):  # fmt: skip
    """Scores of one tile of pages; pages that are always read get infinity."""
    row = tl.program_id(0).to(tl.int64)
    b, h = row // H, row % H
    n, d = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN), tl.arange(0, BD)
    m = (n[:, None] < N) & (d[None, :] < D)
    place = (row * N + n[:, None]) * D + d[None, :]
    used = tl.load(p_lens + row) if LENS else S
    count = (used + P - 1) // P
    if BOUND:
        b_low = tl.load(p_low + place, mask=m, other=0.0).to(tl.float32)
        b_high = tl.load(p_high + place, mask=m, other=0.0).to(tl.float32)
        score = tl.full((BN,), float("-inf"), tl.float32)
        for g in range(G):
            b_q = tl.load(p_q + b * sqb + (h * G + g) * sqh + d, mask=d < D, other=0.0).to(tl.float32)
            bound = tl.sum(tl.maximum(b_q[None, :] * b_low, b_q[None, :] * b_high), 1)
            score = tl.maximum(score, bound)
    else:
        b_q = tl.zeros((BD,), tl.float32)
        for g in range(G):
            b_q += tl.load(p_q + b * sqb + (h * G + g) * sqh + d, mask=d < D, other=0.0).to(tl.float32)
        b_mean = tl.load(p_mean + place, mask=m, other=0.0).to(tl.float32)
        score = tl.sum((b_q / G)[None, :] * b_mean, 1)
    score = tl.where((n < sinks) | (n >= count - local), float("inf"), score)
    tl.store(p_out + row * N + n, score, mask=n < N)


@triton.jit(do_not_specialize=["S", "M", "chunk"])
def _page_kernel(
    p_q, p_k, p_v, p_chosen, p_lens, p_part, p_lse, S, M, chunk, scale, sqb, sqh, skb, skh, sks, svb, svh, svs,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, GP: tl.constexpr, BD: tl.constexpr, P: tl.constexpr,
    TILE: tl.constexpr, LENS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One share of the chosen pages of one KV head; a tile takes slots of several pages."""
    row, split, splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    b, h = row // H, row % H
    used = tl.load(p_lens + row) if LENS else S
    g, d = tl.arange(0, GP), tl.arange(0, BD)
    b_q = tl.load(
        p_q + b * sqb + (h * G + g[:, None]) * sqh + d[None, :], mask=(g[:, None] < G) & (d[None, :] < D), other=0.0
    )
    top = tl.full((GP,), float("-inf"), tl.float32)
    total = tl.zeros((GP,), tl.float32)
    acc = tl.zeros((GP, BD), tl.float32)
    first = split * chunk
    for start in range(first, tl.minimum(first + chunk, M * P), TILE):
        i = start + tl.arange(0, TILE)
        here = (i < first + chunk) & (i < M * P)
        number = tl.load(p_chosen + row * M + i // P, mask=here, other=-1)
        at = number * P + i % P
        m_s = (number >= 0) & (at < used)
        m = m_s[:, None] & (d[None, :] < D)
        b_k = tl.load(p_k + b * skb + h * skh + at[:, None] * sks + d[None, :], mask=m, other=0.0)
        x = dot(b_q, tl.trans(b_k), UPCAST) * (scale * 1.4426950408889634)
        x = tl.where(m_s[None, :], x, float("-inf"))
        new = tl.maximum(top, tl.max(x, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        e, keep = tl.exp2(x - safe[:, None]), tl.exp2(top - safe)
        b_v = tl.load(p_v + b * svb + h * svh + at[:, None] * svs + d[None, :], mask=m, other=0.0)
        acc = acc * keep[:, None] + dot(e.to(b_v.dtype), b_v, UPCAST)
        total = total * keep + tl.sum(e, 1)
        top = new
    part = (row * splits + split) * GP + g
    whole = tl.where(total == 0.0, 1.0, total)
    tl.store(p_part + part[:, None] * BD + d[None, :], acc / whole[:, None])
    tl.store(p_lse + part, tl.where(total == 0.0, float("-inf"), top + tl.log2(whole)))


def block_sparse_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    page: int,
    pages: int,
    mean: Tensor | None = None,
    low: Tensor | None = None,
    high: Tensor | None = None,
    sinks: int = 1,
    local: int = 1,
    lens: Tensor | None = None,
    scale: float | None = None,
) -> Sparse:
    """See `naive_block_sparse_decode`."""
    b, hq, d = q.shape
    h, s = k.shape[1], k.shape[2]
    g, count = hq // h, triton.cdiv(s, page)
    most = min(pages + sinks + local, count)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    lens = None if lens is None else lens.contiguous()
    mean, low, high = (None if x is None else x.contiguous() for x in (mean, low, high))
    scores = torch.empty(b, h, count, dtype=torch.float32, device=q.device)
    bd = next_power(d)
    _page_score_kernel[b * h, triton.cdiv(count, 32)](
        q, mean, low, high, lens, scores, s, count, sinks, local, q.stride(0), q.stride(1),
        h, g, d, bd, page, 32, mean is None, lens is not None, num_warps=4,
    )  # fmt: skip
    wanted = torch.full((b, h), most, dtype=torch.int64, device=q.device)
    counts = None if lens is None else (lens + page - 1) // page
    chosen = topk(scores, wanted, most, counts).indices
    tile = 64 if bd <= 128 else 32
    gp = next_power(g)
    tiles = max(1, triton.cdiv(most * page, tile))
    splits = max(1, min(tiles, 16, triton.cdiv(528, b * h)))
    chunk = triton.cdiv(tiles, splits) * tile
    splits = triton.cdiv(most * page, chunk)
    part = torch.empty(b * h, splits, gp, bd, dtype=torch.float32, device=q.device)
    shares = torch.empty(b * h, splits, gp, dtype=torch.float32, device=q.device)
    _page_kernel[b * h, splits](
        q, k, v, chosen, lens, part, shares, s, most, chunk, d**-0.5 if scale is None else scale,
        q.stride(0), q.stride(1), *k.stride()[:3], *v.stride()[:3],
        h, g, d, gp, bd, page, tile, lens is not None, upcast(q.dtype), num_warps=4, num_stages=2,
    )  # fmt: skip
    out, lse = merge_parts(part, shares, None, b, h, g, d, q.dtype)
    return Sparse(out, lse, chosen)
