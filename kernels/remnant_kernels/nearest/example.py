"""Arguments for trying and timing, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from remnant_kernels.examples import made
from remnant_kernels.op import Size

__all__ = ["bytes_moved", "example", "flops", "tolerance"]

_SHAPES = {"small": (1, 2, 65, 16, 20), "odd": (2, 3, 200, 80, 71), "large": (1, 8, 32768, 128, 2048)}


def example(seed: int, size: Size, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """See `Op.example`. Keys stand far apart, so that the nearest is the same in every precision."""
    b, h, s, d, kept = _SHAPES[size]
    some = made(seed, device)
    order = torch.rand(b, h, s, generator=some.generator).argsort(-1).to(device)
    stays, goes = order[..., :kept].sort().values, order[..., kept:].sort().values
    k = some.normal((b, h, s, d), torch.float32, strided=size == "odd")
    if size != "large":
        target = some.integers(goes.shape, 0, kept)
        near = k.gather(2, stays.gather(2, target)[..., None].expand(*goes.shape, d))
        k.scatter_(2, goes[..., None].expand(*goes.shape, d), near + 0.1 * some.normal(near.shape, torch.float32))
    if size == "odd":
        stays[0, 0, kept // 2 :], goes[1, 1, 50:], stays[1, 2] = -1, -1, -1
        k[0, 1, stays[0, 1, 3]] = 0
    return {"k": k.to(dtype), "src": goes, "kept": stays}


def tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """(absolute, relative) for similarities; places are equal or wrong."""
    return {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (1e-2, 1e-2)}[dtype]


def bytes_moved(kwargs: Mapping[str, Any]) -> int:
    """Every key once, every slot number, every answer."""
    k, src, kept = kwargs["k"], kwargs["src"], kwargs["kept"]
    return (src.numel() + kept.numel()) * (k.shape[3] * k.element_size() + 8) + src.numel() * 12


def flops(kwargs: Mapping[str, Any]) -> int:
    """A product of evicted with kept keys."""
    return 2 * kwargs["src"].numel() * kwargs["kept"].shape[2] * kwargs["k"].shape[3]
