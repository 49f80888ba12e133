"""The truth: one query at a time over the slots it may see, then pooling by a window that is moved along."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Over", "Pooling", "Reduce", "naive_window_score"]

Over = Literal["sum", "max"]
Reduce = Literal["mean", "max", "sum"]
Pooling = Literal["avg", "max", "none"]


def naive_window_score(
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
    """Softmax columns of the W newest queries, reduced over queries, then over the group, then pooled.

    Args:
        q: `[B, G*H, W, D]`, queries of the W newest tokens; query i stands at position `seen - W + i` and sees the
            slots of that position and below.
        k: `[B, H, S, D]`.
        lse: `[B, G*H, W]` float32 natural log-sum-exp of each query over what it sees, sinks and masks included, if
            the attention before knows it: then keys are read once.
        hidden: `[B, H, S]` bool, slots that nobody sees.
        sinks: `[G*H]` float32, a logit per head that takes part in the denominator.
        scale: of the logits; `D ** -0.5` if left out.
        softcap: logits become `softcap * tanh(logits / softcap)`.
        over: `sum` or `max` over the queries.
        reduce: over the G query heads of a KV head.
        kernel: odd width of the pooling, in slots.
        pooling: `avg`, `max` or `none`.
        pad_counts: windows of an average are divided by `kernel` at the edges too.
        among: `[B, H, S]` bool, slots that take part in the pooling; others spread nothing, and do not count.
        positions: `[B, H, S]` int64, the position of every slot; slot i holds position i if left out.
        seen: tokens so far, at least W, one more than the newest position; S if left out.
        ordered: slots stand in ascending order of position, none twice: then only the W newest can be newer than a
            query, and where nothing is hidden only their positions are looked at.
        real: `[B, W]` bool, False for queries of padding, which see nothing.

    Returns:
        `[B, H, S]` float32; 0 where no query sees a slot and, with `among`, whatever its neighbours spread there.

    Source: Li et al. 2024, arXiv 2404.14469. Differs: grouped to KV heads; see `remnant.kv.policies.snapkv`.
    """
    b, hq, w, d = q.shape
    h, s = k.shape[1], k.shape[2]
    g, factor = hq // h, d**-0.5 if scale is None else scale
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    at = torch.arange(s, device=q.device).expand(b, h, s) if positions is None else positions
    first = (s if seen is None else seen) - w
    columns = torch.zeros(b, hq, s, dtype=wide, device=q.device)
    for i in range(b):
        for head in range(hq):
            for row in range(w):
                sees = at[i, head // g] <= first + row
                if hidden is not None:
                    sees = sees & ~hidden[i, head // g]
                if real is not None:
                    sees = sees & real[i, row]
                x = (k[i, head // g, sees].to(wide) @ q[i, head, row].to(wide)) * factor
                if softcap is not None:
                    x = softcap * torch.tanh(x / softcap)
                every = x if sinks is None else torch.cat([x, sinks[head : head + 1].to(wide)])
                total = torch.logsumexp(every, 0) if lse is None else lse[i, head, row].to(wide)
                p, old = (x - total).exp(), columns[i, head, sees]
                columns[i, head, sees] = old + p if over == "sum" else torch.maximum(old, p)
    grouped = columns.view(b, h, g, s)
    scores = grouped.mean(2) if reduce == "mean" else grouped.amax(2) if reduce == "max" else grouped.sum(2)
    return _pooled(scores, kernel, pooling, pad_counts, among)


def _pooled(x: Tensor, kernel: int, pooling: Pooling, pad_counts: bool, among: Tensor | None) -> Tensor:
    if pooling == "none" or kernel == 1:
        return x
    out = torch.zeros_like(x)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in x.shape)).tolist():
        b, h, at = index
        places = range(max(0, at - kernel // 2), min(x.shape[2], at + kernel // 2 + 1))
        near = [x[b, h, p] for p in places if among is None or bool(among[b, h, p])]
        if pooling == "max":
            out[b, h, at] = max(near) if near else float("-inf")
        elif near:
            out[b, h, at] = sum(near) / (kernel if pad_counts else len(near))
    return out
