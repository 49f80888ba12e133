"""The same a block of queries at a time: of S x S logits only a few rows exist at once."""

from __future__ import annotations

import torch
from torch import Tensor

from remnant_kernels.attention.naive import Attended

__all__ = ["attention"]

_ROWS = 128


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    lens_q: Tensor | None = None,
    lens_k: Tensor | None = None,
    window: int | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    block: int = 64,
) -> Attended:
    """See `naive_attention`."""
    b, hq, sq, d = q.shape
    h, sk = k.shape[1], k.shape[2]
    g, factor = hq // h, d**-0.5 if scale is None else scale
    nq = torch.full((b,), sq, device=q.device) if lens_q is None else lens_q
    nk = torch.full((b,), sk, device=q.device) if lens_k is None else lens_k
    listed = None if rows is None or columns is None else _listed(rows, columns, hq, -(-sk // block))
    used = torch.arange(sk, device=q.device) < nk[:, None]
    v = v.masked_fill(~used[:, None, :, None], 0)  # what lies behind may be anything, and 0 * NaN is NaN
    grouped = q.view(b, h, g, sq, d)
    outs: list[Tensor] = []
    totals: list[Tensor] = []
    for start in range(0, sq, _ROWS):
        part = grouped[:, :, :, start : start + _ROWS]
        at = torch.arange(start, start + part.shape[3], device=q.device)
        x = torch.matmul(part, k[:, :, None].transpose(3, 4)).float() * factor
        if softcap is not None:
            x = softcap * torch.tanh(x / softcap)
        seen = _seen(at, nq, nk, sk, causal, window)[:, None, None]
        if listed is not None:
            blocks = listed[:, at // block][:, :, torch.arange(sk, device=q.device) // block]
            seen = seen & blocks.view(1, h, g, *blocks.shape[1:])
        x = x.masked_fill(~seen, float("-inf"))
        total = torch.logsumexp(x, -1)
        if sinks is not None:
            with_sink = torch.logaddexp(total, sinks.view(1, h, g, 1).to(total.dtype))
            total = torch.where(at < nq[:, None, None, None], with_sink, total)
        p = (x - total.nan_to_num(neginf=0.0)[..., None]).exp()
        outs.append(torch.matmul(p.to(v.dtype), v[:, :, None]))
        totals.append(total)
    if not outs:
        return Attended(q.new_zeros(b, hq, 0, v.shape[3]), q.new_zeros(b, hq, 0, dtype=torch.float32))
    return Attended(torch.cat(outs, 3).view(b, hq, sq, -1).to(q.dtype), torch.cat(totals, 3).view(b, hq, sq))


def _seen(at: Tensor, nq: Tensor, nk: Tensor, sk: int, causal: bool, window: int | None) -> Tensor:
    """`[B, n, Sk]` True where a query may look."""
    place = torch.arange(sk, device=at.device)
    seen = (at < nq[:, None])[..., None] & (place < nk[:, None])[:, None]
    if causal:
        last = at + (nk - nq)[:, None]
        seen = seen & (place <= last[..., None])
        if window is not None:
            seen = seen & (place > last[..., None] - window)
    return seen


def _listed(rows: Tensor, columns: Tensor, heads: int, count: int) -> Tensor:
    """`[heads, N, M]` True where a block of queries reads a block of keys."""
    phases, blocks = rows.shape[0], rows.shape[1] - 1
    out = torch.zeros(phases, blocks, count, dtype=torch.bool, device=rows.device)
    for phase in range(phases):
        widths = (rows[phase, 1:] - rows[phase, :-1]).long()
        mine = columns[int(rows[phase, 0]) : int(rows[phase, -1])].long()
        out[phase, torch.arange(blocks, device=rows.device).repeat_interleave(widths), mine] = True
    return out[torch.arange(heads, device=rows.device) % phases]
