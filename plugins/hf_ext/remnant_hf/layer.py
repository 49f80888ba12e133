"""One layer of the cache: stores, answers masks, reads, shows the policy what it needs, and carries out its plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.kv.merge import apply_merge, fold_one
from remnant.kv.policy import Phase, Policy
from remnant.kv.positions import rotate, unrotate
from remnant.kv.score import reduce_group
from remnant.kv.view import Keep, KVView, Rope
from remnant_hf import bridge
from remnant_hf.attention import Facts, attend_dense, attend_segments
from remnant_hf.masks import fit, newest_valid
from remnant_hf.store import ChannelStore, Dense, RaggedStore, SimulatedStore, SlotStore

__all__ = ["Ledger", "RemnantLayer"]

_QUERY_BLOCK = 128
_FOREVER = 2**31 - 1


@dataclass
class Ledger:
    """What the layers of one cache share: bytes held now and at most, and statistics on their way to a joint decision.

    It does not refer to the layers, so the cache and its memory are freed by reference count alone.
    """

    held: dict[int, int] = field(default_factory=dict[int, int])
    total: int = 0
    peak: int = 0
    stats: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    prefilling: bool = False
    blocked: bool = False
    probing: bool = False

    def note(self, order: int, allocated: int) -> None:
        """Record a layer's allocation in bytes."""
        before = self.held.get(order, 0)
        if allocated == before:
            return
        self.held[order] = allocated
        self.total += allocated - before
        self.peak = max(self.peak, self.total)


class RemnantLayer(DynamicLayer):
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

    is_sliding = False
    is_compileable = False
    supports_early_init = False

    def __init__(
        self,
        policy: Policy,
        budget: int,
        index: int,
        order: int,
        layers: int,
        ledger: Ledger,
        rope: Rope | None = None,
        simulate: bool = False,
    ) -> None:
        """See the class."""
        self.policy, self.budget, self.index, self.order, self.layers = policy, budget, index, order, layers
        self.ledger, self.rope, self.simulate = ledger, rope, simulate
        self.siblings: list[RemnantLayer] = []
        # A policy is frozen: what follows from its class and options is asked once, not at every token.
        self.bounded, self.spare = policy.bounded, min(policy.slack + 1, 1024)
        self.observes = type(policy).observe is not Policy.observe
        self.remembers = "all_queries" in policy.needs or (self.bounded and "queries" in policy.needs)
        watches = self.observes or self.remembers or "attn" in policy.needs
        self.when = policy.when if type(policy).due is Policy.due else None
        self.waits = not watches and self.when is not None
        self.in_place, self.turns = policy.in_place, getattr(policy, "positions", "keep") == "rerotate"
        self.record_past = False
        super().__init__()
        self._empty()

    def _empty(self) -> None:
        self.store: Any = SimulatedStore() if self.simulate else SlotStore()
        self.seen = 0
        self.step = 0
        self.decoded = 0
        self.tail = 0
        self.tokens = self.budget
        self.waiting = 0
        self.state: dict[str, Tensor] = {}
        self.real: Tensor | None = None
        self.holes = False
        self.padded = False
        self.newest: Tensor | None = None
        self.gaps_after: Tensor | None = None
        self.queries_real: Tensor | None = None
        self.facts: Facts | None = None
        self.queries: Tensor | None = None
        self.row: Tensor | None = None
        self.queries_end = 0
        self.expanded: tuple[Tensor, Tensor] | None = None
        self.stash: list[tuple[Tensor, int, int]] = []
        self.shift = 0
        self.sink_base: Tensor | None = None
        self.sink_ready: Tensor | None = None
        self.is_initialized = False
        self.ledger.note(self.order, 0)

    # ---- what transformers asks

    @property
    def keys(self) -> Any:
        """Stored keys as a rectangle where there is one; None before the first token."""
        return self._rectangle("k")

    @keys.setter
    def keys(self, value: Any) -> None:
        if value is not None:
            raise ConfigError("keys of a RemnantLayer are written by update() only")

    @property
    def values(self) -> Any:
        """Stored values; see `keys`."""
        return self._rectangle("v")

    @values.setter
    def values(self, value: Any) -> None:
        if value is not None:
            raise ConfigError("values of a RemnantLayer are written by update() only")

    def _rectangle(self, name: str) -> Tensor | None:
        if not getattr(self, "is_initialized", False):
            return None
        if isinstance(self.store, SlotStore):
            return self.store.get(name)
        dense = self.store.dense()
        return dense.k if name == "k" else dense.v

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note dtype and device; memory is taken by the first `update`."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.heads = value_states.shape[1]
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.seen

    def get_max_length(self) -> int:
        """-1: the number of tokens seen is not bounded."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns, and the position that the first column stands for: stored slots are right-aligned."""
        stored = self.physical
        return stored + query_length, self.seen - stored

    @property
    def physical(self) -> int:
        """Slots that the stock mask has to cover, in tokens."""
        return self.store.all.n if isinstance(self.store, SimulatedStore) else self.store.stored

    @property
    def is_croppable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether `crop` can undo the newest tokens exactly."""
        return self.record_past or self.tail > 0

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

    # ---- attention

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

    def _need_plain(self, what: str) -> None:
        if self.expanded is not None and self.policy.when:
            raise UnsupportedPolicy(
                f"{what} with policy {self.policy.name!r} on latent attention (MLA): keys exist only during attention",
                accepted="policy 'full'",
                do="generate without it",
            )

    def _read(
        self,
        inner: Callable[..., Any],
        module: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Any,
        n: int,
        args: Any,
        kw: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(output, weights, decode row): by the stock function wherever it can read the store."""
        wants_row = n == 1 and "attn" in self.policy.needs and self.seen > n and not self.ledger.prefilling
        if isinstance(self.store, RaggedStore):
            return self._read_ragged(q, n, wants_row)
        masked = self.holes or (self.padded and not self.store.ordered)
        if isinstance(self.store, SlotStore) and not wants_row and not masked:
            out, weights = inner(module, q, k, v, fit(mask, k.shape[2], n), *args, **kw)
            return out, weights, None
        return self._read_own(q, k, v, n, wants_row)

    def _read_own(self, q: Tensor, k: Tensor, v: Tensor, n: int, wants_row: bool) -> tuple[Tensor, None, Tensor | None]:
        assert self.facts is not None
        blocks = [(k, None)]
        if isinstance(self.store, ChannelStore):
            blocks, v = self.store.keys(), self.store.whole.get("v")
        hidden, stored = self._hidden(), v.shape[2]
        outs, p = [], None
        for start in range(0, n, _QUERY_BLOCK):
            part = q[:, :, start : start + _QUERY_BLOCK]
            unseen = self._future(start, part.shape[2], n, stored, hidden)
            out, p = attend_dense(part, blocks, v, unseen, self.facts)
            outs.append(out)
        row = None
        if wants_row and p is not None:
            row = self._row(p[:, :, :, 0])
        return (outs[0] if len(outs) == 1 else torch.cat(outs, 1)), None, row

    def _row(self, p: Tensor) -> Tensor:
        """Probabilities `[B, H, G, S]` per query head -> `[B, H, S]` over the visible slots of each KV head."""
        if p.shape[1] != self.heads:
            p = p.flatten(1, 2)[:, None]
        if isinstance(self.store, SimulatedStore) and self.store.alive is not None:
            index = self.store.alive.clamp(min=0)[:, :, None].expand(-1, -1, p.shape[2], -1)
            p = p.gather(-1, index)
        return reduce_group(p, self.policy.attn_reduce)

    def _hidden(self) -> Tensor | None:
        """`[B, H, S]` True on slots that nobody may read, or None."""
        if isinstance(self.store, SimulatedStore):
            hidden = self.store.hidden()
            return hidden | ~self.store.all.get("valid") if self.padded else hidden
        if not self.padded:
            return None
        store = self.store.whole if isinstance(self.store, ChannelStore) else self.store
        return ~store.get("valid")

    def _future(self, start: int, rows: int, n: int, stored: int, hidden: Tensor | None) -> Tensor | None:
        """`[B, H, 1, rows, S]` True where a query must not look."""
        blocked = None if hidden is None else hidden[:, :, None, None, :]
        if blocked is not None and self.expanded is not None:
            blocked = blocked.expand(-1, self.expanded[0].shape[1], -1, -1, -1)
        if n == 1:
            return blocked
        ahead = torch.ones(rows, stored, dtype=torch.bool, device=self.device).triu(stored - n + start + 1)
        return ahead[None, None, None] if blocked is None else blocked | ahead

    def _read_ragged(self, q: Tensor, n: int, wants_row: bool) -> tuple[Tensor, None, Tensor | None]:
        store, facts = self.store, self.facts
        assert facts is not None
        rows, heads = range(len(store.lengths)), range(len(store.lengths[0]))
        segments = [[(store.segment("k", i, j), store.segment("v", i, j)) for j in heads] for i in rows]
        outs, p = [], []
        for start in range(0, n, _QUERY_BLOCK):
            stop = min(start + _QUERY_BLOCK, n)
            # Tokens behind this block of queries are cut off rather than masked.
            cut = [[(k[: k.shape[0] - (n - stop)], v[: v.shape[0] - (n - stop)]) for k, v in row] for row in segments]
            out, p = attend_segments(q[:, :, start:stop], cut, stop - start, facts)
            outs.append(out)
        row = None
        if wants_row:
            group = p[0][0].shape[0]
            padded = q.new_zeros(len(p), len(p[0]), group, store.stored, dtype=torch.float32)
            for i, row_p in enumerate(p):
                for j, head in enumerate(row_p):
                    padded[i, j, :, : head.shape[-1]] = head[:, 0]
            row = reduce_group(padded, self.policy.attn_reduce)
        return (outs[0] if len(outs) == 1 else torch.cat(outs, 1)), None, row

    # ---- padding

    def _note_padding(self, mask: Any, batch: int, count: int) -> None:
        """Read which of the new tokens are padding; only a first token or several at once can bring any."""
        valid = newest_valid(mask, batch, count, self.physical, self.device)
        if valid is None and not self.padded:
            self.real = None
            return
        if valid is None:
            valid = torch.ones(batch, count, dtype=torch.bool, device=self.device)
        before = self.seen - count
        real = self.real if self.real is not None else torch.full((batch,), before > 0, device=self.device)
        begins = torch.where(valid.any(1), valid.long().argmax(1), count)
        if "start" not in self.state:
            self.state["start"] = torch.full((batch,), 0 if before else -1, device=self.device)
        fresh = ~real
        self.state["start"] = torch.where(fresh, before + begins, self.state["start"])
        # Padding in front of a row is what the stock mask describes; anywhere else we mask by ourselves.
        steps = torch.arange(count, device=self.device)
        leading = fresh[:, None] & (steps < begins[:, None])
        gaps = ~valid & ~leading
        if bool(gaps.any()):
            self.holes, self.newest = True, valid
            self._note_gaps(gaps, before)
        self.real = real | valid.any(1)
        self._mark(valid)

    def _note_gaps(self, gaps: Tensor, before: int) -> None:
        """Remember padding `[B, n]` inside a row, so that policies see its tokens stand side by side."""
        past = gaps.new_zeros(gaps.shape[0], before, dtype=torch.int64)
        if self.gaps_after is not None:
            width = min(before, self.gaps_after.shape[1])
            past[:, :width] = self.gaps_after[:, :width]
        new = gaps.long().flip(1).cumsum(1).flip(1)
        self.gaps_after = torch.cat([past + new[:, :1], new], 1)

    def _closed(self, pos: Tensor) -> Tensor:
        """Positions `[B, H, S]` with padding inside a row moved in front of it: how far back a token really is."""
        after = self.gaps_after
        if after is None:
            return pos
        known = (pos >= 0) & (pos < after.shape[1])
        index = pos.clamp(0, after.shape[1] - 1)
        return pos + after[:, None].expand(-1, pos.shape[1], -1).gather(2, index) * known

    def _mark(self, valid: Tensor) -> None:
        """Write the validity of the newest tokens into the store."""
        self.padded = True
        store = self.store.all if isinstance(self.store, SimulatedStore) else self.store
        if isinstance(store, RaggedStore | ChannelStore) and not bool(valid.all()):
            raise UnsupportedPolicy(
                f"padding in a later turn with policy {self.policy.name!r}, whose heads differ in length",
                accepted="a uniform policy such as snapkv",
                do="generate row by row",
            )
        if isinstance(store, RaggedStore | ChannelStore):
            return
        count, heads = valid.shape[1], store.buffers["v"].shape[1]
        if "valid" not in store.buffers:
            some = store.get("pos")
            store.put_side({"valid": torch.ones_like(some, dtype=torch.bool)})
        store.get("valid")[:, :, -count:] = valid[:, None].expand(-1, heads, -1)

    # ---- deciding

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

    def _remember(self, q: Tensor, count: int, prefill: bool) -> None:
        """Keep the queries that the policy wants to see at its next decision."""
        needs = self.policy.needs
        if "all_queries" in needs:
            if prefill and self.queries is not None and self.queries_end == self.seen - count:
                # A prompt in parts. Who observes has seen the earlier ones, and needs no more than its window again.
                back = max(self.policy.window - count, 0) if self.observes else None
                old = self.queries if back is None else self.queries[:, :, max(self.queries.shape[2] - back, 0) :]
                self._real_queries(old, count)
                q = torch.cat([old, q], 2)
            else:
                self.queries_real = self.newest
            self.queries, self.queries_end = (self._real_last(q) if prefill else None), self.seen
        elif "queries" in needs and (prefill or self.bounded):
            window = max(self.policy.window, 1)
            short = count < window or self.newest is not None
            if short and self.queries is not None and self.queries_end == self.seen - count:
                self._real_queries(self.queries, count)
                q = torch.cat([self.queries, q], 2)
            else:
                self.queries_real = self.newest
            q = self._real_last(q)
            self.queries = q[:, :, -window:].clone() if q.shape[2] > window else q
            if self.queries_real is not None:
                self.queries_real = self.queries_real[:, -window:]
            self.queries_end = self.seen

    def _real_queries(self, old: Tensor, count: int) -> None:
        """Which queries are real once `count` new ones stand behind the `old` ones."""
        if self.queries_real is None and self.newest is None:
            return
        b, width = old.shape[0], old.shape[2]
        ones = torch.ones(b, max(width, count), dtype=torch.bool, device=old.device)
        past = ones[:, :width] if self.queries_real is None else self.queries_real[:, -width:]
        self.queries_real = torch.cat([past, ones[:, :count] if self.newest is None else self.newest], 1)

    def _real_last(self, q: Tensor) -> Tensor:
        """Queries with those of padding inside a row moved to its front."""
        real = self.queries_real
        if real is None or self.newest is None:
            return q
        order = real.long().argsort(dim=1, stable=True)
        self.queries_real = real.gather(1, order)
        return q.gather(2, order[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))

    def _view(
        self,
        dense: Dense | None = None,
        attn: Tensor | None = None,
        queries: Tensor | None = None,
        real: Tensor | None = None,
    ) -> KVView:
        real = self.queries_real if real is None else real
        shown: Dense = self.store.dense() if dense is None else dense
        k, v, facts, state = shown.k, shown.v, self.facts, self.state
        if self.gaps_after is not None:
            state = {**state, "start": state["start"] + self.gaps_after[:, 0]}
        if self.expanded is not None:
            k, v = (x.transpose(1, 2).flatten(2)[:, None] for x in self.expanded)
            queries = None if queries is None else _block_diagonal(queries)
        return KVView(
            k, v, self._closed(shown.pos), self.seen, self.order, self.layers, shown.valid, queries, attn, shown.side,
            state, self.step, facts.scaling if facts else None, facts.softcap if facts else None,
            facts.sinks if facts else None, self.rope, None, self.store.ordered,
            None if queries is None or real is None else real[:, -queries.shape[2] :],
        )  # fmt: skip

    def _observe(self, row: Tensor | None, count: int) -> None:
        """Show the policy the pass of the `count` newest tokens."""
        if not self.observes:
            return
        queries, real = self.queries, None
        if queries is not None and "all_queries" in self.policy.needs:
            queries = queries[:, :, -count:]
            if self.newest is not None:  # their queries come last, behind some of earlier passes
                real = self.newest.sort(1).values
        side, state = self.policy.observe(self._view(attn=row, queries=queries, real=real))
        self.store.put_side(dict(side))
        self.state.update(state)

    def _probe(self, q: Tensor) -> None:
        """Show the policy queries that will be rolled back, over the slots that were there before them."""
        dense, count = self.store.dense(), q.shape[2]
        if isinstance(self.store, RaggedStore):
            # Heads end at different slots: the probe's own keys are hidden instead of cut off.
            past = dense.pos < self.seen - count
            valid = past if dense.valid is None else dense.valid & past
            side, state = self.policy.observe(self._view(replace(dense, valid=valid), queries=q))
            self.store.put_side(dict(side))
            self.state.update(state)
            return
        past = dense.first(dense.k.shape[2] - count)
        side, state = self.policy.observe(self._view(past, queries=q))
        full = {name: torch.cat([x, x.new_zeros(*x.shape[:2], count, *x.shape[3:])], 2) for name, x in side.items()}
        self.store.put_side(full)
        self.state.update(state)

    def _stored(self) -> int:
        ragged = isinstance(self.store, RaggedStore | SimulatedStore)
        return self.store.mean_stored() if ragged else self.store.stored

    def _decide(self, phase: Phase) -> None:
        if "layers" in self.policy.needs and phase != "decode":
            self._decide_jointly(phase)
        elif self._due(phase, self.decoded, self._stored(), self.tokens):
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

    # ---- commit, undo, rows

    def _settle(self) -> None:
        """Finish what the last pass left open before new tokens arrive."""
        if self.waiting:
            self._missed()
        if self.stash and not self.record_past:
            self._replay()

    def _missed(self) -> None:
        """`update` happened and attention did not come by: serve policies that need no attention, refuse the rest."""
        count, self.waiting = self.waiting, 0
        if self.policy.needs:
            raise UnsupportedPolicy(
                f"layer {self.index} stored keys but its attention never passed the bridge, so policy "
                f"{self.policy.name!r} cannot see {', '.join(sorted(self.policy.needs))}",
                accepted="attention classes that use transformers' AttentionInterface",
                do="use streaming, window, random, knorm or keydiff for this model",
            )
        self._act(self._advance(count))

    def commit(self) -> None:
        """Take the decision that `prefilling` put off."""
        if self.stash:
            self._replay()
        else:
            self._decide("prefill")

    def activate_past_recording(self) -> None:
        """Evict nothing until the next `crop`."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the newest tokens, then commit what was put off.

        Args:
            tokens_to_remove: minus the number of tokens to drop. A positive number is the length to keep.

        Raises:
            ConfigError: tokens were evicted since, so the earlier state is gone.
        """
        remove = -tokens_to_remove if tokens_to_remove <= 0 else max(self.seen - tokens_to_remove, 0)
        if remove > self.tail:
            raise ConfigError(
                f"crop of {remove} tokens, but only {self.tail} arrived since the last eviction",
                do="call activate_past_recording() before the tokens that may be undone",
            )
        if remove:
            self.store.drop_newest(remove)
            self.seen -= remove
            self.tail -= remove
            self._trim_stash(remove)
        self._replay()

    def _trim_stash(self, remove: int) -> None:
        while remove and self.stash:
            q, count, seen = self.stash.pop()
            left = count - remove
            if left > 0:
                self.stash.append((q[:, :, :left], left, seen - remove))
            remove = max(-left, 0)

    def _replay(self) -> None:
        """Do for the stashed queries what would have been done had their tokens come one by one."""
        stash, self.stash = self.stash, []
        for q, count, seen in stash:
            if seen == count:
                self.step = 0
                self._remember(q, count, True)
                self._observe(None, count)
                self._decide("prefill")
            else:
                self._replay_decode(q, count)

    def _replay_decode(self, q: Tensor, count: int) -> None:
        acts = False
        seen = self.seen
        for i in range(count):
            self.seen = seen - count + i + 1
            self.step += 1
            self.decoded += 1
            self._remember(q[:, :, i : i + 1], 1, False)
            if self.observes or "attn" in self.policy.needs:
                self._observe_past(q[:, :, i : i + 1], count - i - 1)
            stored = self._stored() - (count - i - 1)
            acts = acts or self._due("decode", self.decoded, stored, self.tokens)
        self.seen = seen
        if acts:
            self._evict("decode")
        self.row = None

    def _observe_past(self, q: Tensor, newer: int) -> None:
        """Observe a decode row as it was before the `newer` newest slots existed."""
        dense = self.store.dense()
        stored = dense.k.shape[2] - newer
        cut = dense.first(stored)
        row = None
        if "attn" in self.policy.needs:
            assert self.facts is not None
            hidden = None if cut.valid is None else ~cut.valid[:, :, None, None, :]
            _, p = attend_dense(q, [(cut.k, None)], cut.v, hidden, self.facts)
            row = reduce_group(p[:, :, :, 0], self.policy.attn_reduce)
        self.row = row
        side, state = self.policy.observe(self._view(cut, attn=row))
        self.store.put_side({name: torch.cat([x, dense.side[name][:, :, stored:]], 2) for name, x in side.items()})
        self.state.update(state)

    def tokens_until_eviction(self) -> int:
        """Tokens that may be appended before the policy acts; drafts must not reach past it."""
        distance = _FOREVER
        for trigger in self.policy.when:
            room = max(self.tokens - self._stored(), 0)
            if trigger.kind == "step":
                distance = min(distance, room)
            elif trigger.kind == "every":
                distance = min(distance, max(room, trigger.n - self.decoded % trigger.n - 1))
            elif trigger.kind == "overflow":
                distance = min(distance, max(self.tokens + trigger.n - self._stored() - 1, 0))
        return distance

    def drop_positions(self, drop: Tensor) -> None:
        """Evict by true position: `drop` `[B, seen]` bool marks what goes. Rows may differ in how much they lose."""
        if not isinstance(self.store, SlotStore):
            raise UnsupportedPolicy(f"dropping spans from the layout of policy {self.policy.name!r}")
        pos = self.store.get("pos")
        gone = drop[:, None].expand(-1, pos.shape[1], -1).gather(2, pos)
        left = (~gone).sum(-1)
        width = int(left.max())
        if bool((left != width).any()):
            # Shorter rows keep some dropped slots as holes at the front, so that all rows stay one rectangle.
            if not self.padded:
                self._mark(torch.ones(pos.shape[0], 1, dtype=torch.bool, device=self.device))
            self.store.get("valid")[gone] = False
            self.holes = True
        order = torch.where(gone, pos - _FOREVER, pos).argsort(-1)[..., pos.shape[2] - width :]
        self.store.gather(order)
        self.tail = 0
        self.ledger.note(self.order, self.store.allocated())

    def truncate(self, length: int) -> None:
        """Drop every token at position `length` or later and set the seen length; uniform slots only."""
        if not isinstance(self.store, SlotStore):
            raise UnsupportedPolicy(f"truncating the layout of policy {self.policy.name!r}")
        pos = self.store.get("pos")
        left = (pos < length).sum(-1)
        width = int(left.flatten()[0])
        if bool((left != width).any()):
            raise UnsupportedPolicy("truncating rows or heads that kept different tokens")
        self.store.gather(torch.where(pos < length, pos, _FOREVER).argsort(-1)[..., :width])
        self.seen, self.tail, self.waiting = length, 0, 0
        if self.gaps_after is not None and length < self.gaps_after.shape[1]:
            self.gaps_after = self.gaps_after[:, :length] - self.gaps_after[:, length : length + 1]
            self.gaps_after = self.gaps_after if length else None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder rows, side state included."""
        self._rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        if self.seen:
            self._rows(torch.arange(self._batch()).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        if self.seen:
            self._rows(indices.nonzero().flatten() if indices.dtype == torch.bool else indices)

    def _batch(self) -> int:
        return len(self.store.lengths) if isinstance(self.store, RaggedStore) else self.store.buffers["v"].shape[0]

    def _rows(self, index: Tensor) -> None:
        if not self.seen:
            return
        self.store.take_rows(index)
        pick = lambda x: x.index_select(0, index.to(x.device))  # noqa: E731
        self.state = {name: pick(x) for name, x in self.state.items()}
        self.stash = [(pick(q), n, seen) for q, n, seen in self.stash]
        for name in ("real", "queries", "queries_real", "gaps_after", "sink_base", "sink_ready"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else pick(value))

    def reset(self) -> None:
        """Back to empty, as if just made."""
        self._empty()

    def offload(self) -> None:
        """Move every tensor to the CPU, side state too; the next `update` moves them to where its keys are."""
        self.to(torch.device("cpu"))

    def prefetch(self) -> None:
        """Nothing to do: `update` moves the tensors to where its keys are."""

    def to(self, device: torch.device) -> None:
        """Move every tensor of this layer."""
        self.device = device
        if not self.seen:
            return
        self.store.to(device)
        self.state = {name: x.to(device) for name, x in self.state.items()}
        self.stash = [(q.to(device), n, seen) for q, n, seen in self.stash]
        for name in ("real", "queries", "queries_real", "gaps_after", "sink_base", "sink_ready", "row"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.to(device))


def _block_diagonal(q: Tensor) -> Tensor:
    """Queries `[B, Hq, W, D]` -> `[B, Hq, W, Hq * D]`, each in the block of its own head.

    One latent head then looks like one KV head with Hq query heads, and every policy works as it is.
    """
    b, h, w, d = q.shape
    out = q.new_zeros(b, h, w, h, d)
    heads = torch.arange(h, device=q.device)
    out[:, heads, :, heads] = q.transpose(0, 1)
    return out.flatten(3)


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
