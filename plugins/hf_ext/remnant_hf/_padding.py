"""Padding in front of a row and inside it: what is real, and how far back a token really is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from remnant.errors import UnsupportedPolicy
from remnant_hf._state import LayerState
from remnant_hf.masks import newest_valid
from remnant_hf.store import ChannelStore, RaggedStore, SimulatedStore

__all__ = ["Padding"]


class Padding(LayerState):
    """The part of `RemnantLayer` that reads masks."""

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
