"""Arguments for trying and timing, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from remnant_kernels.examples import made, ragged
from remnant_kernels.op import Size

__all__ = ["bytes_moved", "example", "flops", "tolerance"]

_SHAPES = {"small": (1, 2, 65, 16, 16), "odd": (2, 3, 131, 80, 12), "large": (16, 8, 32768, 128, 16)}


def example(seed: int, size: Size, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """See `Op.example`."""
    b, h, s, d, page = _SHAPES[size]
    some = made(seed, device)
    k = some.normal((b, h, s, d), dtype, strided=size == "odd")
    return {"k": k, "page": page, "lens": ragged(some, b, h, s) if size == "odd" else None}


def tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """(absolute, relative) of a mean that is rounded to the dtype of the keys; bounds are exact."""
    return {torch.float32: (1e-6, 1e-6), torch.float16: (1e-3, 1e-3), torch.bfloat16: (8e-3, 8e-3)}[dtype]


def bytes_moved(kwargs: Mapping[str, Any]) -> int:
    """Every key once, three rows per page."""
    k, page = kwargs["k"], kwargs["page"]
    return k.numel() * k.element_size() * (page + 3) // page


def flops(kwargs: Mapping[str, Any]) -> int:
    """An addition and two comparisons per channel."""
    return 3 * kwargs["k"].numel()
