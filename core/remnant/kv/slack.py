"""What policies share that need no attention and so may act late: they wait until some tokens have gathered."""

from __future__ import annotations

from dataclasses import dataclass

from remnant.kv.policy import Policy, Trigger, check

__all__ = ["SlackPolicy"]


@dataclass(frozen=True)
class SlackPolicy(Policy):
    """Base of policies that act after prompts and, while decoding, once in `slack` tokens.

    Args:
        slack: tokens that may gather above the budget while decoding before it acts; 0 acts at every token.
        sinks: first tokens that are always kept.
        recent: newest tokens that are always kept.
    """

    slack: int = 32  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self) -> None:
        """Validate options."""
        super().__post_init__()
        check(self, "slack", self.slack >= 0, "an integer of at least 0")

    @property
    def when(self) -> tuple[Trigger, ...]:
        """After every block, at the end of a prompt, and whenever `slack` tokens have gathered above the budget."""
        return (Trigger("prefill_end"), Trigger("block"), Trigger("overflow", self.slack))
