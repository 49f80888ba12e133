"""The attention of a layer over its store: by the stock function wherever that can read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from remnant.errors import UnsupportedPolicy
from remnant.kv.score import reduce_group
from remnant_hf._padding import Padding
from remnant_hf._paging import PageIndex
from remnant_hf.attention import attend_dense, attend_segments
from remnant_hf.masks import fit
from remnant_hf.store import ChannelStore, RaggedStore, SimulatedStore, SlotStore
from remnant_kernels.dispatch import wanted
from remnant_kernels.op import get_op

__all__ = ["Reading"]

_QUERY_BLOCK = 128


class Reading(Padding):
    """The part of `RemnantLayer` that computes attention."""

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
        if self._pages_matter(n):
            return self._read_pages(q, k, v), None, None
        wants_row = n == 1 and "attn" in self.policy.needs and self.seen > n and not self.ledger.prefilling
        if isinstance(self.store, RaggedStore):
            return self._read_ragged(q, n, wants_row)
        masked = self.holes or (self.padded and not self.store.ordered)
        if isinstance(self.store, SlotStore) and not wants_row and not masked:
            out, weights = inner(module, q, k, v, fit(mask, k.shape[2], n), *args, **kw)
            return out, weights, None
        return self._read_own(q, k, v, n, wants_row)

    def _pages_matter(self, n: int) -> bool:
        """Whether these tokens read pages: decoded ones, one by one or as drafts, once there is more than the budget.

        Padding inside a row shifts pages against their tokens; such a batch is read whole, which is never wrong.
        """
        if self.pages is None or self.seen == n or self.ledger.prefilling or self.ledger.probing or self.holes:
            return False
        return (n == 1 or self.record_past) and self.physical > self.budget

    def _read_pages(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`[B, n, G*H, D]`; every draft reads the pages that it would read if it came alone."""
        assert self.pages is not None
        assert self.facts is not None
        if self.expanded is not None or self.facts.softcap is not None:
            raise UnsupportedPolicy(
                f"policy {self.policy.name!r} on a layer with latent attention (MLA) or a soft cap",
                accepted="plain attention",
                do="use policy 'full' for this model",
            )
        if not self.indexes:
            starts = self.state["start"].tolist() if self.padded else []
            rows = [(slice(i, i + 1), max(0, start)) for i, start in enumerate(starts)]
            self.indexes = [PageIndex(self.pages, *one) for one in rows or [(slice(None), 0)]]
        n, stored = q.shape[2], k.shape[2]
        outs: list[Tensor] = []
        for i in range(n):
            end = stored - n + i + 1
            parts = [ix.read(q[:, :, i], k[:, :, :end], v[:, :, :end], self.budget, self.facts) for ix in self.indexes]
            outs.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        return torch.stack(outs, 1)

    def _read_own(self, q: Tensor, k: Tensor, v: Tensor, n: int, wants_row: bool) -> tuple[Tensor, None, Tensor | None]:
        assert self.facts is not None
        if n == 1 and type(self.store) is SlotStore and self.expanded is None and wanted("decode_attention", k):
            return self._read_by_kernel(q, k, v, wants_row)
        blocks = [(k, None)]
        if isinstance(self.store, ChannelStore):
            blocks, v = self.store.keys(), self.store.whole.get("v")
        hidden, stored = self._hidden(), v.shape[2]
        if hidden is None and not wants_row and (out := self._read_plainly(q, blocks, v, n)) is not None:
            return out, None, None
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

    def _read_by_kernel(
        self, q: Tensor, k: Tensor, v: Tensor, wants_row: bool, **ragged: Any
    ) -> tuple[Tensor, None, Tensor | None]:
        """One token: keys and values are read once, for the output and for what the policy wants to see."""
        facts, hidden = self.facts, None if ragged else self._hidden()
        assert facts is not None
        bias = None if hidden is None else torch.zeros(hidden.shape, device=q.device).masked_fill(hidden, float("-inf"))
        how = self.policy.attn_reduce
        done = get_op("decode_attention")(
            q=q[:, :, 0], k=k, v=v, bias=bias, sinks=facts.sinks, scale=facts.scaling, softcap=facts.softcap,
            score="row" if wants_row else "none", reduce="max" if how == "any" else how, **ragged,
        )  # fmt: skip
        return done.out[:, None], None, done.score

    def _read_plainly(self, q: Tensor, blocks: list[Any], v: Tensor, n: int) -> Tensor | None:
        """`[B, n, G*H, Dv]` by a kernel, where nothing is hidden but what comes later; None where none fits."""
        facts = self.facts
        assert facts is not None
        if isinstance(self.store, ChannelStore):
            plain = facts.softcap is None and facts.sinks is None
            if n > 1 or not plain or not wanted("pruned_decode", q):
                return None
            (pruned, channels), (recent, _) = blocks
            done = get_op("pruned_decode")(
                q=q[:, :, 0], k_pruned=pruned, channels=channels, k_recent=recent, v=v, scale=facts.scaling
            )
            return done.out[:, None]
        if type(self.store) is not SlotStore or self.expanded is not None or not wanted("attention", q):
            return None
        done = get_op("attention")(
            q=q, k=blocks[0][0], v=v, sinks=facts.sinks, scale=facts.scaling, softcap=facts.softcap
        )
        return done.out.transpose(1, 2)

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
        if n == 1 and wanted("decode_attention", q):
            begin, lens = (torch.tensor(x, device=q.device) for x in (store.starts, store.lengths))
            flat = {"begin": begin, "lens": lens, "width": store.stored}
            return self._read_by_kernel(q, store.buffers["k"], store.buffers["v"], wants_row, **flat)
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
