"""Arguments for trying and timing, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from remnant_kernels.examples import made
from remnant_kernels.op import Size

__all__ = ["bytes_moved", "example", "flops", "tolerance"]

_SHAPES = {"small": (1, 2, 65, 16, 20), "odd": (2, 3, 200, 80, 71), "large": (4, 8, 32768, 128, 2048)}


def example(seed: int, size: Size, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """See `Op.example`. In `odd` most evicted values go to a few kept ones, and some to none."""
    b, h, s, d, count = _SHAPES[size]
    some = made(seed, device)
    order = torch.rand(b, h, s, generator=some.generator).argsort(-1).to(device)
    kept, src = order[..., :count].sort().values, order[..., count:].sort().values
    dst = some.integers(src.shape, 0, 5 if size == "odd" else count)
    if size == "odd":
        src = src.masked_fill(some.chance(src.shape, 0.3), -1)
        kept[0, 0, count // 2 :] = -1
        dst[0, 0] = dst[0, 0].clamp(max=3)
    return {
        "v": some.normal((b, h, s, d), dtype, strided=size == "odd"),
        "kept": kept,
        "own": torch.rand(b, h, count, generator=some.generator).to(device),
        "src": src,
        "dst": dst,
        "weight": 0.1 * torch.rand(src.shape, generator=some.generator).to(device),
    }


def tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """(absolute, relative): sums of up to a hundred values, rounded to the dtype at the end."""
    return {torch.float32: (2e-5, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (1.5e-2, 1.5e-2)}[dtype]


def bytes_moved(kwargs: Mapping[str, Any]) -> int:
    """Every value read once, every kept one written, indices and weights."""
    v, kept, src = kwargs["v"], kwargs["kept"], kwargs["src"]
    return (src.numel() + 2 * kept.numel()) * v.shape[3] * v.element_size() + src.numel() * 20 + kept.numel() * 12


def flops(kwargs: Mapping[str, Any]) -> int:
    """A multiplication and an addition per channel."""
    return 2 * (kwargs["src"].numel() + kwargs["kept"].numel()) * kwargs["v"].shape[3]
