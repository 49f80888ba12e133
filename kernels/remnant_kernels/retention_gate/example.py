"""Arguments for trying and timing, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from remnant_kernels.examples import made
from remnant_kernels.op import Size

__all__ = ["bytes_moved", "example", "flops", "tolerance"]

_SHAPES = {"small": (1, 2, 33, 16, 16, 32), "odd": (2, 3, 71, 80, 96, 50), "large": (1, 8, 32768, 128, 128, 64)}


def example(seed: int, size: Size, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """See `Op.example`. Biases reach from 0 to 10, where training starts."""
    b, h, s, d, dv, hidden = _SHAPES[size]
    some = made(seed, device)
    return {
        "k": some.normal((b, h, s, d), dtype, strided=size == "odd"),
        "v": some.normal((b, h, s, dv), dtype, strided=size == "odd"),
        "w1": some.normal((h, hidden, d + dv), torch.float32) * (d + dv) ** -0.5,
        "b1": some.normal((h, hidden), torch.float32),
        "w2": some.normal((h, hidden), torch.float32) * hidden**-0.5,
        "bias": torch.linspace(0, 10, h, device=device),
    }


def tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """(absolute, relative); the sums are float32 whatever the keys are."""
    return {torch.float32: (1e-6, 2e-5), torch.float16: (1e-6, 2e-5), torch.bfloat16: (1e-6, 2e-5)}[dtype]


def bytes_moved(kwargs: Mapping[str, Any]) -> int:
    """Every key and value once, one number per token."""
    k, v = kwargs["k"], kwargs["v"]
    return k.numel() * k.element_size() + v.numel() * v.element_size() + 4 * k.shape[0] * k.shape[1] * k.shape[2]


def flops(kwargs: Mapping[str, Any]) -> int:
    """Two products per token."""
    k, w1 = kwargs["k"], kwargs["w1"]
    return 2 * k.shape[0] * k.shape[1] * k.shape[2] * w1.shape[1] * (w1.shape[2] + 1)
