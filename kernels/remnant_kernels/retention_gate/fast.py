"""The same as two products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from remnant_kernels.retention_gate.naive import EPSILON

__all__ = ["retention_gate"]


def retention_gate(k: Tensor, v: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, bias: Tensor) -> Tensor:
    """See `naive_retention_gate`."""
    x = torch.cat([_rms(k), _rms(v)], -1)
    hidden = F.silu(torch.matmul(x, w1.transpose(1, 2)) + b1.unsqueeze(1))
    return F.logsigmoid((hidden * w2.unsqueeze(1)).sum(-1) + bias.view(-1, 1))


def _rms(x: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
