"""Old keys with fewer channels."""

from __future__ import annotations

import torch
from torch import Tensor

from remnant.errors import UnsupportedPolicy
from remnant.kv.merge import take as _gather
from remnant.kv.view import Keep
from remnant_hf._dense import GROWTH, Dense, Named
from remnant_hf._slots import SlotStore

__all__ = ["ChannelStore"]


class ChannelStore:
    """Old keys with fewer channels, new keys whole, values whole."""

    ordered = True
    plain = False

    def __init__(self, dense: Dense, keep: Keep, spare: int = GROWTH) -> None:
        """Prune the keys of a dense store after a plan with `channels` `[B, H, D]`."""
        assert keep.channels is not None
        self.width = dense.k.shape[-1]
        self.whole, self.recent = SlotStore(), SlotStore()
        k = _gather(dense.k, keep.indices)
        rest = {"v": dense.v, "pos": dense.pos, **dense.side}
        if dense.valid is not None:
            rest["valid"] = dense.valid
        self.whole.append({name: _gather(x, keep.indices) for name, x in rest.items()})
        old = max(k.shape[2] - keep.recent, 0)
        self.channels = keep.channels.nonzero()[:, -1].view(*k.shape[:2], -1)
        self.pruned = k[:, :, :old].gather(-1, self.channels[:, :, None].expand(-1, -1, old, -1))
        self.recent.append({"k": k[:, :, old:].clone()})

    @property
    def stored(self) -> int:
        """Slots, pruned and whole ones."""
        return self.whole.n

    @property
    def buffers(self) -> Named:
        """The tensors beside the keys."""
        return self.whole.buffers

    def keys(self) -> list[tuple[Tensor, Tensor | None]]:
        """The two key blocks and the query channels that each of them needs."""
        return [(self.pruned, self.channels), (self.recent.get("k"), None)]

    def append(self, new: Named) -> None:
        """Add whole slots at the end."""
        self.recent.append({"k": new["k"]})
        self.whole.append({name: x for name, x in new.items() if name != "k"})

    def dense(self) -> Dense:
        """A copy with zeros in the pruned channels, for the moment of a decision only."""
        old = self.pruned.new_zeros(*self.pruned.shape[:3], self.width)
        index = self.channels[:, :, None].expand(-1, -1, self.pruned.shape[2], -1)
        k = torch.cat([old.scatter(-1, index, self.pruned), self.recent.get("k")], 2)
        rest = {name: self.whole.get(name) for name in self.whole.buffers if name not in ("v", "pos", "valid")}
        valid = self.whole.get("valid") if "valid" in self.whole.buffers else None
        return Dense(k, self.whole.get("v"), self.whole.get("pos"), valid, rest)

    def put_side(self, side: Named) -> None:
        """Replace side tensors."""
        self.whole.put_side(side)

    def drop_newest(self, count: int) -> None:
        """Forget the last slots, which are whole."""
        if count > self.recent.n:
            raise UnsupportedPolicy(f"{count} slots cannot be undone: only {self.recent.n} still have whole keys")
        self.recent.drop_newest(count)
        self.whole.drop_newest(count)

    def take_rows(self, index: Tensor) -> None:
        """Reorder, repeat or select batch rows."""
        self.whole.take_rows(index)
        self.recent.take_rows(index)
        self.pruned, self.channels = (x.index_select(0, index.to(x.device)) for x in (self.pruned, self.channels))

    def to(self, device: torch.device) -> None:
        """Move every tensor."""
        self.whole.to(device)
        self.recent.to(device)
        self.pruned, self.channels = self.pruned.to(device), self.channels.to(device)

    def counts(self) -> list[list[int]]:
        """Slots per sequence and head."""
        return self.whole.counts()

    def bytes(self) -> int:
        """Bytes of keys as stored, and of values."""
        return self.pruned.nbytes + self.recent.bytes() + self.whole.bytes()

    def allocated(self) -> int:
        """Bytes of all buffers, the channel index included."""
        return self.pruned.nbytes + self.channels.nbytes + self.recent.allocated() + self.whole.allocated()
