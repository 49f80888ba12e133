"""Protection, top-k with deterministic ties, and the step from scores to a `Keep`: written once for all policies."""

from __future__ import annotations

import torch
from torch import Tensor

from remnant.errors import ShapeError
from remnant.kv.view import Keep, KVView

__all__ = [
    "KEPT",
    "PADDING",
    "effective_budget",
    "first_positions",
    "protect",
    "select",
    "select_flat",
    "top_mask",
    "victims",
]

KEPT = float("inf")
"""Score of a protected slot."""
PADDING = float("-inf")
"""Score of a slot that holds nothing: it goes before every real token."""


def first_positions(view: KVView) -> Tensor:
    """Position of each row's first real token, `[B, 1, 1]` or `[B, H, 1]`; padding does not count.

    The host remembers it as `state["start"]`; without that, it is the first position that is still stored.
    """
    start = view.state.get("start")
    if start is not None:
        return start.view(-1, 1, 1)
    if view.valid is None:
        return torch.zeros(view.shape[0], 1, 1, dtype=torch.int64, device=view.k.device)
    return torch.where(view.valid, view.positions, view.seen).amin(-1, keepdim=True)


def protect(scores: Tensor, view: KVView, sinks: int = 0, recent: int = 0) -> Tensor:
    """Put protected slots above, and padding below, every other score.

    Args:
        scores: `[B, H, S]` float32, higher is kept.
        view: supplies positions and validity. Recency goes by position, never by slot.
        sinks: first real tokens of each row that stay; padding does not count.
        recent: newest tokens that stay.

    Returns:
        `[B, H, S]` float32, `KEPT` on protected slots and `PADDING` on invalid ones.
    """
    p = view.positions
    out = scores.float()
    if recent > 0:
        out = out.masked_fill(p >= view.seen - recent, KEPT)
    if sinks > 0:
        out = out.masked_fill(p < first_positions(view) + sinks, KEPT)
    if view.valid is not None:
        out = out.masked_fill(~view.valid, PADDING)
    return out


def effective_budget(budget: Tensor | int, view: KVView) -> Tensor | int:
    """Clamp a budget to what is stored: `[B, H]` int64 or an int, never above S."""
    s = view.shape[2]
    return min(budget, s) if isinstance(budget, int) else budget.clamp(max=s)


def top_mask(scores: Tensor, k: Tensor | int, positions: Tensor) -> Tensor:
    """Mark the k highest scores of each row; equal scores go to the larger position.

    Args:
        scores: `[..., S]` float32 without NaN.
        k: an int, or `[...]` int64 with a count per row; between 0 and S.
        positions: `[..., S]` int64, distinct within a row wherever scores may tie.

    Returns:
        `[..., S]` bool with exactly k True per row.

    Raises:
        ShapeError: a score is NaN.
    """
    s = scores.shape[-1]
    if bool(torch.isnan(scores).any()):
        raise ShapeError("a score is NaN", accepted="finite or infinite float32 scores")
    counts = torch.full(scores.shape[:-1], k, device=scores.device) if isinstance(k, int) else k
    if s == 0 or int(counts.max()) == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if isinstance(k, int) and 2 * k > s:  # the k-th from above is the (s - k + 1)-th from below, which are fewer
        threshold = scores.topk(s - k + 1, dim=-1, largest=False).values[..., -1:]
    else:
        top = scores.topk(int(counts.max()), dim=-1).values
        threshold = top.gather(-1, (counts - 1).clamp(min=0).unsqueeze(-1))
    above, equal = scores > threshold, scores == threshold
    missing = (counts - above.sum(-1)).unsqueeze(-1)
    if bool((equal.sum(-1, keepdim=True) == missing).all()):
        mask = above | equal
    else:
        order = positions.argsort(dim=-1, descending=True)
        rank = equal.gather(-1, order).long().cumsum(-1)
        mask = above | (equal & (torch.empty_like(rank).scatter_(-1, order, rank) <= missing))
    return mask & (counts > 0).unsqueeze(-1)


def _indices(mask: Tensor, view: KVView) -> tuple[Tensor, Tensor]:
    """Slots marked in `mask` `[B, H, S]`, ascending by position, padded with -1; and their counts `[B, H]`."""
    s = mask.shape[-1]
    counts = mask.sum(-1)
    widest = int(counts.max()) if counts.numel() else 0
    # Unmarked slots sort behind every position, so the first `widest` are the marked ones in order.
    key = torch.where(mask, view.positions, torch.iinfo(torch.int64).max)
    if view.ordered:
        key = torch.where(mask, torch.arange(s, device=mask.device), s)
    order = key.argsort(dim=-1, stable=True)[..., :widest]
    beyond = torch.arange(widest, device=mask.device) >= counts.unsqueeze(-1)
    return order.masked_fill(beyond, -1), counts


def select(scores: Tensor, budget: Tensor | int, view: KVView) -> Keep:
    """Keep the highest-scoring slots of every head.

    Args:
        scores: `[B, H, S]` float32, already protected; higher is kept. NaN is an error.
        budget: tokens kept per head, an int or `[B, H]` int64.
        view: supplies positions for ties and order.

    Returns:
        Keep with indices `[B, H, K]` int64, ascending by position; ragged when heads keep different counts.

    Raises:
        ShapeError: scores do not fit the view, or hold NaN.
    """
    if scores.shape != view.positions.shape:
        raise ShapeError(f"scores {list(scores.shape)}", accepted=f"{list(view.positions.shape)}")
    k = effective_budget(budget, view)
    if isinstance(k, int) and k >= view.shape[2]:
        return Keep.everything(view)
    if view.ordered and isinstance(k, int):
        mask = top_mask(scores, k, view.positions)
        return Keep(mask.nonzero()[:, -1].view(*scores.shape[:2], k))
    indices, counts = _indices(top_mask(scores, k, view.positions), view)
    same = bool((counts == counts.flatten()[0]).all())
    return Keep(indices, None if same else counts)


def select_flat(scores: Tensor, total: Tensor | int, view: KVView) -> Keep:
    """Keep the `total` highest slots of each sequence, whichever heads they belong to.

    Args:
        scores: `[B, H, S]` float32, comparable between heads.
        total: slots kept over all heads, an int or `[B]` int64.
        view: supplies positions for ties and order; between heads a tie goes to the larger position, then head.

    Returns:
        A ragged Keep; the counts of each sequence sum to `min(total, H * S)`.
    """
    b, h, s = view.shape
    k = min(total, h * s) if isinstance(total, int) else total.clamp(max=h * s)
    rank = view.positions * h + torch.arange(h, device=scores.device).view(1, h, 1)
    mask = top_mask(scores.reshape(b, h * s), k, rank.reshape(b, h * s)).view(b, h, s)
    indices, counts = _indices(mask, view)
    return Keep(indices, counts)


def victims(scores: Tensor, count: int, view: KVView) -> Tensor:
    """The `count` lowest slots of every head: what `select` with a budget of `S - count` would drop.

    Args:
        scores: `[B, H, S]` float32, already protected.
        count: slots to drop, `0 <= count <= S`.
        view: supplies positions; of equal scores the smallest position goes.

    Returns:
        `[B, H, count]` int64 slots, in no particular order.
    """
    if count == 1:
        lowest = scores == scores.amin(-1, keepdim=True)
        # Position order among equals without a sort: everything else is moved out of reach.
        return torch.where(lowest, view.positions, torch.iinfo(torch.int64).max).argmin(-1, keepdim=True)
    mask = ~top_mask(scores, scores.shape[-1] - count, view.positions)
    return mask.nonzero()[:, -1].view(*scores.shape[:2], count)
