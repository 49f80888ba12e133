"""One layer of the cache: stores, answers masks, reads, shows the policy what it needs, and carries out its plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from remnant.kv.view import KVView
from remnant_hf import bridge
from remnant_hf._state import Ledger
from remnant_hf._undoing import Undoing
from remnant_hf.attention import Facts
from remnant_hf.masks import fit
from remnant_hf.store import SimulatedStore, SlotStore

__all__ = ["Ledger", "RemnantLayer"]


class RemnantLayer(Undoing):
    """A full-attention layer under a policy.

    `seen` counts the tokens that went through (positions and `get_seq_length`), the store counts what is still there
    (masks). Eviction happens after the attention of the layer itself, and never between `activate_past_recording` and
    the next `crop`: that is the commit point of assisted generation.

    Args:
        policy: decides.
        budget: tokens per KV head.
        index: the model's layer index.
        order: index among the governed layers.
        layers: number of governed layers.
        ledger: shared by the layers of one cache.
        rope: how keys are rotated, for policies that need it.
        simulate: hide instead of evict.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append `[B, H, n, D]` keys and values and return what attention is to read, tagged for the bridge."""
        if self.waiting or self.stash:
            self._settle()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count, store = key_states.shape[2], self.store
        if key_states.device != self.device:
            self.to(key_states.device)
        store.append(self._new_slots(key_states, value_states, count))
        self.seen += count
        self.tail += count
        self.waiting = count
        if not torch.compiler.is_compiling():
            self.ledger.note(self.order, store.allocated())
            bridge.set_pending(self)
        if isinstance(store, SimulatedStore):
            store = store.all
        if isinstance(store, SlotStore):
            return bridge.tag(store.get("k"), self), store.get("v")
        return bridge.tag(key_states.view_as(key_states), self), value_states

    def _new_slots(self, k: Tensor, v: Tensor, count: int) -> dict[str, Tensor]:
        new = {"k": k, "v": v}
        if self.store.plain and not self.policy.sides and "valid" not in self.store.buffers:
            return new
        b, h = k.shape[:2]
        pos = torch.arange(self.seen, self.seen + count, device=k.device).expand(b, h, count)
        if not self.store.plain:
            new["pos"] = pos
        if self.policy.sides:
            view = KVView(k, v, pos, self.seen + count, self.order, self.layers, state=self.state, step=self.step)
            given = self.policy.append(view)
            for side in self.policy.sides:
                fill = torch.full((b, h, count), side.fill, dtype=side.dtype, device=k.device)
                new[side.name] = given.get(side.name, fill)
        if "valid" in self.store.buffers:
            new["valid"] = torch.ones(b, h, count, dtype=torch.bool, device=k.device)
        return new

    def attend(
        self, inner: Callable[..., Any], module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, *args: Any, **kw: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the attention of this layer and, after it, let the policy act.

        Args:
            inner: the stock attention function.
            module: the attention module.
            q: `[B, G*H, n, D]` after RoPE.
            k: what `update` returned, or what the module made of it (MLA).
            v: values likewise.
            mask: the stock mask of the widest governed layer.
            args: passed on.
            kw: passed on; `scaling`, `softcap` and `s_aux` are read.

        Returns:
            `[B, n, G*H, Dv]` and attention weights or None.
        """
        count = q.shape[2]
        if getattr(module, "layer_idx", self.index) != self.index:
            return inner(module, q, k, v, fit(mask, k.shape[2], count), *args, **kw)
        self.waiting = 0
        self.newest = None
        if count == 1 and self._idle(k):
            self.step += 1
            self.decoded += 1
            return inner(module, q, k, v, mask if mask is None else fit(mask, k.shape[2], 1), *args, **kw)
        if self.facts is None or not self.facts.same(kw):
            self.facts = Facts.of(module, q, kw)
        if count > 1 or self.seen == 1:
            self._note_padding(mask, q.shape[0], count)
        self.expanded = (k, v) if k.shape[1] != self.heads else None
        out, weights, row = self._read(inner, module, q, k, v, mask, count, args, kw)
        if self.ledger.probing:
            self._probe(q)
        elif self.record_past:
            self._need_plain("assisted generation")
            self.stash.append((q, count, self.seen))
        else:
            self._after(q, count, row)
        self.expanded = None
        return out, weights

    def _idle(self, k: Tensor) -> bool:
        """Whether a decoded token leaves nothing to do: the policy looks at no attention, and nothing is due."""
        store, ledger = self.store, self.ledger
        return (
            self.waits
            and self.seen > 1
            and type(store) is SlotStore
            and not self._due("decode", self.decoded + 1, store.n, self.tokens)
            and not (self.holes or self.record_past or ledger.probing or ledger.prefilling)
            and (store.ordered or not self.padded)
            and k.shape[1] == self.heads
        )
