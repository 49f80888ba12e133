"""The truth: score the pages of one KV head, sort them, and attend to the tokens of those that are taken."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Sparse", "naive_block_sparse_decode"]


class Sparse(NamedTuple):
    """What a decoded token reads.

    Attributes:
        out: `[B, G*H, D]`, the dtype of the queries.
        lse: `[B, G*H]` float32, over the tokens that were read.
        chosen: `[B, H, M]` int64, page numbers ascending, filled up with -1; shared by the group.
    """

    out: Tensor
    lse: Tensor
    chosen: Tensor


def naive_block_sparse_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    page: int,
    pages: int,
    mean: Tensor | None = None,
    low: Tensor | None = None,
    high: Tensor | None = None,
    sinks: int = 1,
    local: int = 1,
    lens: Tensor | None = None,
    scale: float | None = None,
) -> Sparse:
    """Attention of one new token per sequence over `pages` chosen pages, the first `sinks` and the last `local` ones.

    Args:
        q: `[B, G*H, D]`.
        k: `[B, H, S, D]`.
        v: `[B, H, S, D]`.
        page: slots per page.
        pages: pages that are chosen, besides those that are always read.
        mean: `[B, H, N, D]`, N = ceil(S / page): a page's score is the group's mean query times its mean key.
        low: with `high`, instead of `mean`: a page's score is the largest bound on a logit over the group.
        high: see `low`.
        sinks: first pages that are always read.
        local: last pages that are always read, the open one counted.
        lens: `[B, H]` int64, slots in use; None is all.
        scale: of the logits; `D ** -0.5` if left out.

    Returns:
        See `Sparse`, M = pages + sinks + local, at most N. Equal scores go to the later page.

    Source: Kinetics (Sadhukhan et al. 2025) for the mean, Quest (Tang et al. 2024) for the bound. Differs: Quest's
    bound is reduced over the group, so that a page is read once, and first and last pages are always read.
    """
    b, hq, d = q.shape
    h, s = k.shape[1], k.shape[2]
    g, factor = hq // h, d**-0.5 if scale is None else scale
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    most = min(pages + sinks + local, -(-s // page))
    chosen = torch.full((b, h, most), -1, dtype=torch.int64, device=q.device)
    out = torch.zeros(b, hq, d, dtype=wide, device=q.device)
    lse = torch.full((b, hq), float("-inf"), dtype=wide, device=q.device)
    for i in range(b):
        for j in range(h):
            used = s if lens is None else int(lens[i, j])
            count = -(-used // page)
            group = q[i, j * g : (j + 1) * g].to(wide)
            scores = [
                float("inf") if n < sinks or n >= count - local else _score(group, n, i, j, mean, low, high)
                for n in range(count)
            ]
            best = sorted(range(count), key=lambda n, x=scores: (x[n], n), reverse=True)[:most]
            read = [slot for n in sorted(best) for slot in range(n * page, min((n + 1) * page, used))]
            chosen[i, j, : len(best)] = torch.tensor(sorted(best), dtype=torch.int64)
            if not read:
                continue
            x = group @ k[i, j, read].to(wide).T * factor
            lse[i, j * g : (j + 1) * g] = torch.logsumexp(x, 1)
            out[i, j * g : (j + 1) * g] = x.softmax(1) @ v[i, j, read].to(wide)
    return Sparse(out.to(q.dtype), lse, chosen)


def _score(
    group: Tensor, n: int, i: int, j: int, mean: Tensor | None, low: Tensor | None, high: Tensor | None
) -> float:
    if mean is not None:
        return float(group.mean(0) @ mean[i, j, n].to(group.dtype))
    assert low is not None
    assert high is not None
    bounds = torch.maximum(group * low[i, j, n].to(group.dtype), group * high[i, j, n].to(group.dtype)).sum(1)
    return float(bounds.max())
