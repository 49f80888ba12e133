"""Arguments for trying and timing, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from remnant_kernels.examples import made, ragged
from remnant_kernels.op import Size

__all__ = ["bytes_moved", "example", "flops", "tolerance"]

_SHAPES = {  # B, H, G, S, D
    "small": (1, 2, 2, 65, 16),
    "odd": (2, 3, 5, 131, 80),
    "large": (4, 8, 4, 32768, 128),
}
_MODES = ("row", "sum", "stamp", "none")


def example(seed: int, size: Size, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """See `Op.example`. The seed also chooses the mode; `odd` is ragged, strided, capped and biased."""
    b, h, g, s, d = _SHAPES[size]
    some = made(seed, device)
    mode = _MODES[seed % 4] if size != "large" else "sum"
    kwargs: dict[str, Any] = {
        "q": some.normal((b, g * h, d), dtype),
        "k": some.normal((b, h, s, d), dtype, strided=size == "odd"),
        "v": some.normal((b, h, s, d), dtype, strided=size == "odd"),
        "score": mode,
        "reduce": "max" if mode == "stamp" else "mean",
    }
    if size == "odd":
        kwargs["lens"] = ragged(some, b, h, s)
        kwargs["bias"] = some.normal((b, h, s), torch.float32).masked_fill(some.chance((b, h, s), 0.1), float("-inf"))
        kwargs["sinks"] = some.normal((g * h,), torch.float32) if seed % 2 else None
        kwargs["softcap"] = 20.0
    if size == "odd" and seed % 4 in (0, 3):  # heads one after the other, with gaps between them
        lens = kwargs["lens"]
        room = (lens + 5).flatten()
        begin = (room.cumsum(0) - room).view(b, h)
        rows = int(room.sum())
        kwargs |= {"k": some.normal((rows, d), dtype), "v": some.normal((rows, d), dtype), "begin": begin, "width": s}
    if mode == "sum":
        kwargs["acc"] = some.normal((b, h, s), torch.float32).abs()
    if mode == "stamp":
        kwargs["last"] = some.integers((b, h, s), -1, 50, torch.int32)
        kwargs["interval"] = some.integers((b, h, s), 0, 40, torch.int32)
        kwargs["now"] = some.integers((b,), 60, 70, torch.int32)
        kwargs["threshold"] = torch.full((b, h), 1.5 / s, device=device)
    return kwargs


def tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """(absolute, relative) for outputs and probabilities."""
    return {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (1.5e-2, 1.5e-2)}[dtype]


def bytes_moved(kwargs: Mapping[str, Any]) -> int:
    """Keys and values of the used slots once, queries and output, and the state read and written."""
    q, k, v = kwargs["q"], kwargs["k"], kwargs["v"]
    slots = _slots(kwargs)
    state = {"none": 0, "row": 4, "sum": 8, "stamp": 16}[kwargs.get("score", "none")]
    per_slot = (k.shape[-1] + v.shape[-1]) * k.element_size() + state
    return slots * per_slot + 2 * q.numel() * q.element_size()


def flops(kwargs: Mapping[str, Any]) -> int:
    """Two products per query head and used slot."""
    q, k, v = kwargs["q"], kwargs["k"], kwargs["v"]
    begin = kwargs.get("begin")
    group = q.shape[1] // (k.shape[1] if begin is None else begin.shape[1])
    return 2 * _slots(kwargs) * group * (k.shape[-1] + v.shape[-1])


def _slots(kwargs: Mapping[str, Any]) -> int:
    """Slots in use, over all heads."""
    k, lens = kwargs["k"], kwargs.get("lens")
    return k.shape[0] * k.shape[1] * k.shape[2] if lens is None else int(lens.sum())
