"""The truth: one query at a time over the keys that it may see."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Attended", "naive_attention"]


class Attended(NamedTuple):
    """What a prompt reads.

    Attributes:
        out: `[B, G*H, Sq, Dv]`, the dtype of the queries; zeros for a query that sees nothing.
        lse: `[B, G*H, Sq]` float32, natural logarithm of the softmax denominator; -inf for such a query.
    """

    out: Tensor
    lse: Tensor


def naive_attention(
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
    """Softmax attention of many queries.

    Args:
        q: `[B, G*H, Sq, D]`.
        k: `[B, H, Sk, D]`.
        v: `[B, H, Sk, Dv]`.
        causal: the last query sees the last key, the one before it all but one, and so on (aligned bottom right).
        lens_q: `[B]` int64, queries in use; None is all.
        lens_k: `[B]` int64, keys in use; None is all.
        window: keys that a causal query sees at most, its own included.
        sinks: `[G*H]` float32, a logit per head that takes part in the denominator.
        scale: of the logits; `D ** -0.5` if left out.
        softcap: logits become `softcap * tanh(logits / softcap)`.
        rows: `[P, N + 1]` int32: only some blocks of keys are seen. Query block n of head `hq` reads the key blocks
            `columns[rows[p, n] : rows[p, n + 1]]` with `p = hq % P`, each number at most once.
        columns: `[...]` int32, numbers of key blocks.
        block: queries and keys per block.

    Returns:
        See `Attended`.

    Source: Dao 2023, arXiv 2307.08691 for the semantics of masks.
    """
    b, hq, sq, d = q.shape
    h, sk = k.shape[1], k.shape[2]
    g, factor = hq // h, d**-0.5 if scale is None else scale
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = torch.zeros(b, hq, sq, v.shape[3], dtype=wide, device=q.device)
    lse = torch.full((b, hq, sq), float("-inf"), dtype=wide, device=q.device)
    place = torch.arange(sk, device=q.device)
    for i in range(b):
        nq = sq if lens_q is None else int(lens_q[i])
        nk = sk if lens_k is None else int(lens_k[i])
        for head in range(hq):
            for at in range(nq):
                seen = place < nk
                if causal:
                    seen &= place <= at + nk - nq
                    if window is not None:
                        seen &= place > at + nk - nq - window
                if rows is not None:
                    assert columns is not None
                    row = rows[head % rows.shape[0]]
                    listed = columns[int(row[at // block]) : int(row[at // block + 1])]
                    seen &= torch.isin(place // block, listed.to(place.dtype))
                x = (k[i, head // g].to(wide)[seen] @ q[i, head, at].to(wide)) * factor
                if softcap is not None:
                    x = softcap * torch.tanh(x / softcap)
                every = x if sinks is None else torch.cat([x, sinks[head : head + 1].to(wide)])
                if every.numel() == 0:
                    continue
                lse[i, head, at] = torch.logsumexp(every, 0)
                out[i, head, at] = (x - lse[i, head, at]).exp() @ v[i, head // g].to(wide)[seen]
    return Attended(out.to(q.dtype), lse)
