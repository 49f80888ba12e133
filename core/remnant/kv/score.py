"""Attention-based scores without an S x S matrix: sums or maxima of softmax columns, streamed over tiles.

`naive_columns` is the truth that the tiled version is tested against.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from remnant.errors import ConfigError, ShapeError
from remnant.kv.view import KVView
from remnant_kernels.dispatch import wanted
from remnant_kernels.op import get_op

__all__ = [
    "Pooling",
    "Reduce",
    "attention_columns",
    "group_columns",
    "lengths",
    "naive_columns",
    "pool",
    "reduce_group",
]

Reduce = Literal["mean", "max", "sum", "any"]
Pooling = Literal["avg", "max", "none"]
_QUERY_BLOCK = 128
_NEVER = float("-inf")


def reduce_group(x: Tensor, how: Reduce) -> Tensor:
    """Reduce query heads to their KV head: `[B, H, G, ...]` -> `[B, H, ...]`.

    `any` is the maximum: a slot counts when one query head of the group wants it.
    """
    if how == "mean":
        return x.mean(2)
    return x.sum(2) if how == "sum" else x.amax(2)


def lengths(x: Tensor) -> Tensor:
    """Euclidean norms over the last dimension, float32: `[..., D]` -> `[...]`."""
    x = x.float()
    return (x * x).sum(-1).sqrt()  # a product is twice as fast as `square`, to the same bits


def pool(x: Tensor, kernel: int, how: Pooling = "avg", pad_counts: bool = False, among: Tensor | None = None) -> Tensor:
    """Spread scores over neighbours: 1-D pooling with stride 1 and the same length.

    Args:
        x: `[B, H, S]` float32.
        kernel: odd width in tokens; 1 changes nothing.
        how: `avg`, `max` or `none`.
        pad_counts: divide edge windows by the full kernel as the original SnapKV does, which scales the first and
            last scores down (0.6 and 0.8 for kernel 5); off by default, because slot 0 is usually the sink.
        among: `[B, H, S]` bool, the slots that take part: the others spread nothing and, with `pad_counts` off, do
            not count as neighbours, so that padding leaves the scores beside it as they are in a lone row.

    Raises:
        ConfigError: kernel is even or below 1.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ConfigError(f"kernel={kernel}", accepted="an odd integer of at least 1")
    if how == "none" or kernel == 1 or x.shape[-1] == 0:
        return x
    if among is not None:
        x = x.masked_fill(~among, _NEVER if how == "max" else 0.0)
    if how == "max":
        return F.max_pool1d(x, kernel, stride=1, padding=kernel // 2)
    if among is None or pad_counts:
        return F.avg_pool1d(x, kernel, stride=1, padding=kernel // 2, count_include_pad=pad_counts)
    total = F.avg_pool1d(x, kernel, stride=1, padding=kernel // 2)
    return total / F.avg_pool1d(among.to(x.dtype), kernel, stride=1, padding=kernel // 2).clamp(min=0.5 / kernel)


def _need_queries(view: KVView) -> Tensor:
    if view.queries is None:
        raise ShapeError("the view shows no queries", accepted="a host that supplies what the policy's `needs` name")
    return view.queries


def _logits(q: Tensor, first: int, view: KVView) -> Tensor:
    """Masked float32 logits `[B, H, G, n, S]` of queries `[B, G*H, n, D]` standing at positions `first` and on."""
    b, h, s = view.shape
    grouped = q.reshape(b, h, -1, *q.shape[2:]).flatten(2, 3)
    x = torch.matmul(grouped, view.k.transpose(2, 3)).float().view(b, h, -1, q.shape[2], s) * view.scale
    if view.softcap is not None:
        x = view.softcap * torch.tanh(x / view.softcap)
    q_pos = torch.arange(first, first + q.shape[2], device=q.device).view(-1, 1)
    if view.valid is None and view.ordered:
        # Slots that are newer than the first query stand at the end, and there are no more than tokens came since.
        old = max(s - max(view.seen - 1 - first, 0), 0)
        x[..., old:].masked_fill_(view.positions[:, :, None, None, old:] > q_pos, _NEVER)
        return x
    hidden = view.positions[:, :, None, None, :] > q_pos
    if view.valid is not None:
        hidden = hidden | ~view.valid[:, :, None, None, :]
    return x.masked_fill(hidden, _NEVER)


def _probabilities(x: Tensor, view: KVView) -> Tensor:
    """Softmax over the last dimension, a sink logit included where the layer has one; empty rows give zeros."""
    if view.sinks is not None:
        b, h, g, n, _ = x.shape
        extra = view.sinks.float().view(1, h, g, 1, 1).expand(b, h, g, n, 1)
        return torch.cat([x, extra], -1).softmax(-1)[..., :-1]
    return torch.nan_to_num(x.softmax(-1))


def attention_columns(view: KVView, over: Literal["sum", "max"] = "sum", block: int = _QUERY_BLOCK) -> Tensor:
    """What each slot received from the shown queries: softmax columns reduced over the queries.

    Args:
        view: with queries `[B, G*H, W, D]` of the W newest tokens; slots newer than a query are hidden from it.
        over: `sum` or `max` over the W queries.
        block: queries handled at once; the peak is `B * G*H * block * S` float32 values.

    Returns:
        `[B, H, G, S]` float32, per query head; see `reduce_group`.
    """
    q = _need_queries(view)
    b, h, s = view.shape
    w = q.shape[2]
    out = torch.zeros(b, h, view.group, s, device=q.device)
    # The query heads of a block are one matrix of at most S / 4 rows: a short cache sees no square of its own size.
    block = max(1, min(block, max(s // (4 * view.group), 4)))
    for start in range(0, w, block):
        part = q[:, :, start : start + block]
        x = _logits(part, view.seen - w + start, view)
        if view.real_queries is not None:
            real = view.real_queries[:, view.real_queries.shape[1] - w :][:, start : start + part.shape[2]]
            x = x.masked_fill(~real[:, None, None, :, None], _NEVER)
        p = _probabilities(x, view)
        out = out + p.sum(3) if over == "sum" else torch.maximum(out, p.amax(3))
    return out


def group_columns(view: KVView, how: Reduce, over: Literal["sum", "max"] = "sum") -> Tensor:
    """`attention_columns`, reduced to KV heads: `[B, H, S]` float32.

    Where a kernel runs on this device it reads every key once for a whole group and stores no row of probabilities.
    """
    if _kernel_reads(view) and how != "any":
        return get_op("window_score")(
            q=_need_queries(view), k=view.k, hidden=None if view.valid is None else ~view.valid, sinks=view.sinks,
            scale=view.scale, softcap=view.softcap, over=over, reduce=how,
        )  # fmt: skip
    return reduce_group(attention_columns(view, over), how)


def _kernel_reads(view: KVView) -> bool:
    """Whether slot order is all a query has to know, and a kernel is what runs here."""
    q = view.queries
    plain = view.ordered and view.real_queries is None and q is not None and q.shape[2] <= view.shape[2]
    return plain and wanted("window_score", view.k)


def naive_columns(view: KVView, over: Literal["sum", "max"] = "sum") -> Tensor:
    """The same by loops over batch, head and query, in float64: slow, and the truth."""
    q = _need_queries(view).double()
    b, h, s = view.shape
    g, w = view.group, q.shape[2]
    out = torch.zeros(b, h, g, s, dtype=torch.float64)
    for bi in range(b):
        for head in range(h * g):
            for i in range(w):
                if view.real_queries is not None and not view.real_queries[bi, i - w]:
                    continue
                kv = head // g
                x = (view.k[bi, kv].double() @ q[bi, head, i]) * view.scale
                if view.softcap is not None:
                    x = view.softcap * torch.tanh(x / view.softcap)
                seen = view.positions[bi, kv] <= view.seen - w + i
                if view.valid is not None:
                    seen = seen & view.valid[bi, kv]
                e = torch.where(seen, x.exp(), 0.0)
                extra = view.sinks[head].double().exp() if view.sinks is not None else 0.0
                p = e / (e.sum() + extra).clamp(min=1e-300)
                row = out[bi, kv, head % g]
                out[bi, kv, head % g] = row + p if over == "sum" else torch.maximum(row, p)
    return out
