"""Arguments for trying and timing, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from remnant_kernels.examples import made, ragged
from remnant_kernels.op import Size
from remnant_kernels.page_summaries.fast import page_summaries

__all__ = ["bytes_moved", "example", "flops", "tolerance"]

_SHAPES = {  # B, H, G, S, D, page, pages
    "small": (1, 2, 2, 130, 16, 16, 3),
    "odd": (2, 2, 3, 203, 80, 12, 4),
    "large": (16, 8, 4, 32768, 128, 16, 62),
}


def example(seed: int, size: Size, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """See `Op.example`. Even seeds choose by mean keys, odd ones by bounds."""
    b, h, g, s, d, page, pages = _SHAPES[size]
    some = made(seed, device)
    k = some.normal((b, h, s, d), dtype, strided=size == "odd")
    lens = ragged(some, b, h, s) if size == "odd" else None
    found = page_summaries(k, page, lens)
    by = {"mean": found.mean} if seed % 2 == 0 else {"low": found.low, "high": found.high}
    return {
        "q": some.normal((b, g * h, d), dtype),
        "k": k,
        "v": some.normal((b, h, s, d), dtype, strided=size == "odd"),
        "page": page,
        "pages": pages,
        **by,
        "sinks": 1,
        "local": 1 if size != "odd" else 2,
        "lens": lens,
    }


def tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """(absolute, relative) for outputs; pages are equal or wrong."""
    return {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (1.5e-2, 1.5e-2)}[dtype]


def bytes_moved(kwargs: Mapping[str, Any]) -> int:
    """Every summary once, keys and values of the pages that are read."""
    k, page = kwargs["k"], kwargs["page"]
    b, h, s, d = k.shape
    sweeps = 1 if kwargs.get("mean") is not None else 2
    count = -(-s // page)
    read = min(kwargs["pages"] + kwargs.get("sinks", 1) + kwargs.get("local", 1), count) * page
    return b * h * d * k.element_size() * (sweeps * count + 2 * read)


def flops(kwargs: Mapping[str, Any]) -> int:
    """Scores of the pages and two products over what is read."""
    k, page = kwargs["k"], kwargs["page"]
    b, h, s, d = k.shape
    g = kwargs["q"].shape[1] // h
    read = min(kwargs["pages"] + kwargs.get("sinks", 1) + kwargs.get("local", 1), -(-s // page)) * page
    return b * h * d * (2 * -(-s // page) + 4 * g * read)
