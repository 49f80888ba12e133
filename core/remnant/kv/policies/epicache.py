"""EpiCache: keep what the topic of an episode attends to, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from remnant.errors import ShapeError
from remnant.kv.policy import Layout, Need, Phase, Policy, Side, Trigger, check, register_policy
from remnant.kv.score import Pooling, group_columns
from remnant.kv.select import PADDING, protect, select, select_flat
from remnant.kv.view import Keep, KVView

_SCORE, _PROBED = "episodic", "probed"


@register_policy("epicache")
@dataclass(frozen=True)
class EpiCache(Policy):
    """The largest attention that a stored token gets from a patched prompt, over its queries and its query heads.

    The patched prompt is forwarded after a block without being stored (the host's `probe`); `observe` notes what it
    looked at, and the next decision uses it. Without a probe the last `window` queries of the block take its place.

    Args:
        window: newest tokens that observe, and stay, when no patched prompt was given.
        kernel: odd width of a pooling over neighbours, in tokens; 1 is none, as in the paper.
        pooling: `max` or `avg`; matters only with a kernel.
        allocation: `flat` shares a layer's budget over its heads by score, `uniform` gives each head the same.
        per_layer: tokens per head of every layer, from `episodes.sensitivity_budgets`; None is the same for all.
        sinks: first tokens that are always kept.

    Source: Kim et al. 2025, arXiv 2509.17396. Differs: sinks are really protected, the prompt stands one position
    after the block and not on its last token, batches work.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"all_queries"})
    layout: ClassVar[Layout] = "ragged"
    source: ClassVar[str] = "Kim et al. 2025, arXiv 2509.17396"
    claim: ClassVar[str] = "one bounded cache per topic of a long conversation"
    sides: ClassVar[tuple[Side, ...]] = (Side(_SCORE, torch.float32),)
    wants: ClassVar[str] = (
        "the conversation, to find its topics; until then the end of each block stands for all of them"
    )
    protects: ClassVar[str] = "sinks; last window when no patched prompt was given"

    sinks: int = 4
    window: int = 32  # pyright: ignore[reportIncompatibleMethodOverride]
    kernel: int = 1
    pooling: Pooling = "max"
    allocation: Literal["flat", "uniform"] = "flat"
    per_layer: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Validate options."""
        super().__post_init__()
        check(self, "window", self.window >= 1, "an integer of at least 1")
        check(self, "kernel", self.kernel >= 1 and self.kernel % 2 == 1, "an odd integer of at least 1")
        check(self, "pooling", self.pooling in ("avg", "max", "none"), "avg, max, none")
        check(self, "allocation", self.allocation in ("flat", "uniform"), "flat, uniform")
        least = self.minimum
        check(self, "per_layer", all(n >= least for n in self.per_layer or ()), f"integers of at least {least}")

    @property
    def when(self) -> tuple[Trigger, ...]:
        """After every block of a blocked prefill, or at the end of a whole one."""
        return (Trigger("prefill_end"), Trigger("block"))

    @property
    def minimum(self) -> int:
        """The window, the sinks and one token more."""
        return self.window + self.sinks + 1

    def due(self, phase: Phase, step: int, stored: int, budget: int) -> bool:
        """As soon as the smallest layer is above its budget."""
        return super().due(phase, step, stored, min([budget, *(self.per_layer or ())]))

    def attended(self, view: KVView, queries: Tensor, old: Tensor) -> Tensor:
        """`[B, H, S]` largest probability that queries `[B, G*H, W, D]` give each of the `old` slots among them."""
        # All queries are newer than what counts as old, so the causal rule is out of the way behind `seen`.
        shown = replace(view, queries=queries, valid=old, seen=view.seen + queries.shape[2])
        return group_columns(shown, "max", "max", self.kernel, self.pooling).masked_fill(~old, 0.0)

    def observe(self, view: KVView) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Note what a patched prompt attends to: queries that are newer than every stored key."""
        b = view.shape[0]
        if view.queries is None or not self._probing(view):
            return {}, {}
        scores = self.attended(view, view.queries, _real(view))
        before = view.side.get(_SCORE)
        side = scores if before is None else torch.maximum(before, scores)
        return {_SCORE: side}, {_PROBED: torch.ones(b, dtype=torch.bool, device=view.k.device)}

    @staticmethod
    def _probing(view: KVView) -> bool:
        """Whether the shown queries belong to tokens whose keys are not stored."""
        if view.queries is None or view.shape[2] == 0:
            return False
        return bool((view.positions[_real(view)] < view.seen - view.queries.shape[2]).all())

    def score(self, view: KVView) -> Tensor:
        """What the patched prompts of this block attended to; without one, what the block's end attends to."""
        real = _real(view)
        noted, probed = view.side.get(_SCORE), view.state.get(_PROBED)
        if noted is not None and probed is not None and bool(probed.all()):
            return noted.masked_fill(~real, PADDING)
        if view.queries is None:
            raise ShapeError("no patched prompt was noted and the view shows no queries", accepted="one of the two")
        queries = view.queries[:, :, -self.window :]
        own = view.positions >= view.seen - self.window
        scores = self.attended(view, queries, real & ~own)
        return torch.where(own, torch.inf, scores).masked_fill(~real, PADDING)

    def budget(self, view: KVView, tokens: int) -> int:
        """The layer's own budget where one was given."""
        if self.per_layer is None:
            return tokens
        check(self, "per_layer", len(self.per_layer) == view.layers, f"{view.layers} integers, one per layer")
        return self.per_layer[view.layer]

    def plan(self, view: KVView, tokens: int) -> Keep:
        """Keep the best of the layer (`flat`) or of each head (`uniform`), and forget the scores."""
        scores = protect(self.score(view), view, self.sinks, self.recent)
        n = self.budget(view, tokens)
        keep = select_flat(scores, n * view.shape[1], view) if self.allocation == "flat" else select(scores, n, view)
        cleared = torch.zeros(keep.indices.shape, device=view.k.device)
        b = torch.zeros(view.shape[0], dtype=torch.bool, device=view.k.device)
        return replace(keep, side={_SCORE: cleared}, state={_PROBED: b})


def _real(view: KVView) -> Tensor:
    """`[B, H, S]` bool: slots that hold a token."""
    return torch.ones_like(view.positions, dtype=torch.bool) if view.valid is None else view.valid
