"""Attention-based scores: what the operation `window_score` must know of a view, and reductions that hosts share."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from remnant.errors import ConfigError, ShapeError
from remnant.kv.view import KVView
from remnant_kernels.op import get_op

__all__ = ["Pooling", "Reduce", "group_columns", "lengths", "reduce_group"]

Reduce = Literal["mean", "max", "sum", "any"]
Pooling = Literal["avg", "max", "none"]


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


def group_columns(
    view: KVView,
    how: Reduce,
    over: Literal["sum", "max"] = "sum",
    kernel: int = 1,
    pooling: Pooling = "none",
    pad_counts: bool = False,
    among: Tensor | None = None,
) -> Tensor:
    """What each slot received from the shown queries: softmax columns over the queries, then over the group, pooled.

    Args:
        view: with queries `[B, G*H, W, D]` of the W newest tokens; slots newer than a query are hidden from it, and
            queries of padding count for nothing.
        how: over the G query heads of a KV head, as in `reduce_group`.
        over: `sum` or `max` over the W queries.
        kernel: odd width, in slots, of a pooling that spreads scores over neighbours; 1 is none.
        pooling: `avg`, `max` or `none`.
        pad_counts: divide edge windows by the full kernel as the original SnapKV does, which scales the first and
            last scores down (0.6 and 0.8 for kernel 5); off by default, because slot 0 is usually the sink.
        among: `[B, H, S]` bool, the slots that take part in the pooling: the others spread nothing and, with
            `pad_counts` off, do not count as neighbours, so that padding leaves the scores beside it as they are in
            a lone row.

    Returns:
        `[B, H, S]` float32. No S x S matrix exists on the way.

    Raises:
        ShapeError: the view shows no queries.
        ConfigError: kernel is even or below 1.
    """
    if view.queries is None:
        raise ShapeError("the view shows no queries", accepted="a host that supplies what the policy's `needs` name")
    if kernel < 1 or kernel % 2 == 0:
        raise ConfigError(f"kernel={kernel}", accepted="an odd integer of at least 1")
    real = view.real_queries
    return get_op("window_score")(
        q=view.queries, k=view.k, hidden=None if view.valid is None else ~view.valid, sinks=view.sinks,
        scale=view.scale, softcap=view.softcap, over=over, reduce="max" if how == "any" else how, kernel=kernel,
        pooling=pooling, pad_counts=pad_counts, among=among, positions=view.positions, seen=view.seen,
        ordered=view.ordered, real=None if real is None else real[:, real.shape[1] - view.queries.shape[2] :],
    )  # fmt: skip
