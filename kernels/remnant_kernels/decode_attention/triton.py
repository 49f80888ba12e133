"""Split-KV decoding: the slots of a KV head are shared out to programs, each of which reads a key and a value once.

Three launches. The first computes partial outputs and, where a score is wanted, leaves the logits (G numbers per
slot, little beside the D of a key). The second merges the parts by their log-sum-exp. The third turns logits into
probabilities, now that the denominators are known, and updates the state of each slot; it uses no atomics, so the same
input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from remnant_kernels._jit import dot, next_power, upcast
from remnant_kernels.decode_attention.naive import Decoded, Reduce, Score

__all__ = ["decode_attention", "merge_parts", "split_parts"]

_REDUCE = {"mean": 0, "max": 1, "sum": 2}
_MODE = {"row": 0, "sum": 1, "stamp": 2}


@triton.jit(do_not_specialize=["S", "chunk"])
def _split_kernel(
    p_q, p_k, p_v, p_begin, p_lens, p_bias, p_part, p_lse, p_logits, S, chunk, scale, softcap,
    sqb, sqh, skb, skh, sks, svb, svh, svs,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, GP: tl.constexpr, BD: tl.constexpr,
    BDV: tl.constexpr, BS: tl.constexpr, LENS: tl.constexpr, BIAS: tl.constexpr, CAP: tl.constexpr,
    LOGITS: tl.constexpr, FLAT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One chunk of one KV head: unnormalised output, base-2 log-sum-exp, and the logits if wanted."""
    row, split, splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    b, h = row // H, row % H
    length = tl.load(p_lens + row) if LENS else S
    if FLAT:
        base = tl.load(p_begin + row)
        p_k += base * sks
        p_v += base * svs
    else:
        p_k += b * skb + h * skh
        p_v += b * svb + h * svh
    g, d, dv = tl.arange(0, GP), tl.arange(0, BD), tl.arange(0, BDV)
    m_q = (g[:, None] < G) & (d[None, :] < D)
    b_q = tl.load(p_q + b * sqb + (h * G + g[:, None]) * sqh + d[None, :], mask=m_q, other=0.0)
    top = tl.full((GP,), float("-inf"), tl.float32)
    total = tl.zeros((GP,), tl.float32)
    acc = tl.zeros((GP, BDV), tl.float32)
    first = split.to(tl.int64) * chunk
    stop = tl.minimum(first + chunk, length)
    for start in range(first, stop, BS):
        at = start + tl.arange(0, BS)
        m_s = at < stop
        m_k = m_s[:, None] & (d[None, :] < D)
        b_k = tl.load(p_k + at[:, None] * sks + d[None, :], mask=m_k, other=0.0)
        x = dot(b_q, tl.trans(b_k), UPCAST) * scale
        if CAP:
            e = tl.exp2(x * (2.0 * 1.4426950408889634 / softcap))
            x = softcap * (1.0 - 2.0 / (e + 1.0))
        if BIAS:
            x += tl.load(p_bias + row * S + at, mask=m_s, other=0.0)[None, :]
        x = tl.where(m_s[None, :], x, float("-inf"))
        if LOGITS:
            m_x = (g[:, None] < G) & m_s[None, :]
            tl.store(p_logits + (row * G + g[:, None]) * S + at[None, :], x, mask=m_x)
        x = x * 1.4426950408889634
        new = tl.maximum(top, tl.max(x, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)  # nothing visible yet: -inf - -inf is not a number
        e = tl.exp2(x - safe[:, None])
        keep = tl.exp2(top - safe)
        m_v = m_s[:, None] & (dv[None, :] < DV)
        b_v = tl.load(p_v + at[:, None] * svs + dv[None, :], mask=m_v, other=0.0)
        acc = acc * keep[:, None] + dot(e.to(b_v.dtype), b_v, UPCAST)
        total = total * keep + tl.sum(e, 1)
        top = new
    part = (row * splits + split) * GP + g
    tl.store(p_part + part[:, None] * BDV + dv[None, :], acc / tl.where(total == 0.0, 1.0, total)[:, None])
    tl.store(p_lse + part, tl.where(total == 0.0, float("-inf"), top + tl.log2(tl.where(total == 0.0, 1.0, total))))


@triton.jit(do_not_specialize=["splits"])
def _merge_kernel(
    p_part, p_lse, p_sinks, p_out, p_total, splits,
    HQ: tl.constexpr, G: tl.constexpr, DV: tl.constexpr, GP: tl.constexpr, BDV: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """One query head: the parts weighed by what share of the denominator each of them has."""
    head = tl.program_id(0).to(tl.int64)
    row, g = head // G, head % G
    dv = tl.arange(0, BDV)
    top = tl.load(p_sinks + head % HQ).to(tl.float32) * 1.4426950408889634 if SINKS else float("-inf")
    total = 1.0 if SINKS else 0.0
    acc = tl.zeros((BDV,), tl.float32)
    for split in range(0, splits):
        part = (row * splits + split) * GP + g
        lse = tl.load(p_lse + part)
        new = tl.maximum(top, lse)
        safe = tl.where(new == float("-inf"), 0.0, new)
        keep, weight = tl.exp2(top - safe), tl.exp2(lse - safe)
        acc = acc * keep + tl.load(p_part + part * BDV + dv) * weight
        total = total * keep + weight
        top = new
    some = total > 0.0
    acc = acc / tl.where(some, total, 1.0)
    tl.store(p_out + head * DV + dv, acc.to(p_out.dtype.element_ty), mask=dv < DV)
    lse = (top + tl.log2(tl.where(some, total, 1.0))) * 0.6931471805599453
    tl.store(p_total + head, tl.where(some, lse, float("-inf")))


@triton.jit(do_not_specialize=["S"])
def _score_kernel(
    p_logits, p_lse, p_lens, p_score, p_last, p_interval, p_now, p_threshold, S,
    H: tl.constexpr, G: tl.constexpr, GP: tl.constexpr, BS: tl.constexpr, LENS: tl.constexpr, MODE: tl.constexpr,
    REDUCE: tl.constexpr,
):  # fmt: skip
    """One tile of slots of one KV head: probabilities, reduced over the group, into the state."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64) * BS + tl.arange(0, BS)
    g = tl.arange(0, GP)
    length = tl.load(p_lens + row) if LENS else S
    m_s = at < length
    m_x = (g[:, None] < G) & m_s[None, :]
    x = tl.load(p_logits + (row * G + g[:, None]) * S + at[None, :], mask=m_x, other=float("-inf"))
    lse = tl.load(p_lse + row * G + g, mask=g < G, other=0.0)
    lse = tl.where(lse == float("-inf"), 0.0, lse)
    p = tl.exp2((x - lse[:, None]) * 1.4426950408889634)
    if REDUCE == 1:
        out = tl.max(p, 0)
    else:
        out = tl.sum(p, 0)
        if REDUCE == 0:
            out = out / G
    place = row * S + at
    if MODE == 0:
        tl.store(p_score + place, tl.where(m_s, out, 0.0), mask=at < S)
    if MODE == 1:
        tl.store(p_score + place, tl.load(p_score + place, mask=m_s, other=0.0) + out, mask=m_s)
    if MODE == 2:
        now = tl.load(p_now + row // H)
        last = tl.load(p_last + place, mask=m_s, other=0)
        interval = tl.load(p_interval + place, mask=m_s, other=0)
        last = tl.where(last < 0, now - 1, last)
        active = out >= tl.load(p_threshold + row)
        tl.store(p_interval + place, tl.where(active, tl.maximum(interval, now - last), interval), mask=m_s)
        tl.store(p_last + place, tl.where(active, now, last), mask=m_s)


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lens: Tensor | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    score: Score = "none",
    reduce: Reduce = "mean",
    acc: Tensor | None = None,
    last: Tensor | None = None,
    interval: Tensor | None = None,
    now: Tensor | None = None,
    threshold: Tensor | None = None,
    begin: Tensor | None = None,
    width: int = 0,
) -> Decoded:
    """See `naive_decode_attention`; q, k and v may have any strides but 1 in their last dimension."""
    b, hq, _ = q.shape
    h, s, dv = (k.shape[1], k.shape[2], v.shape[3]) if begin is None else (begin.shape[1], width, v.shape[1])
    g = hq // h
    lens = None if lens is None else lens.contiguous()
    part, part_lse, logits = split_parts(q, k, v, lens, bias, scale, softcap, score != "none", begin, s)
    out, lse = merge_parts(part, part_lse, sinks, b, h, g, dv, q.dtype)
    done = Decoded(out, lse)
    if score == "none":
        return done
    state = torch.empty(b, h, s, dtype=torch.float32, device=q.device) if score == "row" else acc
    tiles = triton.cdiv(s, 256)
    if tiles:
        _score_kernel[b * h, tiles](
            logits, lse, lens, state, last, interval, now, threshold, s,
            h, g, next_power(g, 1), 256, lens is not None, _MODE[score], _REDUCE[reduce], num_warps=4,
        )  # fmt: skip
    if score == "stamp":
        return done._replace(last=last, interval=interval)
    return done._replace(score=state)


def split_parts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lens: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    logits: bool = False,
    begin: Tensor | None = None,
    width: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Parts `[B*H, splits, GP, BDV]`, their base-2 log-sum-exp `[B*H, splits, GP]`, and logits `[B, G*H, S]`."""
    b, hq, d = q.shape
    h, s, dv = (k.shape[1], k.shape[2], v.shape[3]) if begin is None else (begin.shape[1], width, v.shape[1])
    g = hq // h
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    gp, bd, bdv = next_power(g), next_power(d), next_power(dv)
    tile = 64 if max(bd, bdv) <= 128 else 32
    chunk, splits = _shares(b * h, s, tile, q.device)
    part = torch.empty(b * h, splits, gp, bdv, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(b * h, splits, gp, dtype=torch.float32, device=q.device)
    kept = torch.empty(b, hq, s, dtype=torch.float32, device=q.device) if logits else None
    _split_kernel[b * h, splits](
        q, k, v, begin if begin is None else begin.contiguous(), lens, bias if bias is None else bias.contiguous(),
        part, part_lse, kept, s, chunk,
        d**-0.5 if scale is None else scale, softcap or 1.0,
        q.stride(0), q.stride(1), *_strides(k), *_strides(v),
        h, g, d, dv, gp, bd, bdv, tile, lens is not None, bias is not None, softcap is not None,
        logits, begin is not None, upcast(q.dtype), num_warps=4, num_stages=3,
    )  # fmt: skip
    return part, part_lse, kept


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Of sequences, heads and slots; heads that lie one after the other have only the last."""
    return (0, 0, x.stride(0)) if x.dim() == 2 else (x.stride(0), x.stride(1), x.stride(2))


def merge_parts(
    part: Tensor, part_lse: Tensor, sinks: Tensor | None, b: int, h: int, g: int, dv: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Outputs `[B, G*H, Dv]` and natural log-sum-exp `[B, G*H]` of parts `[B*H, splits, GP, BDV]`."""
    out = torch.empty(b, h * g, dv, dtype=dtype, device=part.device)
    lse = torch.empty(b, h * g, dtype=torch.float32, device=part.device)
    splits, gp, width = part.shape[1:]
    _merge_kernel[(b * h * g,)](
        part, part_lse, sinks, out, lse, splits, h * g, g, dv, gp, width, sinks is not None, num_warps=2
    )
    return out, lse


def _shares(rows: int, slots: int, tile: int, device: torch.device) -> tuple[int, int]:
    """(slots per program, programs per KV head): four programs per multiprocessor, whole tiles, 64 parts at most."""
    busy = 4 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4 * rows
    tiles = max(1, triton.cdiv(slots, tile))
    splits = max(1, min(64, tiles, triton.cdiv(busy, rows)))
    chunk = triton.cdiv(tiles, splits) * tile
    return chunk, max(1, triton.cdiv(slots, chunk))
