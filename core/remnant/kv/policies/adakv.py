"""AdaKV: SnapKV whose heads share one budget, so that heads with spread-out attention keep more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from remnant.kv.budget import allocate_floor, portion
from remnant.kv.policies.snapkv import SnapKV
from remnant.kv.policy import Layout, check, register_policy
from remnant.kv.score import Pooling
from remnant.kv.select import PADDING, protect, select, select_flat
from remnant.kv.view import Keep, KVView


@register_policy("adakv")
@dataclass(frozen=True)
class AdaKV(SnapKV):
    """SnapKV's scores compete over all heads of a layer; each head is sure of a floor and of its window.

    Args:
        floor: fraction of the average budget behind the window that every head keeps, rounded down.
        window: newest tokens that observe, and that every head keeps.
        kernel: odd width of the pooling, in tokens; 7 as in the authors' evaluation.
        pooling: `avg`, `max` or `none`; `max` as in the authors' evaluation.
        reduce: how the query heads of a group are reduced to their KV head: `mean`, `max` or `sum`.
        pad_counts: see `snapkv`.
        refresh: see `snapkv`.
        sinks: first tokens that every head keeps.

    Source: Feng et al. 2024, arXiv 2407.11550. Differs: the budgets of the heads sum to heads * budget exactly (the
    original rounds each by itself), every sequence of a batch is allocated by itself, and nothing is spent on padding.
    """

    layout: ClassVar[Layout] = "ragged"
    source: ClassVar[str] = "Feng et al. 2024, arXiv 2407.11550"
    claim: ClassVar[str] = "the same total, spent on the heads that need it"

    kernel: int = 7
    pooling: Pooling = "max"
    floor: float = 0.2

    def __post_init__(self) -> None:
        """Validate options."""
        super().__post_init__()
        check(self, "floor", 0 <= self.floor <= 1, "a fraction from 0 to 1")

    def _allocate(self, scores: Tensor, view: KVView, tokens: int) -> Tensor:
        """`[B, H]` tokens kept per head, from protected scores."""
        # Between the infinities: neither protected nor padding.
        open_ = torch.isfinite(scores)
        room, always = open_.sum(-1), torch.isposinf(scores).sum(-1)
        middle = max(tokens - max(self.window, self.recent) - self.sinks, 0)
        total = torch.minimum((scores.shape[1] * tokens - always.sum(-1)).clamp(min=0), room.sum(-1))
        flat = select_flat(scores.masked_fill(~open_, PADDING), total, view)
        wanted = room if flat.lengths is None else flat.lengths
        return always + allocate_floor(wanted, room, portion(middle, self.floor))

    def budget(self, view: KVView, tokens: int) -> Tensor | int:
        """Tokens kept per head, `[B, H]`."""
        return self._allocate(protect(self.score(view), view, self.sinks, self.recent), view, tokens)

    def plan(self, view: KVView, tokens: int) -> Keep:
        """Score once, allocate, select; everything stays within the budget."""
        if view.shape[2] <= tokens:
            return Keep.everything(view)
        scores = protect(self.score(view), view, self.sinks, self.recent)
        return select(scores, self._allocate(scores, view, tokens), view)
