"""The truth: one page of one head at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Summaries", "naive_page_summaries"]


class Summaries(NamedTuple):
    """Per page and channel, in the dtype of the keys; zeros for a page without a slot in use.

    Attributes:
        mean: `[B, H, N, D]`.
        low: `[B, H, N, D]`, the smallest.
        high: `[B, H, N, D]`, the largest.
    """

    mean: Tensor
    low: Tensor
    high: Tensor


def naive_page_summaries(k: Tensor, page: int, lens: Tensor | None = None) -> Summaries:
    """Mean and bounds of the keys of every page; a last page that is not full is summarised by what it has.

    Args:
        k: `[B, H, S, D]`.
        page: slots per page; page n holds slots n * page and on.
        lens: `[B, H]` int64, slots in use; None is all.

    Returns:
        See `Summaries`, N = ceil(S / page).

    Source: Kinetics (mean key of a block) and Quest (channel-wise bounds).
    """
    b, h, s, d = k.shape
    count = -(-s // page)
    out = Summaries(*(torch.zeros(b, h, count, d, dtype=k.dtype, device=k.device) for _ in range(3)))
    for i in range(b):
        for j in range(h):
            used = s if lens is None else int(lens[i, j])
            for n in range(count):
                keys = k[i, j, n * page : min((n + 1) * page, used)]
                if keys.shape[0] > 0:
                    wide = keys.to(torch.promote_types(k.dtype, torch.float32))
                    out.mean[i, j, n] = wide.mean(0)
                    out.low[i, j, n], out.high[i, j, n] = keys.amin(0), keys.amax(0)
    return out
