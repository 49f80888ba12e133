"""Heads of different length, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from remnant.kv.merge import take as _gather
from remnant_hf._dense import GROWTH, Dense, Named, frozen

__all__ = ["RaggedStore"]


class RaggedStore:
    """Heads of different length, one after the other: `[N, ...]` with a segment per sequence and KV head.

    Bytes are those of the sum of the lengths; nothing is padded or masked.
    """

    ordered = True
    plain = False

    def __init__(self, dense: Dense, keep: Tensor, lengths: list[list[int]], spare: int = GROWTH) -> None:
        """Pack slots `keep` `[B, H, K]` (-1 behind a row's end) of a dense store."""
        self.spare = spare
        named = {"k": dense.k, "v": dense.v, "pos": dense.pos, **dense.side}
        self._pack({name: _gather(x, keep) for name, x in named.items()}, lengths)

    def _pack(self, padded: Named, lengths: list[list[int]]) -> None:
        self.lengths = lengths
        sizes = [n + self.spare for row in lengths for n in row]
        starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
        heads = len(lengths[0])
        self.starts = [starts[i * heads : (i + 1) * heads] for i in range(len(lengths))]
        self.room = self.spare
        self.buffers: Named = {}
        for name, x in padded.items():
            flat = x.new_empty(starts[-1], *x.shape[3:])
            for i, j, n in self._each():
                flat[self.starts[i][j] : self.starts[i][j] + n] = x[i, j, :n]
            self.buffers[name] = flat

    def _each(self) -> list[tuple[int, int, int]]:
        return [(i, j, n) for i, row in enumerate(self.lengths) for j, n in enumerate(row)]

    @property
    def stored(self) -> int:
        """Slots of the longest head."""
        return max(max(row) for row in self.lengths)

    def mean_stored(self) -> int:
        """Slots per head on average over the fullest sequence, rounded up: what a budget is compared with."""
        return max(-(-sum(row) // len(row)) for row in self.lengths)

    def segment(self, name: str, i: int, j: int) -> Tensor:
        """One head's tensor `[len, ...]`, without a copy."""
        start = self.starts[i][j]
        return self.buffers[name][start : start + self.lengths[i][j]]

    def append(self, new: Named) -> None:
        """Add the same number of slots to every head; tensors `[B, H, n, ...]`."""
        count = new["k"].shape[2]
        if count > self.room:
            self.spare = max(self.spare, count)
            self._pack(self._padded(), self.lengths)
        if frozen(self.buffers["k"]):
            self.buffers = {name: x.clone() for name, x in self.buffers.items()}
        ends = torch.tensor([self.starts[i][j] + n for i, j, n in self._each()], device=new["k"].device)
        index = (ends[:, None] + torch.arange(count, device=ends.device)).flatten()
        for name, x in new.items():
            self.buffers[name][index] = x.reshape(-1, *x.shape[3:]).to(self.buffers[name].dtype)
        self.lengths = [[n + count for n in row] for row in self.lengths]
        self.room -= count

    def _index(self) -> tuple[Tensor, Tensor]:
        """Flat index `[B, H, longest]` of every slot, and which of them exist."""
        device = self.buffers["k"].device
        starts, lengths = torch.tensor(self.starts, device=device), torch.tensor(self.lengths, device=device)
        steps = torch.arange(self.stored, device=device)
        exists = steps < lengths.unsqueeze(-1)
        return (starts.unsqueeze(-1) + steps).masked_fill(~exists, 0), exists

    def _padded(self) -> Named:
        index, _ = self._index()
        return {name: x[index] for name, x in self.buffers.items()}

    def dense(self) -> Dense:
        """A padded copy, for the moment of a decision only."""
        padded = self._padded()
        _, exists = self._index()
        pos = padded["pos"].masked_fill(~exists, -1)
        side = {name: x for name, x in padded.items() if name not in ("k", "v", "pos")}
        return Dense(padded["k"], padded["v"], pos, None if bool(exists.all()) else exists, side)

    def put_side(self, side: Named) -> None:
        """Replace tensors given as padded rectangles."""
        index, exists = self._index()
        for name, x in side.items():
            if name not in self.buffers:
                self.buffers[name] = x.new_zeros(self.buffers["k"].shape[0], *x.shape[3:])
            self.buffers[name][index[exists]] = x[exists].to(self.buffers[name].dtype)

    def drop_newest(self, count: int) -> None:
        """Forget the last `count` slots of every head."""
        self.lengths = [[n - count for n in row] for row in self.lengths]
        self.room += count

    def take_rows(self, index: Tensor) -> None:
        """Reorder, repeat or select batch rows."""
        padded = {name: x.index_select(0, index.to(x.device)) for name, x in self._padded().items()}
        self._pack(padded, [list(self.lengths[i]) for i in index.tolist()])

    def to(self, device: torch.device) -> None:
        """Move every tensor."""
        self.buffers = {name: x.to(device) for name, x in self.buffers.items()}

    def counts(self) -> list[list[int]]:
        """Slots per sequence and head."""
        return [list(row) for row in self.lengths]

    def bytes(self) -> int:
        """Bytes of the stored keys and values."""
        total = sum(n for _, _, n in self._each())
        return sum(total * x[0].nbytes for x in (self.buffers["k"], self.buffers["v"]))

    def allocated(self) -> int:
        """Bytes of all buffers."""
        return sum(x.nbytes for x in self.buffers.values())
