"""Attention computed by the cache itself, where the stock function has no form for what is stored.

Three read paths: one dense block with a per-head mask, one segment per head, and two key blocks of unequal width.
Softmax statistics are float32 everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Facts", "attend_dense", "attend_segments"]

_BLOCK = 128


@dataclass(frozen=True)
class Facts:
    """How a layer turns q.k into probabilities, read from the attention call."""

    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None

    @classmethod
    def of(cls, module: Any, query: Tensor, kwargs: dict[str, Any]) -> Facts:
        """Take scaling, soft cap and sink logits from the keyword arguments of an attention call."""
        scaling = kwargs.get("scaling")
        if scaling is None:
            scaling = getattr(module, "scaling", None) or query.shape[-1] ** -0.5
        return cls(float(scaling), kwargs.get("softcap"), kwargs.get("s_aux"))

    def same(self, kwargs: dict[str, Any]) -> bool:
        """Whether an attention call states the same; False where it leaves the scaling to the module."""
        get = kwargs.get
        return get("scaling") == self.scaling and get("softcap") == self.softcap and get("s_aux") is self.sinks


def _softmax(logits: Tensor, hidden: Tensor | None, facts: Facts, heads: slice | None = None) -> Tensor:
    """Float32 probabilities of logits `[B, H, G, n, S]`; a row without any visible slot gives zeros."""
    if facts.softcap is not None:
        logits = facts.softcap * torch.tanh(logits / facts.softcap)
    if hidden is not None:
        logits = logits.masked_fill(hidden, float("-inf"))
    if facts.sinks is None:
        p = logits.softmax(-1)
        return p if hidden is None else torch.nan_to_num(p)
    sinks = facts.sinks.float() if heads is None else facts.sinks[heads].float()
    b, h, g, n, _ = logits.shape
    extra = sinks.view(1, h, g, 1, 1).expand(b, h, g, n, 1)
    return torch.cat([logits, extra], -1).softmax(-1)[..., :-1]


def attend_dense(
    q: Tensor, keys: Sequence[tuple[Tensor, Tensor | None]], v: Tensor, hidden: Tensor | None, facts: Facts
) -> tuple[Tensor, Tensor]:
    """Attention over one or more key blocks that share one value block.

    Args:
        q: `[B, G*H, n, D]`.
        keys: blocks `(k, channels)` in slot order: `k` `[B, H, S_i, D_i]`, and the query channels `[B, H, D_i]` int64
            that belong to it, or None for all. The blocks' lengths sum to S.
        v: `[B, H, S, Dv]`.
        hidden: `[B, H, 1, n or 1, S]` bool, True where a query must not look; None hides nothing.
        facts: how the layer scales.

    Returns:
        `[B, n, G*H, Dv]` and the probabilities `[B, H, G, n, S]` float32.
    """
    b, heads, n, d = q.shape
    h = v.shape[1]
    grouped = q.reshape(b, h, heads // h * n, d)
    parts = []
    for k, channels in keys:
        x = (
            grouped
            if channels is None
            else grouped.gather(-1, channels[:, :, None].expand(-1, -1, grouped.shape[2], -1))
        )
        parts.append(torch.matmul(x, k.transpose(2, 3)))
    logits = (parts[0] if len(parts) == 1 else torch.cat(parts, -1)).float() * facts.scaling
    p = _softmax(logits.view(b, h, heads // h, n, -1), hidden, facts)
    out = torch.matmul(p.flatten(2, 3).to(v.dtype), v).view(b, heads, n, -1)
    return out.transpose(1, 2), p


def attend_segments(
    q: Tensor, segments: Sequence[Sequence[tuple[Tensor, Tensor]]], new: int, facts: Facts
) -> tuple[Tensor, list[list[Tensor]]]:
    """Attention with a length per head.

    Args:
        q: `[B, G*H, n, D]`.
        segments: per sequence and KV head, `(k [S, D], v [S, Dv])` with the n new tokens at the end.
        new: n.
        facts: how the layer scales.

    Returns:
        `[B, n, G*H, Dv]` and per sequence and head the probabilities `[G, n, S]` float32.
    """
    heads, n = q.shape[1:3]
    group = heads // len(segments[0])
    rows, probabilities = [], []
    for i, row in enumerate(segments):
        outs, ps = [], []
        for j, (k, v) in enumerate(row):
            span = slice(j * group, (j + 1) * group)
            logits = torch.matmul(q[i, span], k.T).float() * facts.scaling
            p = _softmax(logits[None, None], _future(n, k.shape[0], q.device), facts, span)[0, 0]
            outs.append(torch.matmul(p.to(v.dtype), v))
            ps.append(p)
        rows.append(torch.cat(outs, 0))
        probabilities.append(ps)
    return torch.stack(rows).transpose(1, 2), probabilities


def _future(new: int, stored: int, device: torch.device) -> Tensor | None:
    """`[n, S]` True where a new token lies ahead of the query; None for a single query."""
    if new == 1:
        return None
    return torch.ones(new, stored, dtype=torch.bool, device=device).triu(stored - new + 1)
