"""SnapKV: keep what the end of the prompt attends to, and its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from remnant.kv.policy import Need, Policy, Trigger, check, register_policy
from remnant.kv.score import Pooling, Reduce, group_columns
from remnant.kv.select import PADDING
from remnant.kv.view import KVView


@register_policy("snapkv")
@dataclass(frozen=True)
class SnapKV(Policy):
    """Attention of the last `window` queries, pooled over neighbours; compresses once per prompt.

    Where the host is asked to take the prompt in blocks, every block is compressed by its own last queries.

    Args:
        window: newest tokens that observe, and that are always kept.
        kernel: odd width of the pooling, in tokens.
        pooling: `avg`, `max` or `none`.
        reduce: how the query heads of a group are reduced to their KV head: `mean`, `max` or `sum`.
        pad_counts: divide edge windows of the average by the full kernel, as the original code does.
        refresh: score and compress again every so many decoded tokens; 0 lets decoded tokens append, as in the paper.
        sinks: first tokens that are always kept.

    Source: Li et al. 2024, arXiv 2404.14469. Differs: selection is per KV head (the original repeats keys to query
    heads and so loses the memory of GQA), kept positions are sorted, and pooling averages over what competes only:
    neither padding nor the window counts.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"queries"})
    source: ClassVar[str] = "Li et al. 2024, arXiv 2404.14469"
    claim: ClassVar[str] = "keeps what a question at the end of the prompt will read"
    protects: ClassVar[str] = "last window"

    window: int = 32  # pyright: ignore[reportIncompatibleMethodOverride]
    kernel: int = 5
    pooling: Pooling = "avg"
    reduce: Reduce = "mean"
    pad_counts: bool = False
    refresh: int = 0

    def __post_init__(self) -> None:
        """Validate options."""
        super().__post_init__()
        check(self, "window", self.window >= 1, "an integer of at least 1")
        check(self, "kernel", self.kernel >= 1 and self.kernel % 2 == 1, "an odd integer of at least 1")
        check(self, "pooling", self.pooling in ("avg", "max", "none"), "avg, max, none")
        check(self, "reduce", self.reduce in ("mean", "max", "sum"), "mean, max, sum")
        check(self, "refresh", self.refresh >= 0, "an integer of at least 0")

    @property
    def when(self) -> tuple[Trigger, ...]:
        """At the end of a prompt or of a block of it, and every `refresh` decoded tokens."""
        again = (Trigger("every", self.refresh),) if self.refresh else ()
        return (Trigger("prefill_end"), Trigger("block"), *again)

    @property
    def in_place(self) -> bool:
        """Never: pooling is over neighbouring slots, so a slot must not be overwritten by a token from elsewhere."""
        return False

    @property
    def minimum(self) -> int:
        """The window, the sinks and one token more."""
        return self.window + self.sinks + 1

    def observed(self, view: KVView) -> Tensor:
        """`[B, H, S]` pooled attention of the window, before protection; the window's own slots do not spread."""
        old = view.positions < view.seen - self.window
        if view.valid is not None:
            old = old & view.valid
        scores = group_columns(
            view, self.reduce, kernel=self.kernel, pooling=self.pooling, pad_counts=self.pad_counts, among=old
        )
        return scores.masked_fill(~old, PADDING)

    def score(self, view: KVView) -> Tensor:
        """Pooled attention; the window itself is above everything."""
        newest = view.positions >= view.seen - self.window
        return torch.where(newest, torch.inf, self.observed(view))
