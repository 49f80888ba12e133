"""H2O: keep the heavy hitters, tokens that gathered the most attention so far, beside the newest ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from remnant.kv.budget import portion
from remnant.kv.policy import Need, Policy, Side, Trigger, check, register_policy
from remnant.kv.score import Reduce, group_columns
from remnant.kv.select import protect, select, victims
from remnant.kv.view import Keep, KVView


@register_policy("h2o")
@dataclass(frozen=True)
class H2O(Policy):
    """A running sum of attention per slot decides; part of the budget is reserved for the newest tokens.

    Args:
        recent_share: fraction of the budget that the newest tokens hold, rounded down; 0.5 as in the paper.
        normalise: divide the sum by the number of queries that could see the slot, which removes the advantage of age.
        score_queries: which queries of a prompt count: `all` as in the paper, or the `last` ones of each pass.
        window: how many queries `last` means.
        sinks: first tokens that are always kept.
        recent: newest tokens that are always kept, should the share be smaller.

    Source: Zhang et al. 2023, arXiv 2306.14048. Differs: sums are per sequence and per KV head (the original sums over
    the batch), the column sums of a prompt are streamed, and ties go to the later position.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"all_queries", "attn"})
    source: ClassVar[str] = "Zhang et al. 2023, arXiv 2306.14048"
    claim: ClassVar[str] = "what was read often will be read again"
    attn_reduce: ClassVar[Reduce] = "mean"
    sides: ClassVar[tuple[Side, ...]] = (Side("mass", torch.float32),)
    protects: ClassVar[str] = "newest share of the budget"

    recent_share: float = 0.5
    normalise: bool = False
    score_queries: Literal["all", "last"] = "all"
    window: int = 32  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self) -> None:
        """Validate options."""
        super().__post_init__()
        check(self, "recent_share", 0 <= self.recent_share <= 1, "a fraction from 0 to 1")
        check(self, "score_queries", self.score_queries in ("all", "last"), "all, last")
        check(self, "window", self.window >= 1, "an integer of at least 1")
        counted = not self.normalise or self.score_queries == "all"
        check(self, "normalise", counted, "False with score_queries='last', where slots are not seen equally often")

    @property
    def when(self) -> tuple[Trigger, ...]:
        """After every block, at the end of a prompt and at every decoded token."""
        return (Trigger("prefill_end"), Trigger("block"), Trigger("step"))

    @property
    def in_place(self) -> bool:
        """`evict` below is the twin of `plan` below."""
        return self.bounded

    def observe(self, view: KVView) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Add what every slot received in this pass."""
        new = view.attn if view.step > 0 else None
        if new is None:
            if self.score_queries == "last" and view.queries is not None:
                view = replace(view, queries=view.queries[:, :, -self.window :])
            new = group_columns(view, self.attn_reduce)
        return {"mass": view.side["mass"] + new}, {}

    def score(self, view: KVView) -> Tensor:
        """The attention gathered so far, or its mean per query."""
        mass = view.side["mass"]
        return mass / (view.seen - view.positions).clamp(min=1) if self.normalise else mass

    def _protected(self, view: KVView, tokens: int) -> Tensor:
        recent = max(self.recent, portion(tokens, self.recent_share))
        return protect(self.score(view), view, self.sinks, min(recent, tokens - self.sinks))

    def plan(self, view: KVView, tokens: int) -> Keep:
        """The newest share and the heaviest of the rest."""
        return select(self._protected(view, tokens), tokens, view)

    def evict(self, view: KVView, count: int) -> Tensor:
        """What `plan` would drop with a budget of `S - count`."""
        return victims(self._protected(view, view.shape[2] - count), count, view)
