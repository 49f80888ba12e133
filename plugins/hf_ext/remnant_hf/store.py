"""Where a layer's keys and values lie: slots, ragged heads, pruned channels, or everything with a mask (simulation).

A store holds named tensors with one entry per slot. `dense` shows it to a policy, `apply` carries out the policy's
plan, and `read` (in `layer.py`) picks the attention that fits. Appending never copies what is already stored, except
when a buffer is full; then it grows by an eighth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from remnant.errors import UnsupportedPolicy
from remnant.kv.merge import take as _gather
from remnant.kv.view import Keep

__all__ = ["ChannelStore", "Dense", "RaggedStore", "SimulatedStore", "SlotStore", "Store"]

Named = dict[str, Tensor]
_GROWTH = 64


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


def _frozen(x: Tensor) -> bool:
    """Whether a tensor was made in inference mode and may not be written to here; never asked while compiling."""
    if torch.compiler.is_compiling() or not x.is_inference():
        return False
    return not torch.is_inference_mode_enabled()


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
        if self.n + count <= some.shape[2] and not _frozen(some):
            return
        self._resize(self.n + count + max(_GROWTH, self.n // 8))

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
        # Spare room is gathered like the rest, from slot 0: one copy instead of two.
        wanted = torch.nn.functional.pad(indices, (0, spare)) if spare else indices
        for name, x in self.buffers.items():
            self.buffers[name] = _gather(x, wanted)
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


def _ends_last(slots: Tensor) -> Tensor:
    """Move the -1 of shorter heads behind their newest slots; `[B, H, K]` in, and as wide as the longest head out."""
    exists = slots >= 0
    order = (~exists).long().argsort(dim=-1, stable=True)
    return slots.gather(2, order)[..., : int(exists.sum(-1).max())]


class RaggedStore:
    """Heads of different length, one after the other: `[N, ...]` with a segment per sequence and KV head.

    Bytes are those of the sum of the lengths; nothing is padded or masked.
    """

    ordered = True
    plain = False

    def __init__(self, dense: Dense, keep: Tensor, lengths: list[list[int]], spare: int = _GROWTH) -> None:
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
        if _frozen(self.buffers["k"]):
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


class ChannelStore:
    """Old keys with fewer channels, new keys whole, values whole."""

    ordered = True
    plain = False

    def __init__(self, dense: Dense, keep: Keep, spare: int = _GROWTH) -> None:
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
