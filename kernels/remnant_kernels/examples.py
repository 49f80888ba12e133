"""Seeded tensors for examples: made on the CPU, so that every device gets the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Made", "made", "ragged"]


@dataclass
class Made:
    """A source of tensors; the order of calls matters."""

    generator: torch.Generator
    device: str

    def normal(self, shape: Sequence[int], dtype: torch.dtype, *, strided: bool = False) -> Tensor:
        """Normal numbers; `strided` leaves gaps of NaN between the rows of the next to last dimension."""
        if not strided:
            return torch.randn(*shape, generator=self.generator).to(self.device, dtype)
        *outer, rows, width = shape
        whole = torch.full((*outer, rows, width + 8), float("nan"))
        whole[..., :width] = torch.randn(*outer, rows, width, generator=self.generator)
        return whole.to(self.device, dtype)[..., :width]

    def integers(self, shape: Sequence[int], low: int, high: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Integers from `low` to `high - 1`."""
        return torch.randint(low, high, tuple(shape), generator=self.generator).to(self.device, dtype)

    def chance(self, shape: Sequence[int], share: float) -> Tensor:
        """Booleans, a share of them True."""
        return (torch.rand(*shape, generator=self.generator) < share).to(self.device)


def made(seed: int, device: str) -> Made:
    """A source for one example."""
    return Made(torch.Generator().manual_seed(seed), device)


def ragged(some: Made, b: int, h: int, s: int) -> Tensor:
    """Lengths `[B, H]` int64 between 0 and s; the first head is empty, the last one full."""
    lens = some.integers((b, h), 1, s + 1)
    lens.view(-1)[0], lens.view(-1)[-1] = 0, s
    return lens
