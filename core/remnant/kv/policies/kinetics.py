"""Kinetics: keep everything, and read at every token only the pages that matter to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from remnant.kv.policy import Pages, Policy, Trigger, check, register_policy
from remnant.kv.view import Keep, KVView


@register_policy("kinetics")
@dataclass(frozen=True)
class Kinetics(Policy):
    """Block top-k at read time: nothing is evicted, memory stays that of a full cache, a step reads `budget` tokens.

    Args:
        page: tokens per page.
        summary: `bounds` scores a page by the largest logit that its channel-wise bounds allow (Quest), `mean` by its
            mean key, at half the bytes to search. On the testbed at a budget of 10 % a single key drowns in a mean:
            0.06 of late passkeys and 0.30 of recalled facts, against 0.94 and 0.73 by bounds
            (`benchmarks/results/kinetics.jsonl`).
        sink_pages: first pages that are always read.
        local_pages: last pages that are always read, the open one counted.
        dense_layers: first layers that are read whole.

    Source: Sadhukhan et al. 2025 (Kinetics), arXiv 2506.05333, block top-k; bounds after Tang et al. 2024 (Quest),
    arXiv 2406.10774. Differs: bounds by default, see `summary`; pages lie at fixed places, the first and the newest
    are always read, and a group of query heads shares its pages in both forms.
    """

    source: ClassVar[str] = "Sadhukhan et al. 2025, arXiv 2506.05333"
    claim: ClassVar[str] = "nothing is forgotten, and a step reads only what it looks for"

    page: int = 16
    summary: Literal["mean", "bounds"] = "bounds"
    sink_pages: int = 1
    local_pages: int = 2
    dense_layers: int = 1

    def __post_init__(self) -> None:
        """Validate options."""
        super().__post_init__()
        check(self, "page", self.page >= 1, "an integer of at least 1")
        check(self, "summary", self.summary in ("mean", "bounds"), "mean, bounds")
        check(self, "sink_pages", self.sink_pages >= 0, "an integer of at least 0")
        check(self, "local_pages", self.local_pages >= 1, "an integer of at least 1: the newest token reads itself")
        check(self, "dense_layers", self.dense_layers >= 0, "an integer of at least 0")

    @property
    def when(self) -> tuple[Trigger, ...]:
        """Never: nothing is evicted."""
        return ()

    @property
    def reads(self) -> Pages:
        """The pages of a step."""
        return Pages(self.page, self.summary, self.sink_pages, self.local_pages, self.dense_layers)

    @property
    def minimum(self) -> int:
        """One page: the newest."""
        return self.page

    def plan(self, view: KVView, tokens: int) -> Keep:
        """Everything, to a host that asks without being due."""
        return Keep.everything(view)
