"""The same with the query's channels gathered: two blocks of logits, one softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from remnant_kernels.pruned_decode.naive import Pruned

__all__ = ["pruned_decode"]


def pruned_decode(
    q: Tensor, k_pruned: Tensor, channels: Tensor, k_recent: Tensor, v: Tensor, scale: float | None = None
) -> Pruned:
    """See `naive_pruned_decode`."""
    b, hq, d = q.shape
    h = k_recent.shape[1]
    g, factor = hq // h, d**-0.5 if scale is None else scale
    grouped = q.view(b, h, g, d)
    narrow = grouped.gather(3, channels[:, :, None].expand(-1, -1, g, -1))
    old = torch.matmul(narrow, k_pruned.transpose(2, 3)).float()
    new = torch.matmul(grouped, k_recent.transpose(2, 3)).float()
    x = torch.cat([old, new], 3) * factor
    lse = torch.logsumexp(x, -1)
    p = (x - lse.nan_to_num(neginf=0.0)[..., None]).exp()
    out = torch.matmul(p.to(v.dtype), v).view(b, hq, -1)
    return Pruned(out.to(q.dtype), lse.view(b, hq))
