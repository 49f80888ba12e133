"""What the kernels share: one product of matrices, one rule for tiles, and whether the interpreter runs them."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

__all__ = ["INTERPRETED", "LOG2E", "dot", "next_power", "upcast"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Fixed when the kernels are imported, as Triton itself fixes it."""

LOG2E = 1.4426950408889634
"""exp(x) = exp2(x * LOG2E); exp2 is what the hardware has."""


@triton.jit
def dot(a, b, UPCAST: tl.constexpr):
    """`a @ b` summed in float32; float32 inputs are multiplied exactly, never as TF32.

    The interpreter has no bfloat16 and multiplies its bits as integers, so there the inputs are widened first.
    """
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


def upcast(dtype: torch.dtype) -> bool:
    """Whether `dot` has to widen inputs of a dtype here."""
    return INTERPRETED and dtype != torch.float32


def next_power(n: int, least: int = 16) -> int:
    """The power of two that holds n, at least what a product of matrices takes."""
    return max(least, 1 << max(0, n - 1).bit_length())
