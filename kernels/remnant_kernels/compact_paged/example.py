"""Arguments for trying and timing, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from remnant_kernels.examples import made
from remnant_kernels.op import Size

__all__ = ["bytes_moved", "example", "flops", "tolerance"]

_SHAPES = {  # B, H, pages per sequence, P, C, kept
    "small": (1, 2, 5, 16, 32, 30),
    "odd": (3, 3, 13, 16, 160, 131),
    "large": (16, 8, 2048, 16, 256, 2048),
}


def example(seed: int, size: Size, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """See `Op.example`. Odd seeds pack downwards, even ones upwards; the last page is partly used."""
    b, h, count, page, width, kept = _SHAPES[size]
    some = made(seed, device)
    used = count * page - page // 3
    keep = torch.rand(b, h, used, generator=some.generator).topk(kept).indices.sort().values.to(device)
    up = seed % 2 == 0
    start = torch.full((b,), used - kept if up else 0, device=device)
    if not up and size == "odd":
        keep[0, 0, kept // 2 :] = -1
    table = torch.randperm(b * count + 3, generator=some.generator)[: b * count].view(b, count).to(device)
    pages = some.normal((b * count + 3, h, page, width), dtype)
    return {"pages": pages, "table": table, "keep": keep, "start": start, "towards_end": up}


def tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """Copies: equal or wrong."""
    return 0.0, 0.0


def bytes_moved(kwargs: Mapping[str, Any]) -> int:
    """Every kept slot read and written, every index read."""
    pages, keep = kwargs["pages"], kwargs["keep"]
    return int((keep >= 0).sum()) * 2 * pages.shape[3] * pages.element_size() + keep.numel() * 8


def flops(kwargs: Mapping[str, Any]) -> int:
    """None: nothing is computed."""
    return 0
