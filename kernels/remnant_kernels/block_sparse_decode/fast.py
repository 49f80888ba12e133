"""The same in few calls: scores of all pages, the selection of `topk`, one gather, one softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from remnant_kernels.block_sparse_decode.naive import Sparse
from remnant_kernels.topk.fast import topk

__all__ = ["block_sparse_decode", "page_scores"]


def block_sparse_decode(
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
    """See `naive_block_sparse_decode`."""
    b, hq, d = q.shape
    h, s = k.shape[1], k.shape[2]
    g, factor = hq // h, d**-0.5 if scale is None else scale
    used = torch.full((b, h), s, device=q.device) if lens is None else lens
    counts = (used + page - 1) // page
    most = min(pages + sinks + local, -(-s // page))
    grouped = q.view(b, h, g, d)
    scores = page_scores(grouped, mean, low, high)
    number = torch.arange(scores.shape[-1], device=q.device)
    always = (number < sinks) | (number >= counts[..., None] - local)
    scores = scores.masked_fill(always, float("inf"))
    chosen = topk(scores, torch.full((b, h), most, device=q.device), most, counts).indices
    slots = chosen[..., None] * page + torch.arange(page, device=q.device)
    missing = ((chosen < 0)[..., None] | (slots >= used[..., None, None])).flatten(2)
    index = slots.flatten(2).clamp(0, max(s - 1, 0))[..., None].expand(-1, -1, -1, d)
    keys = k.gather(2, index).masked_fill(missing[..., None], 0)
    values = v.gather(2, index).masked_fill(missing[..., None], 0)
    x = torch.matmul(grouped, keys.transpose(2, 3)).float() * factor
    x = x.masked_fill(missing[:, :, None], float("-inf"))
    lse = torch.logsumexp(x, -1)
    p = (x - lse.nan_to_num(neginf=0.0)[..., None]).exp()
    out = torch.matmul(p.to(values.dtype), values).view(b, hq, d)
    return Sparse(out.to(q.dtype), lse.view(b, hq), chosen)


def page_scores(grouped: Tensor, mean: Tensor | None, low: Tensor | None, high: Tensor | None) -> Tensor:
    """`[B, H, N]` float32 of queries `[B, H, G, D]`: by mean keys, or by the largest bound over the group."""
    if mean is not None:
        return torch.einsum("bhd,bhnd->bhn", grouped.float().mean(2), mean.float())
    assert low is not None
    assert high is not None
    x = grouped.float()
    # sum max(q l, q h) = max(q, 0) . h + min(q, 0) . l: two products instead of a tensor over pages and channels
    bound = torch.einsum("bhgd,bhnd->bhgn", x.clamp(min=0), high.float())
    bound = bound + torch.einsum("bhgd,bhnd->bhgn", x.clamp(max=0), low.float())
    return bound.amax(2)
