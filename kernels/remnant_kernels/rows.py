"""Rows of a store by slot number: what every operation in plain torch reads with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["take"]


def take(x: Tensor, slots: Tensor) -> Tensor:
    """Gather slots: x `[B, H, S, ...]`, slots `[B, H, N]` int64 -> `[B, H, N, ...]`; -1 reads slot 0, mask it after.

    Whole rows are copied at once, several times faster than `gather` with an index for every channel.
    """
    slots = slots.clamp(min=0)
    if x.dim() == 3:
        return x.gather(2, slots)
    b, h, s = x.shape[:3]
    if not x.is_contiguous():
        rows, heads = (torch.arange(n, device=x.device) for n in (b, h))
        return x[rows[:, None, None], heads[:, None], slots]
    begin = torch.arange(b * h, device=x.device).view(b, h, 1) * s
    return x.flatten(0, 2).index_select(0, (begin + slots).flatten()).view(*slots.shape, *x.shape[3:])
