"""The same as two products, some thousand tokens at once; with gradients, for training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from remnant_kernels.retention_gate.naive import EPSILON

__all__ = ["retention_gate"]

_CHUNK = 4096
"""Tokens at once: the hidden layer is the largest tensor here."""


def retention_gate(k: Tensor, v: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, bias: Tensor) -> Tensor:
    """See `naive_retention_gate`; in the precision of the weights."""
    starts = range(0, max(k.shape[2], 1), _CHUNK)
    parts = [_gate(k[:, :, a : a + _CHUNK], v[:, :, a : a + _CHUNK], w1, b1, w2, bias) for a in starts]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _gate(k: Tensor, v: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, bias: Tensor) -> Tensor:
    x = torch.cat([_rms(k), _rms(v)], -1)
    hidden = F.silu(torch.matmul(x, w1.transpose(1, 2)) + b1.unsqueeze(1))
    # Not sigmoid and then log: at the initial bias of 10 that would round most of the difference away.
    return F.logsigmoid((hidden * w2.unsqueeze(1)).sum(-1) + bias.view(-1, 1))


def _rms(x: Tensor) -> Tensor:
    """Unit root mean square, float32 at least, so that a gate does not depend on a layer's magnitudes."""
    x = x if x.dtype == torch.float64 else x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
