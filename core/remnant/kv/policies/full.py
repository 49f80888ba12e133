"""Full cache: evicts nothing. The yardstick of every other policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from remnant.kv.policy import Policy, Trigger, register_policy
from remnant.kv.view import Keep, KVView


@register_policy("full")
@dataclass(frozen=True)
class Full(Policy):
    """Keep every token, whatever the budget.

    Source: none needed. Differs: `budget` is accepted and ignored, so that a sweep over policies can include it.
    """

    source: ClassVar[str] = "baseline"
    claim: ClassVar[str] = "the yardstick: nothing is evicted"

    @property
    def when(self) -> tuple[Trigger, ...]:
        """Never."""
        return ()

    def plan(self, view: KVView, tokens: int) -> Keep:
        """Everything, to a host that asks without being due."""
        return Keep.everything(view)
