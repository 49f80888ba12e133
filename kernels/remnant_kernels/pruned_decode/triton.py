"""Split-KV decoding over both segments; their parts stand side by side and are merged as if they were one."""

from __future__ import annotations

import torch
from torch import Tensor

from remnant_kernels.decode_attention.triton import merge_parts, split_parts
from remnant_kernels.pruned_decode.naive import Pruned

__all__ = ["pruned_decode"]


def pruned_decode(
    q: Tensor, k_pruned: Tensor, channels: Tensor, k_recent: Tensor, v: Tensor, scale: float | None = None
) -> Pruned:
    """See `naive_pruned_decode`."""
    b, hq, d = q.shape
    h, s = k_pruned.shape[1], k_pruned.shape[2]
    g, factor = hq // h, d**-0.5 if scale is None else scale
    narrow = q.view(b, h, g, d).gather(3, channels[:, :, None].expand(-1, -1, g, -1)).view(b, hq, -1)
    old, old_lse, _ = split_parts(narrow, k_pruned, v[:, :, :s], scale=factor)
    new, new_lse, _ = split_parts(q, k_recent, v[:, :, s:], scale=factor)
    part, part_lse = torch.cat([old, new], 1), torch.cat([old_lse, new_lse], 1)
    return Pruned(*merge_parts(part, part_lse, None, b, h, g, v.shape[3], q.dtype))
