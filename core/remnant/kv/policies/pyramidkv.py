"""PyramidKV: SnapKV with more tokens in the early layers and fewer in the late ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from remnant.kv.budget import pyramid, trim
from remnant.kv.policies.snapkv import SnapKV
from remnant.kv.policy import check, register_policy
from remnant.kv.score import Pooling


@register_policy("pyramidkv")
@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV's score; budgets fall linearly over the layers and never sum to more than the configured total.

    Args:
        beta: the last layer keeps about `(budget - window) // beta` tokens beside its window.
        window: newest tokens that observe, and that are always kept; 8 as in the authors' evaluation.
        kernel: odd width of the pooling, in tokens; 7 as in the authors' evaluation.
        pooling: `avg`, `max` or `none`; `max` as in the authors' evaluation.
        reduce: how the query heads of a group are reduced to their KV head: `mean`, `max` or `sum`.
        pad_counts: see `snapkv`.
        refresh: see `snapkv`.
        sinks: first tokens that are always kept.

    Source: Cai et al. 2024, arXiv 2406.02069. Differs: the original's rounded step keeps too much (2025.5 instead of
    2016 tokens per layer at a budget of 2048, window 32 and 32 layers); the excess is taken evenly from all layers.
    Lengths are those of the tokens seen, so that every layer agrees on the schedule.
    """

    source: ClassVar[str] = "Cai et al. 2024, arXiv 2406.02069"
    claim: ClassVar[str] = "late layers need fewer tokens than early ones"

    window: int = 8
    kernel: int = 7
    pooling: Pooling = "max"
    beta: int = 20

    def __post_init__(self) -> None:
        """Validate options."""
        super().__post_init__()
        check(self, "beta", self.beta >= 1, "an integer of at least 1")

    def schedule(self, seen: int, layers: int, tokens: int) -> list[int]:
        """Tokens per head of every layer, window and sinks included; the sum is at most `layers * tokens`."""
        always = self.window + self.sinks
        middle = tokens - always
        if middle < 1 or seen <= tokens or seen < 2 * middle:
            return [tokens] * layers
        shares = trim(pyramid(middle, layers, seen - always, self.beta), layers * middle)
        return [share + always for share in shares]

    def layer_share(self, seen: int, layer: int, layers: int, tokens: int) -> int:
        """One entry of the schedule."""
        return self.schedule(seen, layers, tokens)[layer]
