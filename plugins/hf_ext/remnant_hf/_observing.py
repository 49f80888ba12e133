"""What a policy is shown: the queries it wants to see, views of the store, and every pass it watches."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from remnant.kv.score import reduce_group
from remnant.kv.view import KVView
from remnant_hf._reading import Reading
from remnant_hf.attention import attend_dense
from remnant_hf.store import Dense, RaggedStore

__all__ = ["Observing"]


class Observing(Reading):
    """The part of `RemnantLayer` that shows."""

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


def _block_diagonal(q: Tensor) -> Tensor:
    """Queries `[B, Hq, W, D]` -> `[B, Hq, W, Hq * D]`, each in the block of its own head.

    One latent head then looks like one KV head with Hq query heads, and every policy works as it is.
    """
    b, h, w, d = q.shape
    out = q.new_zeros(b, h, w, h, d)
    heads = torch.arange(h, device=q.device)
    out[:, heads, :, heads] = q.transpose(0, 1)
    return out.flatten(3)
