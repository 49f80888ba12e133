"""What all stores share: their form, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["GROWTH", "Dense", "Named", "Store", "frozen"]

Named = dict[str, Tensor]
GROWTH = 64
"""Least spare room of a store that grows, in slots."""


@dataclass(frozen=True)
class Dense:
    """A store as rectangles: what a `KVView` is made of. `side` holds every tensor besides k, v, pos and valid."""

    k: Tensor
    v: Tensor
    pos: Tensor
    valid: Tensor | None
    side: Named

    def first(self, count: int) -> Dense:
        """The first `count` slots."""
        k, v, pos = (x[:, :, :count] for x in (self.k, self.v, self.pos))
        valid = None if self.valid is None else self.valid[:, :, :count]
        return Dense(k, v, pos, valid, {name: x[:, :, :count] for name, x in self.side.items()})


class Store(Protocol):
    """What a layer asks of its store."""

    ordered: bool

    @property
    def plain(self) -> bool:
        """Whether slot i holds position i and appending needs no `pos`."""
        ...

    @property
    def stored(self) -> int:
        """Slots of the longest head, in tokens."""
        ...

    def append(self, new: Named) -> None:
        """Add the same number of slots to every head; tensors `[B, H, n, ...]`."""
        ...

    def dense(self) -> Dense:
        """The slots as rectangles."""
        ...

    def put_side(self, side: Named) -> None:
        """Replace or add side tensors."""
        ...

    def drop_newest(self, count: int) -> None:
        """Forget the newest slots of every head."""
        ...

    def take_rows(self, index: Tensor) -> None:
        """Reorder, repeat or select batch rows."""
        ...

    def to(self, device: torch.device) -> None:
        """Move every tensor."""
        ...

    def counts(self) -> list[list[int]]:
        """Real slots per sequence and head."""
        ...

    def bytes(self) -> int:
        """Bytes of the stored keys and values."""
        ...

    def allocated(self) -> int:
        """Bytes of all buffers."""
        ...


def frozen(x: Tensor) -> bool:
    """Whether a tensor was made in inference mode and may not be written to here; never asked while compiling."""
    if torch.compiler.is_compiling() or not x.is_inference():
        return False
    return not torch.is_inference_mode_enabled()
