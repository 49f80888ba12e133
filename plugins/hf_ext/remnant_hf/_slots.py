"""Rectangular slots, the usual store: new ones at the end, victims overwritten in place."""

from __future__ import annotations

import torch
from torch import Tensor

from remnant.kv.merge import take as _gather
from remnant_hf._dense import GROWTH, Dense, Named, frozen
from remnant_kernels.dispatch import wanted
from remnant_kernels.op import get_op

__all__ = ["SlotStore"]


class SlotStore:
    """Rectangular buffers `[B, H, capacity, ...]`, used up to `n`; new slots go to the end, victims are overwritten."""

    def __init__(self) -> None:
        """Make an empty store; the first append decides shapes, dtype and device."""
        self.buffers: Named = {}
        self.n = 0
        self.ordered = True

    @property
    def stored(self) -> int:
        """Slots in use, in tokens."""
        return self.n

    @property
    def plain(self) -> bool:
        """Whether slot i holds position i, so that positions need not be stored."""
        return "pos" not in self.buffers

    def get(self, name: str) -> Tensor:
        """The used part of a tensor, without a copy; positions are made up while they are `plain`."""
        if name == "pos" and self.plain:
            some = self.buffers["v"]
            return torch.arange(self.n, device=some.device).expand(*some.shape[:2], self.n)
        return self.buffers[name].narrow(2, 0, self.n)

    def _store_positions(self) -> None:
        """From now on slots and positions differ."""
        if self.plain and "v" in self.buffers:
            pos = self.get("pos")
            self.put_side({"pos": pos})

    def append(self, new: Named) -> None:
        """Add slots at the end; tensors `[B, H, n, ...]`, `pos` only if not `plain`. The first append adopts them."""
        if self.n == 0:
            self.buffers = {name: x.contiguous() for name, x in new.items()}
            self.n = new["v"].shape[2] if "v" in new else next(iter(new.values())).shape[2]
            return
        count = next(iter(new.values())).shape[2]
        self.reserve(count)
        for name, x in new.items():
            self.buffers[name].narrow(2, self.n, count).copy_(x)
        self.n += count

    def reserve(self, count: int) -> None:
        """Make room for `count` more slots; a tensor made in inference mode is copied before it is written to."""
        some = next(iter(self.buffers.values()))
        if self.n + count <= some.shape[2] and not frozen(some):
            return
        self._resize(self.n + count + max(GROWTH, self.n // 8))

    def _resize(self, capacity: int) -> None:
        for name, old in self.buffers.items():
            grown = old.new_empty(*old.shape[:2], capacity, *old.shape[3:])
            grown[:, :, : self.n] = old[:, :, : self.n]
            self.buffers[name] = grown

    def dense(self) -> Dense:
        """Views of the buffers; nothing is copied."""
        rest = {name: self.get(name) for name in self.buffers if name not in ("k", "v", "pos", "valid")}
        valid = self.get("valid") if "valid" in self.buffers else None
        return Dense(self.get("k"), self.get("v"), self.get("pos"), valid, rest)

    def put_side(self, side: Named) -> None:
        """Replace tensors, `[B, H, n, ...]`; unknown names are added."""
        for name, x in side.items():
            if name in self.buffers:
                self.get(name).copy_(x)
            else:
                some = self.buffers["v"]
                buffer = x.new_empty(*some.shape[:3], *x.shape[3:])
                buffer[:, :, : self.n] = x
                self.buffers[name] = buffer

    def gather(self, indices: Tensor, spare: int = 0) -> None:
        """Keep slots `[B, H, K]` in that order, with room for `spare` more."""
        kept = indices.shape[2]
        self._store_positions()
        if {"k", "v"} <= self.buffers.keys() and wanted("compact", self.buffers["k"]):
            rest = [name for name in self.buffers if name not in ("k", "v")]
            k, v, *sides = get_op("compact")(
                k=self.buffers["k"], v=self.buffers["v"], keep=indices, sides=[self.buffers[n] for n in rest],
                spare=spare,
            )  # fmt: skip
            self.buffers = {"k": k, "v": v, **dict(zip(rest, sides, strict=True))}
            self.n, self.ordered = kept, True
            return
        # Spare room is gathered like the rest, from slot 0: one copy instead of two.
        slots = torch.nn.functional.pad(indices, (0, spare)) if spare else indices
        for name, x in self.buffers.items():
            self.buffers[name] = _gather(x, slots)
        self.n = kept
        self.ordered = True

    def overwrite(self, victims: Tensor) -> None:
        """Drop slots `[B, H, m]` by moving the survivors among the last m slots into the others' places."""
        self._store_positions()
        b, h, m = victims.shape
        tail, capacity = self.n - m, self.buffers["v"].shape[2]
        source, target = (torch.full_like(victims, tail), victims) if m == 1 else _moves(victims, tail)
        begin = torch.arange(0, b * h * capacity, capacity, device=victims.device).view(b, h, 1)
        source, target = (begin + source).flatten(), (begin + target).flatten()
        for x in self.buffers.values():
            rows = x.view(-1, *x.shape[3:])
            rows.index_copy_(0, target, rows.index_select(0, source))
        self.n = tail
        self.ordered = False

    def drop_newest(self, count: int) -> None:
        """Forget the last `count` slots."""
        self.n -= count

    def take_rows(self, index: Tensor) -> None:
        """Reorder, repeat or select batch rows."""
        self.buffers = {name: x.index_select(0, index.to(x.device)) for name, x in self.buffers.items()}

    def to(self, device: torch.device) -> None:
        """Move every tensor."""
        self.buffers = {name: x.to(device) for name, x in self.buffers.items()}

    def counts(self) -> list[list[int]]:
        """Real slots per sequence and head; padding that had to be kept does not count."""
        some = next(iter(self.buffers.values()), None)
        if some is None:
            return []
        if "valid" in self.buffers:
            return self.get("valid").sum(-1).tolist()
        return [[self.n] * some.shape[1]] * some.shape[0]

    def bytes(self) -> int:
        """Bytes of the stored keys and values."""
        return sum(self.get(name).nbytes for name in ("k", "v") if name in self.buffers)

    def allocated(self) -> int:
        """Bytes of all buffers, spare room and side state included."""
        total = 0
        for x in self.buffers.values():
            total += x.nbytes
        return total


def _moves(victims: Tensor, tail: int) -> tuple[Tensor, Tensor]:
    """For m victims `[B, H, m]`: which tail slots move, and where; a tail victim receives itself."""
    m = victims.shape[2]
    slots = torch.arange(tail, tail + m, device=victims.device).expand_as(victims)
    stays = torch.ones(*victims.shape[:2], tail + m, dtype=torch.bool, device=victims.device)
    survives = stays.scatter_(2, victims, False)[..., tail:]
    front = victims < tail
    # There are as many survivors in the tail as victims in front of it; line both up by a stable sort.
    source = torch.where(survives, slots, tail + m).sort(-1).values
    target = torch.where(front, victims, tail + m).sort(-1).values
    idle = source >= tail + m
    return source.masked_fill(idle, tail), torch.where(idle, source.new_tensor(tail), target)
