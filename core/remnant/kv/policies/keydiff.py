"""KeyDiff: keep the keys that differ most from the average key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from remnant.kv.policy import Policy, Trigger, check, register_policy
from remnant.kv.view import KVView


@register_policy("keydiff")
@dataclass(frozen=True)
class KeyDiff(Policy):
    """Drop keys that point where most keys point; independent of queries, so a late question finds its answer.

    Args:
        slack: tokens that may gather above the budget while decoding before it acts; 0 acts at every token.
        sinks: first tokens that are always kept.
        recent: newest tokens that are always kept.

    Source: Park et al. 2025, arXiv 2504.15364. Differs: padding takes no part in the average; it also acts while
    decoding, every `slack` tokens.
    """

    source: ClassVar[str] = "Park et al. 2025, arXiv 2504.15364"
    claim: ClassVar[str] = "remembers what stands out, whatever will be asked"

    slack: int = 32  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self) -> None:
        """Validate options."""
        super().__post_init__()
        check(self, "slack", self.slack >= 0, "an integer of at least 0")

    @property
    def when(self) -> tuple[Trigger, ...]:
        """After every block, at the end of a prompt, and whenever `slack` tokens have gathered above the budget."""
        return (Trigger("prefill_end"), Trigger("block"), Trigger("overflow", self.slack))

    def score(self, view: KVView) -> Tensor:
        """The cosine to the mean of the normalised keys, negative; its length does not matter, so a sum will do."""
        units = F.normalize(view.k.float(), dim=-1)
        if view.valid is not None:
            units = units.masked_fill(~view.valid.unsqueeze(-1), 0.0)
        return -(units * F.normalize(units.sum(2, keepdim=True), dim=-1)).sum(-1)
