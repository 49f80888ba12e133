"""The truth: put the kept channels back among zeros, and attend as always."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from remnant_kernels.decode_attention.naive import naive_decode_attention

__all__ = ["Pruned", "naive_pruned_decode"]


class Pruned(NamedTuple):
    """What a decoded token reads: `out` `[B, G*H, Dv]` and `lse` `[B, G*H]` float32, natural."""

    out: Tensor
    lse: Tensor


def naive_pruned_decode(
    q: Tensor, k_pruned: Tensor, channels: Tensor, k_recent: Tensor, v: Tensor, scale: float | None = None
) -> Pruned:
    """Attention of one new token per sequence over pruned keys, then recent whole ones.

    Args:
        q: `[B, G*H, D]`.
        k_pruned: `[B, H, S, D']`, keys of the older slots, kept channels only.
        channels: `[B, H, D']` int64, which channels those are.
        k_recent: `[B, H, R, D]`, keys of the newer slots.
        v: `[B, H, S + R, Dv]`.
        scale: of the logits; `D ** -0.5` of the whole width if left out.

    Returns:
        See `Pruned`.

    Source: Xu et al. 2024, arXiv 2407.21018. Differs: nothing is stored for pruned channels.
    """
    whole = k_pruned.new_zeros(*k_pruned.shape[:3], q.shape[2])
    index = channels[:, :, None].expand(-1, -1, k_pruned.shape[2], -1)
    whole.scatter_(3, index, k_pruned)
    done = naive_decode_attention(q, torch.cat([whole, k_recent], 2), v, scale=scale)
    return Pruned(done.out, done.lse)
