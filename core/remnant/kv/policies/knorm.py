"""Knorm: keys of small norm draw attention, so they stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from remnant.kv.policy import Policy, Trigger, check, register_policy
from remnant.kv.view import KVView


@register_policy("knorm")
@dataclass(frozen=True)
class Knorm(Policy):
    """Keep the keys with the lowest Euclidean norm; needs no attention at all.

    Args:
        slack: tokens that may gather above the budget while decoding before it acts; 0 acts at every token.
        sinks: first tokens that are always kept.
        recent: newest tokens that are always kept.

    Source: Devoto et al. 2024, arXiv 2406.11430. Differs: it also acts while decoding, every `slack` tokens; the
    authors leave the first two layers of Llama uncompressed, which is the host's choice of governed layers here.
    """

    source: ClassVar[str] = "Devoto et al. 2024, arXiv 2406.11430"
    claim: ClassVar[str] = "a cheap guess at attention from the keys alone"

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
        """The norm of the key, negative."""
        return -view.k.float().square().sum(-1).sqrt()
