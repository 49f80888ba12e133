"""Arguments for trying and timing, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from remnant_kernels.examples import made
from remnant_kernels.op import Size

__all__ = ["bytes_moved", "example", "flops", "tolerance"]

_SHAPES = {  # B, H, G, S, R, D, D'
    "small": (1, 2, 2, 65, 8, 32, 16),
    "odd": (2, 2, 3, 131, 0, 96, 77),
    "large": (4, 8, 4, 32736, 32, 128, 80),
}


def example(seed: int, size: Size, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """See `Op.example`. `odd` has a width that no tile divides, and odd seeds of it no recent keys."""
    b, h, g, s, r, d, narrow = _SHAPES[size]
    r = 13 if size == "odd" and seed % 2 == 0 else r
    some = made(seed, device)
    channels = torch.rand(b, h, d, generator=some.generator).topk(narrow).indices.sort().values.to(device)
    return {
        "q": some.normal((b, g * h, d), dtype),
        "k_pruned": some.normal((b, h, s, narrow), dtype, strided=size == "odd"),
        "channels": channels,
        "k_recent": some.normal((b, h, r, d), dtype),
        "v": some.normal((b, h, s + r, d), dtype, strided=size == "odd"),
    }


def tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """(absolute, relative) for outputs."""
    return {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (1.5e-2, 1.5e-2)}[dtype]


def bytes_moved(kwargs: Mapping[str, Any]) -> int:
    """Every key and value once."""
    tensors = (kwargs["k_pruned"], kwargs["k_recent"], kwargs["v"])
    return sum(x.numel() * x.element_size() for x in tensors)


def flops(kwargs: Mapping[str, Any]) -> int:
    """Two products per query head."""
    g = kwargs["q"].shape[1] // kwargs["v"].shape[1]
    return 2 * g * sum(kwargs[name].numel() for name in ("k_pruned", "k_recent", "v"))
