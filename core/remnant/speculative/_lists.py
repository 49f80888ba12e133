"""Tensors as typed lists, for decisions that are made on the host."""

from __future__ import annotations

from typing import cast

from torch import Tensor

__all__ = ["floats", "ints"]


def ints(x: Tensor) -> list[int]:
    """A one-dimensional integer tensor as a list."""
    return cast("list[int]", x.tolist())  # pyright: ignore[reportUnknownMemberType]


def floats(x: Tensor) -> list[float]:
    """A one-dimensional tensor as a list of floats."""
    return cast("list[float]", x.tolist())  # pyright: ignore[reportUnknownMemberType]
