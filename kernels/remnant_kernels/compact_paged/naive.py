"""The truth: read all that stays, then write it, one slot at a time."""

from __future__ import annotations

from torch import Tensor

__all__ = ["naive_compact_paged"]


def naive_compact_paged(*, pages: Tensor, table: Tensor, keep: Tensor, start: Tensor, towards_end: bool) -> Tensor:
    """Pack the slots that stay into consecutive slots, in place; pages in front or behind can then be freed.

    Args:
        pages: `[N, H, P, C]`, a pool of pages of P slots; C holds key and value of a slot side by side.
        table: `[B, T]` int64, the pages of each sequence in order; slot s lies in page `table[b, s // P]`.
        keep: `[B, H, K]` int64, slots that stay, ascending within a head and filled up with -1 at its end.
        start: `[B]` int64, where the first kept slot goes; the i-th goes to `start + i`.
        towards_end: slots only move up (`start + i >= keep[i]`, as vLLM needs it); otherwise they only move down.

    Returns:
        `pages`. Other slots of the sequence hold anything afterwards; pages of others are untouched.
    """
    page = pages.shape[2]
    for b in range(keep.shape[0]):
        for h in range(keep.shape[1]):
            slots = [slot for slot in keep[b, h].tolist() if slot >= 0]
            rows = [pages[int(table[b, slot // page]), h, slot % page].clone() for slot in slots]
            for i, row in enumerate(rows):
                to = int(start[b]) + i
                pages[int(table[b, to // page]), h, to % page] = row
    return pages
