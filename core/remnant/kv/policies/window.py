"""Window: keep the newest tokens. The control for everything that claims to remember."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from remnant.kv.policy import Policy, Trigger, register_policy
from remnant.kv.view import KVView


@register_policy("window")
@dataclass(frozen=True)
class Window(Policy):
    """Keep the last `budget` tokens; original positions stay in the keys.

    Args:
        sinks: first tokens that are always kept; with some, this is `streaming`.
        recent: has no effect here beyond the budget itself.

    Source: none needed. Differs: nothing.
    """

    source: ClassVar[str] = "baseline"
    claim: ClassVar[str] = "a control: only the recent past"
    protects: ClassVar[str] = "newest"

    @property
    def when(self) -> tuple[Trigger, ...]:
        """After every block, at the end of a prompt and at every decoded token."""
        return (Trigger("prefill_end"), Trigger("block"), Trigger("step"))

    def score(self, view: KVView) -> Tensor:
        """Age, negative, in tokens. Ages above 2**24 may tie as floats; ties go to the larger position anyway."""
        return (view.positions - view.seen).float()
