"""The truth: one evicted value after another is added to its target."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["naive_fold"]


def naive_fold(v: Tensor, kept: Tensor, own: Tensor, src: Tensor, dst: Tensor, weight: Tensor) -> Tensor:
    """Kept values, each a weighted sum of itself and of the evicted values that go to it.

    Args:
        v: `[B, H, S, Dv]` values before the eviction.
        kept: `[B, H, C]` int64 slots that stay, -1 for none (zeros).
        own: `[B, H, C]` float32, what a kept value is multiplied by.
        src: `[B, H, E]` int64 slots that go, -1 for none.
        dst: `[B, H, E]` int64, the place among the kept that each goes to.
        weight: `[B, H, E]` float32, what each is multiplied by.

    Returns:
        `[B, H, C, Dv]` in the dtype of the values, summed in float32.

    Source: Wan et al. 2024, arXiv 2406.13035; weights as `remnant.kv.merge.fold_weights` gives them.
    """
    b, h, count = kept.shape
    wide = torch.float64 if v.dtype == torch.float64 else torch.float32
    out = torch.zeros(b, h, count, v.shape[3], dtype=wide, device=v.device)
    for i in range(b):
        for j in range(h):
            for c in range(count):
                if kept[i, j, c] >= 0:
                    out[i, j, c] = own[i, j, c].to(wide) * v[i, j, int(kept[i, j, c])].to(wide)
            for e in range(src.shape[2]):
                if src[i, j, e] >= 0:
                    out[i, j, int(dst[i, j, e])] += weight[i, j, e].to(wide) * v[i, j, int(src[i, j, e])].to(wide)
    return out.to(v.dtype)
