"""The truth: one slot at a time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["naive_compact"]


def naive_compact(*, k: Tensor, v: Tensor, keep: Tensor, sides: Sequence[Tensor] = (), spare: int = 0,
                  in_place: bool = False) -> tuple[Tensor, ...]:  # fmt: skip
    """Move the slots that stay to the front of every head.

    Args:
        k: `[B, H, S, D]`.
        v: `[B, H, S, Dv]`.
        keep: `[B, H, K]` int64, ascending within a head and filled up with -1; a filled place holds zeros afterwards.
        sides: further tensors `[B, H, S]`, of any dtype.
        spare: slots of room behind the kept ones, for tokens to come; their content is zeros. Not with `in_place`.
        in_place: write into the tensors themselves, whose other slots then hold anything; without, into new ones.

    Returns:
        Keys, values and sides, `[B, H, K + spare, ...]`; with `in_place` views of what was given.
    """
    b, h, kept = keep.shape
    out: list[Tensor] = []
    for x in (k, v, *sides):
        moved = x.new_zeros(b, h, kept + spare, *x.shape[3:])
        for i in range(b):
            for j in range(h):
                for place in range(kept):
                    slot = int(keep[i, j, place])
                    if slot >= 0:
                        moved[i, j, place] = x[i, j, slot]
        if in_place:
            x[:, :, :kept] = moved
            moved = x[:, :, :kept]
        out.append(moved)
    return tuple(out)
