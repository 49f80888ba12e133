"""Picking per row, by whole rows of the vocabulary: indexing and `torch.where` go number by number."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_place", "choose"]


def at_place(x: Tensor, place: Tensor) -> Tensor:
    """`x[row, place[row]]` of every row: `[B, T, V]` and `[B]` to `[B, V]`."""
    b, t, v = x.shape
    return x.reshape(b * t, v).index_select(0, torch.arange(b, device=x.device) * t + place)


def choose(flag: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Per row `[B]` one of two `[B, V]`."""
    rows = torch.arange(flag.shape[0], device=flag.device)
    return torch.cat([no, yes.to(no.dtype)]).index_select(0, rows + flag * flag.shape[0])
