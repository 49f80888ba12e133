"""The truth: one token of one head at a time."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["EPSILON", "naive_retention_gate"]

EPSILON = 1e-6
"""Beside the mean square of a key or value, which may be 0."""


def naive_retention_gate(k: Tensor, v: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, bias: Tensor) -> Tensor:
    """`log sigmoid(w2 . silu(w1 [rms k; rms v] + b1) + bias)` for every token and KV head.

    Args:
        k: `[B, H, S, D]` keys after RoPE.
        v: `[B, H, S, Dv]`.
        w1: `[H, F, D + Dv]` float32.
        b1: `[H, F]`.
        w2: `[H, F]`.
        bias: `[H]`.

    Returns:
        `[B, H, S]` float32, at most 0: the log of the share that survives each step.

    Source: TRIM-KV. Differs: as `remnant.kv.gates.Gates`.
    """
    b, h, s, _ = k.shape
    wide = torch.float64 if k.dtype == torch.float64 else torch.float32
    out = torch.zeros(b, h, s, dtype=wide, device=k.device)
    for i in range(b):
        for j in range(h):
            for at in range(s):
                x = torch.cat([_rms(k[i, j, at].to(wide)), _rms(v[i, j, at].to(wide))])
                hidden = w1[j].to(wide) @ x + b1[j].to(wide)
                hidden = hidden * torch.sigmoid(hidden)
                out[i, j, at] = torch.nn.functional.logsigmoid(w2[j].to(wide) @ hidden + bias[j].to(wide))
    return out


def _rms(x: Tensor) -> Tensor:
    return x / (x.square().mean() + EPSILON).sqrt()
