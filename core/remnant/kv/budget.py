"""Who gets how many tokens: integer shares whose sums are exact, so that no rounding ever exceeds a budget."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["allocate_floor", "largest_remainder", "portion", "pyramid", "trim"]


def portion(tokens: int, share: float) -> int:
    """A share of some tokens, rounded down, with the share read as the decimal that was written.

    Example: portion(100, 0.29) -> 29, where `100 * 0.29` in floating point falls just below 29.
    """
    return int(tokens * share + 1e-12 * tokens)  # far above the error of the product, and traceable by torch.compile


def largest_remainder(weights: Tensor, total: Tensor | int) -> Tensor:
    """Split totals in proportion to weights into integers that sum to the totals exactly.

    Each part is its exact share rounded down or up; the largest fractions are rounded up, and of equal fractions
    those with the lower index. A row without any weight is split evenly.

    Args:
        weights: `[..., N]` int64, not negative.
        total: an int or `[...]` int64, not negative.

    Returns:
        `[..., N]` int64. A part of a weight 0 is 0 unless its whole row is 0, and no part exceeds its weight as long
        as the total does not exceed the sum of the weights.

    Example: largest_remainder(torch.tensor([1, 1, 1]), 5) -> [2, 2, 1]
    """
    rows = weights.shape[:-1]
    goal = torch.full(rows, total, device=weights.device) if isinstance(total, int) else total
    even = (weights == 0).all(-1, keepdim=True)
    weights = torch.where(even, torch.ones_like(weights), weights)
    whole = weights.sum(-1, keepdim=True)
    exact = weights * goal.unsqueeze(-1)
    parts, rest = exact // whole, exact % whole
    rank = rest.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return parts + (rank < (goal - parts.sum(-1)).unsqueeze(-1)).long()


def allocate_floor(wanted: Tensor, room: Tensor, least: int) -> Tensor:
    """Mix a wanted split with an equal floor per head, without changing its sum and without exceeding any head.

    Args:
        wanted: `[B, H]` int64 tokens per head, `wanted <= room`.
        room: `[B, H]` int64 slots that a head can fill.
        least: tokens that every head gets first, as far as its room and an equal part of the sum allow.

    Returns:
        `[B, H]` int64 with the row sums of `wanted`.
    """
    total = wanted.sum(-1)
    first = torch.minimum(room, (total // wanted.shape[-1]).clamp(max=least).unsqueeze(-1))
    parts = torch.minimum(first + largest_remainder(wanted, total - first.sum(-1)), room)
    spare = room - parts
    return parts + largest_remainder(spare, total - parts.sum(-1))


def pyramid(middle: int, layers: int, longest: int, beta: int = 20) -> list[int]:
    """PyramidKV's schedule: budgets that fall linearly from the first layer to the last, before the window is added.

    Args:
        middle: tokens per layer on average.
        layers: number of layers.
        longest: the most that a layer can use, that is what is there besides the window.
        beta: the last layer gets about `middle // beta`.

    Returns:
        Tokens per layer as the original computes them. Its step is rounded down, so the sum can exceed
        `layers * middle` by half the lost remainder per layer; see `trim`.

    Example: pyramid(2016, 32, 10**6) -> [3932, 3809, ..., 119]
    """
    if layers == 1:
        return [min(middle, longest)]
    low = middle // beta
    high = 2 * middle - low
    if high >= longest:
        high = longest
        low = 2 * middle - high
    step = (high - low) // (layers - 1)
    return [high - i * step for i in range(layers)]


def trim(budgets: list[int], total: int) -> list[int]:
    """Lower budgets evenly, the first ones by one more where it does not divide, until they sum to `total` or less.

    Args:
        budgets: not negative.
        total: not negative.

    Example: trim([5, 3, 2], 8) -> [4, 2, 2]
    """
    out = list(budgets)
    excess = sum(out) - total
    while excess > 0:
        open_ = [i for i, n in enumerate(out) if n > 0]
        each, more = divmod(excess, len(open_))
        for rank, i in enumerate(open_):
            out[i] -= min(out[i], each + (rank < more))
        excess = sum(out) - total
    return out
