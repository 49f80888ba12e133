"""The same by products of tiles with a running maximum, so that an E x C matrix never exists; few keys at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from remnant_kernels.nearest.naive import Nearest
from remnant_kernels.rows import take

__all__ = ["nearest"]

_NEVER = float("-inf")
_TILE = 512
"""Keys of either side at once; the peak is `B * H * (_TILE * _TILE + C * D)` float32 values."""
_FEW = 16


def nearest(k: Tensor, src: Tensor, kept: Tensor) -> Nearest:
    """See `naive_nearest`."""
    if src.shape[2] <= _FEW <= kept.shape[2] and k.dtype == torch.float32:
        best, place = _of_few(k, src, kept)
    else:
        best, place = _by_tiles(k, src, kept)
    best = best.masked_fill(src < 0, _NEVER)
    return Nearest(best, place.masked_fill(best == _NEVER, 0))


def _by_tiles(k: Tensor, src: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    tile = max(16, min(_TILE, k.shape[2] // 4))
    targets: list[tuple[Tensor, Tensor, int]] = []
    for start in range(0, kept.shape[2], tile):
        part = kept[..., start : start + tile]
        # Flipped, so that the first maximum, which arg-max returns, is the latest place.
        mask = (part < 0).flip(2).unsqueeze(2)
        targets.append((_units(k, part).flip(2).transpose(2, 3), mask, start + part.shape[2] - 1))
    best, place = torch.full(src.shape, _NEVER, device=k.device), torch.zeros_like(src)
    for start in range(0, src.shape[2], tile):
        rows = slice(start, start + tile)
        units, top, at = _units(k, src[..., rows]), best[..., rows], place[..., rows]
        for target, mask, last in targets:
            x = (units @ target).masked_fill_(mask, _NEVER)
            found = x.argmax(-1)
            likeness = x.gather(-1, found.unsqueeze(-1)).squeeze(-1)
            better = likeness >= top
            top, at = torch.where(better, likeness, top), torch.where(better, last - found, at)
        best[..., rows], place[..., rows] = top, at
    return best, place


def _of_few(k: Tensor, src: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """For the few slots that go at a decoded token: every key is read in place, none is gathered."""
    length = torch.linalg.vector_norm(k, dim=-1)
    gone = k.gather(2, src.clamp(min=0).unsqueeze(-1).expand(-1, -1, -1, k.shape[3]))  # so few that `take` takes longer
    x = F.normalize(gone, dim=-1, eps=1e-12) @ k.transpose(2, 3) / length.clamp(min=1e-12).unsqueeze(2)
    at = kept.clamp(min=0).unsqueeze(2).expand(-1, -1, src.shape[2], -1)
    x = x.gather(-1, at).masked_fill((kept < 0).unsqueeze(2), _NEVER).flip(-1)
    place = x.argmax(-1)
    return x.gather(-1, place.unsqueeze(-1)).squeeze(-1), kept.shape[2] - 1 - place


def _units(k: Tensor, slots: Tensor) -> Tensor:
    return F.normalize(take(k, slots).float(), dim=-1, eps=1e-12)
