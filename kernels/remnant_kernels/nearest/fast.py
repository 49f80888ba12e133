"""The same by products of tiles with a running maximum: an E x C matrix never exists."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from remnant_kernels.nearest.naive import Nearest

__all__ = ["nearest"]

_TILE = 512


def nearest(k: Tensor, src: Tensor, kept: Tensor) -> Nearest:
    """See `naive_nearest`."""
    b, h, e = src.shape
    best = torch.full((b, h, e), float("-inf"), device=k.device)
    place = torch.zeros_like(src)
    for start in range(0, kept.shape[2], _TILE):
        part = kept[..., start : start + _TILE]
        # Flipped, so that the first maximum, which arg-max returns, is the latest place.
        target = _units(k, part).flip(2).transpose(2, 3)
        mask = (part < 0).flip(2)[:, :, None]
        last = start + part.shape[2] - 1
        for begin in range(0, e, _TILE):
            rows = slice(begin, begin + _TILE)
            x = (_units(k, src[..., rows]) @ target).masked_fill(mask, float("-inf"))
            top, at = x.max(-1)
            better = (top >= best[..., rows]) & (top > float("-inf"))
            best[..., rows] = torch.where(better, top, best[..., rows])
            place[..., rows] = torch.where(better, last - at, place[..., rows])
    return Nearest(best.masked_fill(src < 0, float("-inf")), place.masked_fill(src < 0, 0))


def _units(k: Tensor, slots: Tensor) -> Tensor:
    index = slots.clamp(min=0)[..., None].expand(*slots.shape, k.shape[3])
    return F.normalize(k.gather(2, index).float(), dim=-1, eps=1e-12)
