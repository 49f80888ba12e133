"""Arguments for trying and timing, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from remnant_kernels.examples import made
from remnant_kernels.op import Size

__all__ = ["bytes_moved", "example", "flops", "tolerance"]

_SHAPES = {"small": (1, 2, 65, 16, 20), "odd": (2, 3, 200, 80, 131), "large": (16, 8, 32768, 128, 2048)}


def example(seed: int, size: Size, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """See `Op.example`. Odd seeds work in place, even ones leave room behind."""
    b, h, s, d, kept = _SHAPES[size]
    some = made(seed, device)
    keep = torch.rand(b, h, s, generator=some.generator).topk(kept).indices.sort().values.to(device)
    if size == "odd":
        keep[0, 0, kept // 2 :] = -1
    strided = size == "odd"
    in_place = bool(seed % 2) and size != "large"
    return {
        "k": some.normal((b, h, s, d), dtype, strided=strided),
        "v": some.normal((b, h, s, d), dtype, strided=strided),
        "keep": keep,
        "sides": (some.integers((b, h, s), 0, 99, torch.int32), some.chance((b, h, s), 0.5)),
        "spare": 0 if in_place or size == "large" else 7,
        "in_place": in_place,
    }


def tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """Copies: equal or wrong."""
    return 0.0, 0.0


def bytes_moved(kwargs: Mapping[str, Any]) -> int:
    """Every kept slot read and written, every index read."""
    keep = kwargs["keep"]
    slots = int((keep >= 0).sum())
    widths = [x.shape[3] * x.element_size() for x in (kwargs["k"], kwargs["v"])]
    return slots * 2 * (sum(widths) + sum(x.element_size() for x in kwargs.get("sides", ()))) + keep.numel() * 8


def flops(kwargs: Mapping[str, Any]) -> int:
    """None: nothing is computed."""
    return 0
