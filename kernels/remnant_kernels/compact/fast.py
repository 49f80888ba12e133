"""The same with one `gather` per tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["compact"]


def compact(*, k: Tensor, v: Tensor, keep: Tensor, sides: Sequence[Tensor] = (), spare: int = 0,
            in_place: bool = False) -> tuple[Tensor, ...]:  # fmt: skip
    """See `naive_compact`."""
    kept, filled = keep.shape[2], keep < 0
    index = keep.clamp(min=0)
    gaps = bool(filled.any())
    out: list[Tensor] = []
    for x in (k, v, *sides):
        where = index.view(*index.shape, *[1] * (x.dim() - 3)).expand(*index.shape, *x.shape[3:])
        moved = x.gather(2, where)
        if gaps:
            moved = moved.masked_fill(filled.view(*filled.shape, *[1] * (x.dim() - 3)), 0)
        if in_place:
            x[:, :, :kept] = moved
            moved = x[:, :, :kept]
        elif spare:
            moved = torch.cat([moved, x.new_zeros(*x.shape[:2], spare, *x.shape[3:])], 2)
        out.append(moved)
    return tuple(out)
