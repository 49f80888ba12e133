"""The same in blocks of queries, so that no more than S x a few rows exist at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from remnant_kernels.window_score.naive import Over, Pooling, Reduce

__all__ = ["pooled", "window_score"]

_NEVER = float("-inf")


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
    g, factor = hq // h, d**-0.5 if scale is None else scale
    columns = torch.zeros(b, h, g, s, device=q.device)
    block = max(1, min(128, max(s // (4 * g), 4)))
    slots = torch.arange(s, device=q.device)
    for start in range(0, w, block):
        part = q[:, :, start : start + block]
        n = part.shape[2]
        grouped = part.reshape(b, h, g * n, d)
        x = torch.matmul(grouped, k.transpose(2, 3)).float().view(b, h, g, n, s) * factor
        if softcap is not None:
            x = softcap * torch.tanh(x / softcap)
        ahead = slots > s - w + start + torch.arange(n, device=q.device)[:, None]
        unseen = ahead if hidden is None else ahead | hidden[:, :, None, None]
        x = x.masked_fill(unseen, _NEVER)
        if lse is not None:
            total = lse[:, :, start : start + n].view(b, h, g, n)
        else:
            total = torch.logsumexp(x, -1)
            if sinks is not None:
                total = torch.logaddexp(total, sinks.view(1, h, g, 1).to(total.dtype))
        p = (x - total.nan_to_num(neginf=0.0)[..., None]).exp()
        columns = columns + p.sum(3) if over == "sum" else torch.maximum(columns, p.amax(3))
    scores = columns.mean(2) if reduce == "mean" else columns.amax(2) if reduce == "max" else columns.sum(2)
    return pooled(scores, kernel, pooling, pad_counts, among)


def pooled(x: Tensor, kernel: int, pooling: Pooling, pad_counts: bool, among: Tensor | None) -> Tensor:
    """Pooling with stride 1 over the last dimension of `[B, H, S]`."""
    if pooling == "none" or kernel == 1 or x.shape[-1] == 0:
        return x
    if among is not None:
        x = x.masked_fill(~among, _NEVER if pooling == "max" else 0.0)
    if pooling == "max":
        return F.max_pool1d(x, kernel, stride=1, padding=kernel // 2)
    if among is None:
        return F.avg_pool1d(x, kernel, stride=1, padding=kernel // 2, count_include_pad=pad_counts)
    total = F.avg_pool1d(x, kernel, stride=1, padding=kernel // 2)
    if pad_counts:
        return total
    return total / F.avg_pool1d(among.to(x.dtype), kernel, stride=1, padding=kernel // 2).clamp(min=0.5 / kernel)
