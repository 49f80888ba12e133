"""TIM: drop the inside of finished subtask lists while a model reasons as a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from remnant.kv.policy import Need, Policy, Trigger, check, register_policy
from remnant.kv.select import select
from remnant.kv.view import Keep, KVView


@register_policy("tim")
@dataclass(frozen=True)
class TIM(Policy):
    """Prune by structure: a host parses what is written and names spans of finished subtask lists.

    Without such events nothing is ever evicted, and the budget is not enforced: what stays is what the tree needs.

    Args:
        buffer: finished lists that stay before the oldest is dropped; 0 drops a list before its parent's conclusion.
        reuse_positions: move what follows a gap into it by encoding it again (`remnant_hf.reason` does);
            otherwise the gap stays in the positions.

    Source: Luo et al. 2025, arXiv 2507.16784. Differs: their engine is not public, so this follows the paper's text;
    no grammar is forced, and malformed output ends the pruning.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"events", "tokens"})
    source: ClassVar[str] = "Luo et al. 2025, arXiv 2507.16784"
    claim: ClassVar[str] = "working memory of a reasoning tree: finished branches leave only their conclusion"
    wants: ClassVar[str] = "the text being written, to see where subtask lists end; until then nothing is evicted"
    protects: ClassVar[str] = "everything outside finished subtask lists"

    buffer: int = 1
    reuse_positions: bool = False

    def __post_init__(self) -> None:
        """Validate options."""
        super().__post_init__()
        check(self, "buffer", self.buffer >= 0, "an integer of at least 0")

    @property
    def when(self) -> tuple[Trigger, ...]:
        """Only when told."""
        return (Trigger("event"),)

    def plan(self, view: KVView, tokens: int) -> Keep:
        """Evict nothing: without events there is nothing to prune."""
        return Keep.everything(view)

    def plan_spans(self, view: KVView, spans: Sequence[tuple[int, int]], row: int | None = None) -> Keep:
        """Drop the slots whose positions lie in spans.

        Args:
            view: one layer.
            spans: `(start, end)` true positions, end excluded.
            row: the sequence they belong to; None for all.

        Returns:
            The plan; ragged when rows keep different numbers of slots.
        """
        drop = torch.zeros_like(view.positions, dtype=torch.bool)
        for start, end in spans:
            drop |= (view.positions >= start) & (view.positions < end)
        if row is not None:
            drop &= (torch.arange(view.shape[0], device=drop.device) == row).view(-1, 1, 1)
        stay = ~drop
        counts = stay.sum(-1)
        same = counts.numel() > 0 and bool((counts == counts.flatten()[0]).all())
        return select(stay.float(), int(counts.flatten()[0]) if same else counts, view)
