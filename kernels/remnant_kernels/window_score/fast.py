"""The same in blocks of queries, so that no more than S x a few rows exist at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from remnant_kernels.window_score.naive import Over, Pooling, Reduce

__all__ = ["window_score"]

_NEVER = float("-inf")
_BLOCK = 128
"""Queries at once; the peak is `B * G*H * _BLOCK * S` float32 values."""


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
    g, factor = hq // h, d**-0.5 if scale is None else scale
    first = (s if seen is None else seen) - w
    in_order = positions is None or (ordered and hidden is None)
    columns = None if w else torch.zeros(b, h, g, s, device=q.device)
    # The query heads of a block are one matrix of at most S / 4 rows: a short cache sees no square of its own size.
    block = max(1, min(_BLOCK, max(s // (4 * g), 4)))
    for start in range(0, w, block):
        part = slice(start, min(start + block, w))
        x = _logits(q[:, :, part], k, factor, softcap)
        # Slots that are newer than a block's first query stand at the end, at most as many as tokens came since.
        old = max(s - (w - 1 - start), 0) if in_order else 0
        _hide_newer(x, old, positions, first + start)
        if hidden is not None:
            x.masked_fill_(hidden[:, :, None, None, :], _NEVER)
        if real is not None:
            x.masked_fill_(~real[:, None, None, part, None], _NEVER)
        p = _shares(x, sinks) if lse is None else _known_shares(x, lse[:, :, part])
        found = p.sum(3) if over == "sum" else p.amax(3)
        if columns is not None:
            found = columns + found if over == "sum" else torch.maximum(columns, found)
        columns = found
    assert columns is not None
    scores = columns.mean(2) if reduce == "mean" else columns.amax(2) if reduce == "max" else columns.sum(2)
    return _pooled(scores, kernel, pooling, pad_counts, among)


def _logits(q: Tensor, k: Tensor, scale: float, softcap: float | None) -> Tensor:
    """`[B, H, G, n, S]` float32, nothing hidden; the query heads of a group are rows of one product."""
    b, h, s = k.shape[:3]
    grouped = q.reshape(b, h, -1, *q.shape[2:]).flatten(2, 3)
    x = torch.matmul(grouped, k.transpose(2, 3)).float().view(b, h, -1, q.shape[2], s) * scale
    return x if softcap is None else softcap * torch.tanh(x / softcap)


def _hide_newer(x: Tensor, old: int, positions: Tensor | None, now: int) -> None:
    """Hide slots from queries before them, in place: the first stands at `now`, and slots up to `old` are older."""
    n, s = x.shape[3:]
    if old == s:
        return
    at = torch.arange(old, s, device=x.device) if positions is None else positions[:, :, None, None, old:]
    x[..., old:].masked_fill_(at > torch.arange(now, now + n, device=x.device).view(-1, 1), _NEVER)


def _shares(x: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over the last dimension, a sink logit included where the layer has one; empty rows give zeros."""
    if sinks is None:
        return torch.nan_to_num(x.softmax(-1))
    b, h, g, n, _ = x.shape
    extra = sinks.float().view(1, h, g, 1, 1).expand(b, h, g, n, 1)
    return torch.cat([x, extra], -1).softmax(-1)[..., :-1]


def _known_shares(x: Tensor, lse: Tensor) -> Tensor:
    """The same where the denominators `[B, G*H, n]` are known; -inf is that of a query that sees nothing."""
    return (x - lse.float().nan_to_num(neginf=0.0).reshape(*x.shape[:4], 1)).exp()


def _pooled(x: Tensor, kernel: int, pooling: Pooling, pad_counts: bool, among: Tensor | None) -> Tensor:
    """Pooling with stride 1 over the last dimension of `[B, H, S]`."""
    if pooling == "none" or kernel == 1 or x.shape[-1] == 0:
        return x
    if among is not None:
        x = x.masked_fill(~among, _NEVER if pooling == "max" else 0.0)
    if pooling == "max":
        return F.max_pool1d(x, kernel, stride=1, padding=kernel // 2)
    if among is None or pad_counts:
        return F.avg_pool1d(x, kernel, stride=1, padding=kernel // 2, count_include_pad=pad_counts)
    total = F.avg_pool1d(x, kernel, stride=1, padding=kernel // 2)
    return total / F.avg_pool1d(among.to(x.dtype), kernel, stride=1, padding=kernel // 2).clamp(min=0.5 / kernel)
