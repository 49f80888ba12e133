"""The same by a threshold: `torch.topk` finds it, a count of ties decides among equals, a running sum gives places."""

from __future__ import annotations

import torch
from torch import Tensor

from remnant_kernels.topk.naive import Chosen

__all__ = ["topk"]


def topk(scores: Tensor, k: Tensor, width: int, lens: Tensor | None = None) -> Chosen:
    """See `naive_topk`."""
    b, h, s = scores.shape
    indices = torch.full((b, h, width + 1), -1, dtype=torch.int64, device=scores.device)
    slots = torch.arange(s, device=scores.device)
    used = torch.ones(b, h, s, dtype=torch.bool, device=scores.device) if lens is None else slots < lens[:, :, None]
    counts = torch.minimum(k, used.sum(-1)).clamp(min=0)
    if s == 0 or width == 0:
        return Chosen(indices[..., :width], counts)
    # Above all reals but below none: an unused slot must lose against a used -inf, so it is counted apart.
    x = scores.masked_fill(~used, float("-inf"))
    best = x.topk(min(width, s), dim=-1).values
    threshold = best.gather(-1, (counts - 1).clamp(min=0)[..., None])
    above, equal = (x > threshold) & used, (x == threshold) & used
    spared = equal.sum(-1, keepdim=True) - (counts[..., None] - above.sum(-1, keepdim=True))
    mask = (above | (equal & (equal.cumsum(-1) > spared))) & (counts > 0)[..., None]
    place = torch.where(mask, mask.cumsum(-1) - 1, width)
    indices.scatter_(-1, place, slots.expand(b, h, s))
    out = indices[..., :width].clone()
    return Chosen(out, counts)
