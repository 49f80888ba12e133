"""The same with one read and one write by index."""

from __future__ import annotations

from torch import Tensor

__all__ = ["compact_paged"]


def compact_paged(*, pages: Tensor, table: Tensor, keep: Tensor, start: Tensor, towards_end: bool) -> Tensor:
    """See `naive_compact_paged`."""
    page = pages.shape[2]
    row, head, place = (keep >= 0).nonzero(as_tuple=True)
    source, target = keep[row, head, place], start[row] + place
    moved = pages[table[row, source // page], head, source % page]
    pages[table[row, target // page], head, target % page] = moved
    return pages
