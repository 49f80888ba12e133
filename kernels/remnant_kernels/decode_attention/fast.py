"""The same in a few calls of torch: one product for all heads of a group, one softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from remnant_kernels.decode_attention.naive import Decoded, Reduce, Score, unpacked

__all__ = ["decode_attention", "update"]


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
    """See `naive_decode_attention`."""
    if begin is not None:
        k, v = unpacked(k, v, begin, width)
    b, hq, d = q.shape
    h, s, g = k.shape[1], k.shape[2], q.shape[1] // k.shape[1]
    x = torch.matmul(q.view(b, h, g, d), k.transpose(2, 3)).float() * (d**-0.5 if scale is None else scale)
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    if bias is not None:
        x = x + bias[:, :, None]
    used = None if lens is None else torch.arange(s, device=q.device) < lens[:, :, None]
    if used is not None:
        x = x.masked_fill(~used[:, :, None], float("-inf"))
    lse = torch.logsumexp(x, -1) if s else x.new_full((b, h, g), float("-inf"))
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.view(h, g).to(x.dtype))
    p = (x - lse[..., None].nan_to_num(neginf=0.0)).exp()
    if used is not None:  # what lies behind may be anything, and 0 * NaN is NaN
        v = v.masked_fill(~used[..., None], 0)
    out = torch.matmul(p.to(v.dtype), v).view(b, hq, -1).to(q.dtype)
    done = Decoded(out, lse.reshape(b, hq))
    if score == "none":
        return done
    row = p.mean(2) if reduce == "mean" else p.amax(2) if reduce == "max" else p.sum(2)
    return update(done, row, used, score, acc, last, interval, now, threshold)


def update(
    done: Decoded,
    row: Tensor,
    used: Tensor | None,
    score: Score,
    acc: Tensor | None,
    last: Tensor | None,
    interval: Tensor | None,
    now: Tensor | None,
    threshold: Tensor | None,
) -> Decoded:
    """What a row of probabilities `[B, H, S]` does to the state."""
    if score == "row":
        return done._replace(score=row)
    if score == "sum":
        assert acc is not None
        return done._replace(score=acc.add_(row))
    assert last is not None
    assert interval is not None
    assert now is not None
    assert threshold is not None
    clock = now.view(-1, 1, 1)
    known = torch.where(last < 0, clock - 1, last)
    active = row >= threshold[:, :, None]
    if used is not None:
        active = active & used
        known = torch.where(used, known, last)
    interval.copy_(torch.where(active, torch.maximum(interval, clock - known), interval))
    last.copy_(torch.where(active, clock, known))
    return done._replace(last=last, interval=interval)
