"""The truth: one evicted key against all kept ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Nearest", "naive_nearest"]


class Nearest(NamedTuple):
    """Per evicted key.

    Attributes:
        similarity: `[B, H, E]` float32 cosine, -1 to 1; -inf where there is no evicted or no kept key.
        place: `[B, H, E]` int64 among the kept keys; 0 there.
    """

    similarity: Tensor
    place: Tensor


def naive_nearest(k: Tensor, src: Tensor, kept: Tensor) -> Nearest:
    """The kept key with the largest cosine similarity; of equal ones the later.

    Args:
        k: `[B, H, S, D]`.
        src: `[B, H, E]` int64 slots that go, -1 for none.
        kept: `[B, H, C]` int64 slots that stay, -1 for none.

    Returns:
        See `Nearest`. A key of norm 0 has similarity 0 to everything.

    Source: Wan et al. 2024, arXiv 2406.13035.
    """
    b, h, e = src.shape
    wide = torch.float64 if k.dtype == torch.float64 else torch.float32
    similarity = torch.full((b, h, e), float("-inf"), dtype=wide, device=k.device)
    place = torch.zeros(b, h, e, dtype=torch.int64, device=k.device)
    for i in range(b):
        for j in range(h):
            targets = [(c, slot) for c, slot in enumerate(kept[i, j].tolist()) if slot >= 0]
            for at, slot in enumerate(src[i, j].tolist()):
                if slot < 0 or not targets:
                    continue
                x = _unit(k[i, j, slot].to(wide))
                likeness = [float(x @ _unit(k[i, j, other].to(wide))) for _, other in targets]
                best = max(range(len(targets)), key=lambda n, x=likeness: (x[n], n))
                similarity[i, j, at], place[i, j, at] = likeness[best], targets[best][0]
    return Nearest(similarity, place)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm().clamp(min=1e-12)
