"""Everything with a mask: the oracle of real eviction."""

from __future__ import annotations

import torch
from torch import Tensor

from remnant.kv.merge import take as _gather
from remnant_hf._dense import Dense, Named
from remnant_hf._slots import SlotStore

__all__ = ["SimulatedStore"]


class SimulatedStore:
    """Everything is kept and evicted slots are hidden by a mask: the oracle that real eviction is tested against."""

    ordered = True
    plain = True

    def __init__(self) -> None:
        """Make an empty store."""
        self.all = SlotStore()
        self.alive: Tensor | None = None

    @property
    def buffers(self) -> Named:
        """All tensors, hidden slots included."""
        return self.all.buffers

    @property
    def stored(self) -> int:
        """Visible slots of the longest head."""
        return 0 if self.alive is None else self.alive.shape[2]

    def append(self, new: Named) -> None:
        """Add visible slots."""
        b, h, count = new["k"].shape[:3]
        fresh = torch.arange(self.all.n, self.all.n + count, device=new["k"].device).expand(b, h, count)
        self.alive = fresh if self.alive is None else _ends_last(torch.cat([self.alive, fresh], 2))
        self.all.append(new)

    def mean_stored(self) -> int:
        """Visible slots per head on average over the fullest sequence, rounded up, as in a ragged store."""
        return max((-(-sum(row) // len(row)) for row in self.counts()), default=0)

    def hidden(self) -> Tensor:
        """`[B, H, S]` True where a slot was evicted."""
        assert self.alive is not None
        b, h = self.alive.shape[:2]
        mask = torch.ones(b, h, self.all.n + 1, dtype=torch.bool, device=self.alive.device)
        at = torch.where(self.alive < 0, self.all.n, self.alive)
        return mask.scatter_(2, at, False)[..., : self.all.n]

    def dense(self) -> Dense:
        """The visible slots, gathered."""
        assert self.alive is not None
        rest = {name: _gather(self.all.get(name), self.alive) for name in self.all.buffers}
        k, v, pos = rest.pop("k"), rest.pop("v"), _gather(self.all.get("pos"), self.alive)
        valid = rest.pop("valid", None)
        exists = self.alive >= 0
        if not bool(exists.all()):
            valid = exists if valid is None else valid & exists
            pos = pos.masked_fill(~exists, -1)
        return Dense(k, v, pos, valid, rest)

    def put_side(self, side: Named) -> None:
        """Write side tensors of the visible slots back."""
        assert self.alive is not None
        for name, x in side.items():
            if name not in self.all.buffers:
                self.all.put_side({name: x.new_zeros(*x.shape[:2], self.all.n, *x.shape[3:])})
            exists = self.alive >= 0
            rows, heads = exists.nonzero(as_tuple=True)[:2]
            self.all.get(name)[rows, heads, self.alive[exists]] = x[exists]

    def apply(self, keep: Tensor) -> None:
        """Hide every visible slot that is not in `keep` `[B, H, K]`."""
        assert self.alive is not None
        self.alive = self.alive.gather(2, keep.clamp(min=0)).masked_fill(keep < 0, -1)

    def drop_newest(self, count: int) -> None:
        """Forget the last slots."""
        self.all.drop_newest(count)
        assert self.alive is not None
        # Ragged rows end before their padding, so the newest slots are found by value.
        rows = [[head[head < self.all.n] for head in row] for row in self.alive]
        width = max(len(head) - int((head < 0).sum()) for row in rows for head in row)
        fixed = [[torch.cat([h[h >= 0], h.new_full((width - int((h >= 0).sum()),), -1)]) for h in row] for row in rows]
        self.alive = torch.stack([torch.stack(row) for row in fixed])

    def take_rows(self, index: Tensor) -> None:
        """Reorder, repeat or select batch rows."""
        self.all.take_rows(index)
        if self.alive is not None:
            self.alive = _ends_last(self.alive.index_select(0, index.to(self.alive.device)))

    def to(self, device: torch.device) -> None:
        """Move every tensor."""
        self.all.to(device)
        self.alive = None if self.alive is None else self.alive.to(device)

    def counts(self) -> list[list[int]]:
        """Visible slots per sequence and head."""
        return [] if self.alive is None else (self.alive >= 0).sum(-1).tolist()

    def bytes(self) -> int:
        """Bytes really held: a simulation saves nothing."""
        return self.all.bytes()

    def allocated(self) -> int:
        """Bytes of all buffers."""
        return self.all.allocated()


def _ends_last(slots: Tensor) -> Tensor:
    """Move the -1 of shorter heads behind their newest slots; `[B, H, K]` in, and as wide as the longest head out."""
    exists = slots >= 0
    order = (~exists).long().argsort(dim=-1, stable=True)
    return slots.gather(2, order)[..., : int(exists.sum(-1).max())]
