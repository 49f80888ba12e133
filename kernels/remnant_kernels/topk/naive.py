"""The truth: sort every row, newest first among equals."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Chosen", "naive_topk"]


class Chosen(NamedTuple):
    """Slots that stay.

    Attributes:
        indices: `[B, H, K]` int64, ascending, filled up with -1.
        counts: `[B, H]` int64, how many are real.
    """

    indices: Tensor
    counts: Tensor


def naive_topk(scores: Tensor, k: Tensor, width: int, lens: Tensor | None = None) -> Chosen:
    """The k highest scores of each row; of equal ones the later slot.

    Args:
        scores: `[B, H, S]` float32 without NaN; inf forces a slot in, -inf is taken last.
        k: `[B, H]` int64, at least 0; what exceeds the slots in use is cut.
        width: K of the result, at least the largest of k.
        lens: `[B, H]` int64, slots in use; None is all.

    Returns:
        See `Chosen`.

    Example: naive_topk(torch.tensor([[[3., 1., 3., 2.]]]), torch.tensor([[2]]), 2).indices -> [[[0, 2]]]
    """
    b, h, s = scores.shape
    indices = torch.full((b, h, width), -1, dtype=torch.int64, device=scores.device)
    counts = torch.zeros(b, h, dtype=torch.int64, device=scores.device)
    for i in range(b):
        for j in range(h):
            n = s if lens is None else int(lens[i, j])
            row = scores[i, j, :n].tolist()
            best = sorted(range(n), key=lambda slot, row=row: (row[slot], slot), reverse=True)[: int(k[i, j])]
            indices[i, j, : len(best)] = torch.tensor(sorted(best), dtype=torch.int64, device=scores.device)
            counts[i, j] = len(best)
    return Chosen(indices, counts)
