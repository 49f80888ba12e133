"""When a layer evicts, and how the answer of its policy is carried out."""

from __future__ import annotations

import torch
from torch import Tensor

from remnant.errors import UnsupportedPolicy
from remnant.kv.merge import apply_merge, fold_one
from remnant.kv.policy import Phase
from remnant.kv.positions import rotate, unrotate
from remnant.kv.view import Keep, KVView
from remnant_hf._observing import Observing
from remnant_hf.store import ChannelStore, Dense, RaggedStore, SimulatedStore, SlotStore

__all__ = ["Deciding"]

_FOREVER = 2**31 - 1


class Deciding(Observing):
    """The part of `RemnantLayer` that acts."""

    def _after(self, q: Tensor, count: int, row: Tensor | None) -> None:
        """Observe, then act if a trigger fires."""
        prefill = self._advance(count)
        if prefill or self.remembers:
            self._remember(q, count, prefill)
        self.row = row
        if self.observes:
            self._observe(row, count)
        self._act(prefill)
        self.row = None

    def _advance(self, count: int) -> bool:
        """Move the clocks; True when the new tokens are part of a prompt, which even a single one may be."""
        prefill = count > 1 or self.seen == count or self.ledger.prefilling
        self.step = 0 if prefill else self.step + 1
        # Turns do not reset this one: an answer shorter than the interval would put eviction off for ever.
        self.decoded += not prefill
        return prefill

    def _act(self, prefill: bool) -> None:
        if not self.ledger.prefilling:
            self._decide("prefill" if prefill else "decode")
            if "all_queries" in self.policy.needs and not self.ledger.stats:
                self.queries = None
        elif self.ledger.blocked:
            self._decide("block")
        else:
            self._need_plain("a decision put off by prefilling()")

    def _decide(self, phase: Phase) -> None:
        if "layers" in self.policy.needs and phase != "decode":
            self._decide_jointly(phase)
            return
        if phase != "decode":
            self.tokens = self.policy.layer_share(self.seen, self.order, self.layers, self.budget)
        if self._due(phase, self.decoded, self._stored(), self.tokens):
            self._evict(phase)

    def _due(self, phase: Phase, step: int, stored: int, tokens: int) -> bool:
        """As `Policy.due`, whose triggers are built anew at every look."""
        if self.when is None:
            return self.policy.due(phase, step, stored, tokens)
        if stored > tokens:
            for trigger in self.when:
                if trigger.due(phase, step, stored, tokens):
                    return True
        return False

    def _decide_jointly(self, phase: Phase) -> None:
        """Leave this layer's statistic; the last layer turns them into budgets and lets every layer act."""
        self.ledger.stats[self.order] = self.policy.layer_stat(self._view(queries=self.queries))
        if self.order + 1 < self.layers or len(self.ledger.stats) < self.layers:
            return
        stats = torch.stack([self.ledger.stats[i] for i in range(self.layers)])
        self.ledger.stats.clear()
        every = [*self.siblings, self]
        if not any(self._due(phase, self.decoded, layer._stored(), self.budget) for layer in every):
            return
        budgets = self.policy.layer_budgets(stats, self._stored(), self.budget)
        for layer, tokens in zip(every, budgets, strict=True):
            layer.tokens = tokens
            if layer._stored() > tokens:
                layer._evict(phase)

    def _evict(self, phase: Phase) -> None:
        """Ask the policy and carry out its answer."""
        count = self.store.stored - self.tokens
        view = self._view(attn=self.row, queries=self.queries)
        if phase == "decode" and isinstance(self.store, SlotStore) and self.in_place:
            self.store.overwrite(self.policy.evict(view, count))
        else:
            self._apply(self.policy.plan(view, self.tokens), view)
        self._rerotate()
        self.tail = 0
        if "all_queries" in self.policy.needs:
            self.queries = None
        if not torch.compiler.is_compiling():
            self.ledger.note(self.order, self.store.allocated())

    def _apply(self, keep: Keep, view: KVView) -> None:
        """Carry out a plan; what a store cannot hold is refused by name."""
        if self.expanded is not None and (keep.merge is not None or keep.channels is not None):
            raise UnsupportedPolicy(
                f"policy {self.policy.name!r} changes keys or values, latent attention (MLA) stores neither",
                accepted="policies that only choose tokens",
            )
        if isinstance(self.store, SimulatedStore):
            if keep.merge is not None or keep.channels is not None:
                raise UnsupportedPolicy(f"policy {self.policy.name!r} changes what is stored: it cannot be simulated")
            dense = self.store.dense()
            indices = keep.indices
            if dense.valid is not None and _lengths(keep, dense) is not None:
                indices = _real_first(indices, dense.valid)
            self.store.apply(indices)
        elif keep.channels is not None:
            self.store = ChannelStore(self.store.dense(), keep)
        else:
            self._gather(keep)
            self._merge(keep, view)
        if keep.side:
            self.store.put_side(dict(keep.side))
        self.state.update(keep.state)

    def _gather(self, keep: Keep) -> None:
        dense = self.store.dense()
        lengths = _lengths(keep, dense)
        if lengths is None and isinstance(self.store, SlotStore):
            self.store.gather(keep.indices, self.spare if self.bounded else 0)
            return
        if lengths is None:
            lengths = [[keep.indices.shape[2]] * dense.k.shape[1]] * dense.k.shape[0]
        indices = keep.indices
        if dense.valid is not None:
            indices = _real_first(indices, dense.valid)
        self.store = RaggedStore(dense, indices, lengths, max(self.spare, 32))

    def _merge(self, keep: Keep, view: KVView) -> None:
        """Fold evicted values, and keys where asked, into the kept slots."""
        if keep.merge is None:
            return
        if not isinstance(self.store, SlotStore):
            raise UnsupportedPolicy(f"policy {self.policy.name!r} merges into heads of different length")
        if keep.merge.src.shape[-1] == 1:
            fold_one(self.store.get("v"), view.v, keep.merge)
        else:
            self.store.get("v").copy_(apply_merge(view.v, keep))
        if keep.merge.keys:
            if self.rope is None:
                raise UnsupportedPolicy(
                    "merging keys mixes rotations", accepted="a model whose rotation is known", do="merge_keys=False"
                )
            plain = apply_merge(unrotate(view.k, view.positions, self.rope), keep)
            self.store.get("k").copy_(rotate(plain, self._closed(self.store.get("pos")), self.rope))

    def _rerotate(self) -> None:
        """Close the gap behind the sinks: rotate them forward by the tokens evicted since, from an exact copy."""
        if not self.turns:
            return
        assert self.rope is not None
        if not isinstance(self.store, SlotStore):
            raise UnsupportedPolicy(f"policy {self.policy.name!r} turns its sinks: it cannot be simulated")
        sinks = self.policy.sinks
        if not sinks:
            return
        pos, k = self._closed(self.store.get("pos")), self.store.get("k")
        reach = pos if not self.padded else pos.masked_fill(~self.store.get("valid"), _FOREVER)
        slots = reach.topk(sinks, -1, largest=False, sorted=True).indices
        index = slots.unsqueeze(-1).expand(-1, -1, -1, k.shape[-1])
        at = pos.gather(2, slots)
        # A row with fewer real tokens than sinks has turned nothing yet: its copy is taken again until it has more.
        ready = ((reach < _FOREVER).sum(-1, keepdim=True) > sinks).unsqueeze(-1)
        now = k.gather(2, index).float()
        if self.sink_base is None or self.sink_ready is None:
            self.sink_base, self.sink_ready = now, ready
        else:
            self.sink_base = torch.where(self.sink_ready, self.sink_base, now)
            self.sink_ready = self.sink_ready | ready
        rest = reach.masked_fill(torch.zeros_like(pos, dtype=torch.bool).scatter_(2, slots, True), _FOREVER)
        # The gap behind the last sink: true positions stay in `pos`, only the rotation moves.
        gap = (rest.amin(-1, keepdim=True) - at.amax(-1, keepdim=True) - 1) * self.sink_ready.squeeze(-1)
        k.scatter_(2, index, rotate(self.sink_base, gap.clamp(min=0).expand_as(at), self.rope).to(k.dtype))


def _lengths(keep: Keep, dense: Dense) -> list[list[int]] | None:
    """Real slots per head, or None when all heads keep the same number."""
    if keep.lengths is None:
        return None
    exists = keep.indices >= 0
    if dense.valid is not None:
        exists = exists & dense.valid.gather(2, keep.indices.clamp(min=0))
    lengths = exists.sum(-1)
    first = int(lengths.flatten()[0])
    same = bool((lengths == first).all()) and first == keep.indices.shape[2]
    return None if same else lengths.tolist()


def _real_first(indices: Tensor, valid: Tensor) -> Tensor:
    """Move kept padding behind each row's end, where the packer does not look."""
    real = (indices >= 0) & valid.gather(2, indices.clamp(min=0))
    order = (~real).long().argsort(dim=-1, stable=True)
    return indices.gather(2, order).masked_fill(~real.gather(2, order), -1)
