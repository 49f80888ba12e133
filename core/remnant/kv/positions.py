"""Rotary positions after eviction: undo a rotation, rotate further, in float32.

RoPE is relative, so closing a gap needs only the keys before the gap to move forward by its width.
Layout: the first and second half of the rotated channels are a pair (Llama's layout).
"""

from __future__ import annotations

import torch
from torch import Tensor

from remnant.kv.view import Rope

__all__ = ["rotate", "unrotate"]


def rotate(x: Tensor, positions: Tensor, rope: Rope) -> Tensor:
    """Rotate channels by an angle of `positions * inv_freq`, without the temperature factor.

    Args:
        x: `[..., S, D]`; channels behind the rotated ones pass through.
        positions: `[..., S]` integer distances, negative to rotate back; broadcasts against x.
        rope: supplies the frequencies.

    Returns:
        `[..., S, D]` in the dtype of x, computed in float32.
    """
    half = rope.inv_freq.shape[-1]
    angle = positions.unsqueeze(-1).float() * rope.inv_freq.to(x.device).float()
    cos, sin = angle.cos(), angle.sin()
    a, b, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


def unrotate(x: Tensor, positions: Tensor, rope: Rope) -> Tensor:
    """Undo the rotation of keys or queries that stand at `positions`; same shapes as `rotate`."""
    return rotate(x, -positions, rope)
