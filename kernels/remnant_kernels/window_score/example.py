"""Arguments for trying and timing, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from remnant_kernels.examples import Made, made
from remnant_kernels.op import Size

__all__ = ["bytes_moved", "example", "flops", "tolerance"]

_SHAPES = {  # B, H, G, W, S, D
    "small": (1, 2, 2, 8, 65, 16),
    "odd": (2, 2, 3, 19, 131, 80),
    "large": (4, 8, 4, 32, 32768, 128),
}


def example(seed: int, size: Size, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """See `Op.example`. Seeds differ in pooling, reduction, positions and whether the log-sum-exp is known."""
    b, h, g, w, s, d = _SHAPES[size]
    some = made(seed, device)
    kwargs: dict[str, Any] = {
        "q": some.normal((b, g * h, w, d), dtype),
        "k": some.normal((b, h, s, d), dtype, strided=size == "odd"),
        "over": ("sum", "max")[seed % 2],
        "reduce": ("mean", "max", "sum")[seed % 3],
        "kernel": (5, 7, 1)[seed % 3],
        "pooling": ("avg", "max")[seed // 2 % 2],
        "pad_counts": seed == 0,
    }
    if size == "odd":
        kwargs["hidden"] = some.chance((b, h, s), 0.2)
        kwargs["hidden"][0, 0] = True
        kwargs["sinks"] = some.normal((g * h,), torch.float32) if seed % 2 else None
        kwargs["softcap"] = 20.0
        kwargs["among"] = torch.arange(s, device=device).expand(b, h, s) < s - w
        kwargs["pooling"] = "avg"
        if seed > 1:
            kwargs |= _some_of_more(some, b, h, w, s, shuffled=seed % 2 == 1)
    elif seed % 2:
        kwargs["lse"] = _log_sum_exp(kwargs["q"], kwargs["k"])
    return kwargs


def _some_of_more(some: Made, b: int, h: int, w: int, s: int, shuffled: bool) -> dict[str, Any]:
    """What an eviction leaves, some of the newest gone too, and queries of padding; slots in order or in none."""
    seen = s + s // 2
    positions = torch.rand(b, h, seen, generator=some.generator).argsort(-1)[..., :s].to(some.device)
    real = torch.arange(w, device=some.device) >= some.integers((b, 1), 0, w)
    placed = positions if shuffled else positions.sort().values
    return {"positions": placed, "seen": seen, "ordered": not shuffled, "real": real}


def _log_sum_exp(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """What the attention before would know: `[B, G*H, W]` float32."""
    w, s = q.shape[2], k.shape[2]
    every = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    x = (q.float() @ every.float().transpose(2, 3)) * q.shape[3] ** -0.5
    ahead = torch.arange(s, device=q.device) > s - w + torch.arange(w, device=q.device)[:, None]
    return torch.logsumexp(x.masked_fill(ahead, float("-inf")), -1)


def tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """(absolute, relative); a sum of W probabilities has W times the error of one."""
    return {torch.float32: (2e-5, 1e-5), torch.float16: (1e-2, 1e-2), torch.bfloat16: (5e-2, 5e-2)}[dtype]


def bytes_moved(kwargs: Mapping[str, Any]) -> int:
    """Keys once where the log-sum-exp is known, twice otherwise; scores once; of positions only few are read."""
    q, k = kwargs["q"], kwargs["k"]
    sweeps = 1 if kwargs.get("lse") is not None else 2
    return sweeps * k.numel() * k.element_size() + q.numel() * q.element_size() + 4 * k.numel() // k.shape[3]


def flops(kwargs: Mapping[str, Any]) -> int:
    """A product per sweep."""
    q, k = kwargs["q"], kwargs["k"]
    sweeps = 1 if kwargs.get("lse") is not None else 2
    return sweeps * 2 * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3] * q.shape[0]
