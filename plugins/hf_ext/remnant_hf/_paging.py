"""Reading some pages of a store: summaries that grow with it, and attention over the pages that are chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from remnant.kv.policy import Pages
from remnant_hf.attention import Facts
from remnant_kernels import get_op

__all__ = ["PageIndex"]


class PageIndex:
    """Summaries of the pages of one layer, for rows that begin at one slot.

    Args:
        pages: how they are made and read.
        rows: rows of the batch that it covers.
        start: slot of their first token: pages are counted from there, so that padding changes nothing.
    """

    def __init__(self, pages: Pages, rows: slice, start: int) -> None:
        """See the class."""
        self.pages, self.rows, self.start = pages, rows, start
        self._summaries: list[Tensor] = []
        self._closed = 0

    def read(self, q: Tensor, k: Tensor, v: Tensor, tokens: int, facts: Facts) -> Tensor:
        """Attention of one token per row.

        Args:
            q: `[B, G*H, D]`, all rows of the batch; those that this index covers are taken.
            k: `[B, H, S, D]`.
            v: `[B, H, S, D]`.
            tokens: read at most, per KV head.
            facts: how the layer scales.

        Returns:
            `[b, G*H, D]` for the rows that this index covers.
        """
        pages = self.pages
        q, k, v = q[self.rows], k[self.rows, :, self.start :], v[self.rows, :, self.start :]
        count = self._follow(k)
        found = [summary[:, :, :count] for summary in self._summaries]
        named = {"mean": found[0]} if pages.summary == "mean" else {"low": found[0], "high": found[1]}
        sinks, local, chosen = pages.shares(tokens)
        done = get_op("block_sparse_decode")(
            q=q, k=k, v=v, page=pages.size, pages=chosen, sinks=sinks, local=local, scale=facts.scaling, **named
        )
        if facts.sinks is None:
            return done.out
        sink = facts.sinks.float()  # a logit without a value: it takes its share of the denominator
        share = (done.lse - torch.logaddexp(done.lse, sink)).exp()
        return (done.out.float() * share[..., None]).to(done.out.dtype)

    def _follow(self, k: Tensor) -> int:
        """Summarise what is new since the last call, the open page again; pages in all."""
        size, stored = self.pages.size, k.shape[2]
        full, count = stored // size, -(-stored // size)
        self._closed = min(self._closed, full)  # tokens may have been taken back
        fresh = get_op("page_summaries")(k=k[:, :, self._closed * size :], page=size)
        wanted = [fresh.mean] if self.pages.summary == "mean" else [fresh.low, fresh.high]
        if not self._summaries or count > self._summaries[0].shape[2]:
            self._grow(wanted, count + 8 + count // 8)
        for summary, new in zip(self._summaries, wanted, strict=True):
            summary[:, :, self._closed : count] = new
        self._closed = full
        return count

    def _grow(self, like: list[Tensor], capacity: int) -> None:
        old = self._summaries
        self._summaries = [x.new_zeros(*x.shape[:2], capacity, x.shape[3]) for x in like]
        for summary, before in zip(self._summaries, old, strict=False):
            summary[:, :, : before.shape[2]] = before
