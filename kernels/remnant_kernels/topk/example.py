"""Arguments for trying and timing, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from remnant_kernels.examples import made, ragged
from remnant_kernels.op import Size

__all__ = ["bytes_moved", "example", "flops", "tolerance"]

_SHAPES = {"small": (1, 2, 65), "odd": (2, 3, 1501), "large": (16, 8, 131072)}


def example(seed: int, size: Size, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """See `Op.example`. Scores are float32 whatever the dtype, with many ties, infinities and zeros of both signs."""
    b, h, s = _SHAPES[size]
    some = made(seed, device)
    scores = some.normal((b, h, s), torch.float32)
    if size != "large":
        scores = (scores * 4).round() / 4
        scores = scores.masked_fill(some.chance((b, h, s), 0.05), float("inf"))
        scores = scores.masked_fill(some.chance((b, h, s), 0.1), float("-inf"))
    lens = ragged(some, b, h, s) if size == "odd" else None
    k = some.integers((b, h), 0, s + 2) if size != "large" else torch.full((b, h), 2048, device=device)
    return {"scores": scores, "k": k, "width": int(k.max()), "lens": lens}


def tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """Integers: equal or wrong."""
    return 0.0, 0.0


def bytes_moved(kwargs: Mapping[str, Any]) -> int:
    """Every score once, every index once."""
    return kwargs["scores"].numel() * 4 + kwargs["k"].numel() * 8 * (kwargs["width"] + 2)


def flops(kwargs: Mapping[str, Any]) -> int:
    """None: comparisons only."""
    return 0
