"""The same with one scatter in float32 for a tile of evicted values."""

from __future__ import annotations

from torch import Tensor

from remnant_kernels.rows import take

__all__ = ["fold"]

_TILE = 512


def fold(v: Tensor, kept: Tensor, own: Tensor, src: Tensor, dst: Tensor, weight: Tensor) -> Tensor:
    """See `naive_fold`; the peak beside the result is `B * H * _TILE * Dv` float32 values."""
    total = take(v, kept).masked_fill((kept < 0).unsqueeze(-1), 0.0).float() * own.unsqueeze(-1)
    for start in range(0, src.shape[2], _TILE):
        part = src[..., start : start + _TILE]
        to, gone = dst[..., start : start + _TILE].unsqueeze(-1), (part < 0).unsqueeze(-1)
        share = weight[..., start : start + _TILE].unsqueeze(-1)
        # Not a product with 0: an unused slot may hold NaN.
        values = (take(v, part).float() * share).masked_fill(gone, 0.0)
        total = total.scatter_add(2, to.expand_as(values), values)
    return total.to(v.dtype)
