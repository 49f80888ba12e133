"""Arguments for trying and timing, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from remnant_kernels.examples import Made, made
from remnant_kernels.op import Size

__all__ = ["bytes_moved", "example", "flops", "tolerance"]

_SHAPES = {  # B, H, G, Sq, Sk, D
    "small": (1, 2, 2, 33, 65, 16),
    "odd": (2, 2, 3, 71, 131, 80),
    "large": (1, 8, 4, 16384, 16384, 128),
}


def example(seed: int, size: Size, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """See `Op.example`. Seeds differ in masks: causal, none, a window, and a list of blocks with two phases."""
    b, h, g, sq, sk, d = _SHAPES[size]
    some = made(seed, device)
    kwargs: dict[str, Any] = {
        "q": some.normal((b, g * h, sq, d), dtype, strided=size == "odd"),
        "k": some.normal((b, h, sk, d), dtype, strided=size == "odd"),
        "v": some.normal((b, h, sk, d), dtype, strided=size == "odd"),
        "causal": seed % 4 != 1 or size == "large",
    }
    if size == "large":
        return kwargs
    if seed % 4 == 2:
        kwargs["window"] = 24
    if seed % 4 == 3:
        kwargs["block"] = 16
        kwargs["rows"], kwargs["columns"] = _blocks(some, 2, -(-sq // 16), -(-sk // 16))
    if size == "odd":
        kwargs["lens_q"] = torch.tensor([0, sq - 5][:b], device=device)
        kwargs["lens_k"] = torch.tensor([7, sk - 3][:b], device=device)
        kwargs["sinks"] = some.normal((g * h,), torch.float32) if seed % 2 else None
        kwargs["softcap"] = 20.0 if seed % 2 == 0 else None
    return kwargs


def _blocks(some: Made, phases: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random list of blocks; the first row of blocks reads none."""
    listed = some.chance((phases, rows, columns), 0.4)
    listed[:, 0] = False
    counts = listed.sum(-1).flatten().cumsum(0)
    ends = torch.cat([counts.new_zeros(1), counts])
    begin = torch.stack([ends[p * rows : (p + 1) * rows + 1] for p in range(phases)])
    return begin.int(), listed.nonzero()[:, 2].int()


def tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """(absolute, relative) for outputs and the log-sum-exp."""
    return {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (1.5e-2, 1.5e-2)}[dtype]


def bytes_moved(kwargs: Mapping[str, Any]) -> int:
    """Queries, keys, values and outputs once."""
    q, k, v = kwargs["q"], kwargs["k"], kwargs["v"]
    return (2 * q.numel() + k.numel() + v.numel()) * q.element_size()


def flops(kwargs: Mapping[str, Any]) -> int:
    """Two products; half of them where causal, the listed share where sparse."""
    q, k = kwargs["q"], kwargs["k"]
    whole = 4 * q.numel() * k.shape[2]
    if kwargs.get("rows") is not None:
        rows, block = kwargs["rows"], kwargs.get("block", 64)
        blocks = kwargs["columns"].numel() / rows.shape[0]
        return int(4 * q.shape[0] * q.shape[1] * blocks * block * block * q.shape[3])
    if not kwargs.get("causal", True):
        return whole
    sq, sk = q.shape[2], k.shape[2]
    seen = min(kwargs.get("window") or sk, sk)
    return int(whole * min(1.0, (sk - sq / 2) / sk, seen / sk))
