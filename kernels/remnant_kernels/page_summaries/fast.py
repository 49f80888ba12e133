"""The same over all pages at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from remnant_kernels.page_summaries.naive import Summaries

__all__ = ["page_summaries"]


def page_summaries(k: Tensor, page: int, lens: Tensor | None = None) -> Summaries:
    """See `naive_page_summaries`."""
    b, h, s, d = k.shape
    count = -(-s // page)
    slots = torch.arange(count * page, device=k.device).view(count, page)
    used = (slots < s) if lens is None else slots < lens[:, :, None, None]
    used = used.expand(b, h, count, page)[..., None]
    x = F.pad(k, (0, 0, 0, count * page - s)).view(b, h, count, page, d)
    number = used.sum(3).clamp(min=1)
    some = used.any(3)
    mean = x.masked_fill(~used, 0).float().sum(3) / number
    low = x.masked_fill(~used, float("inf")).amin(3).masked_fill(~some, 0)
    high = x.masked_fill(~used, float("-inf")).amax(3).masked_fill(~some, 0)
    return Summaries(mean.to(k.dtype), low, high)
