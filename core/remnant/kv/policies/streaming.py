"""StreamingLLM: the first tokens as attention sinks, and the newest ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from remnant.kv.policy import Policy, Trigger, check, register_policy
from remnant.kv.view import KVView


@register_policy("streaming")
@dataclass(frozen=True)
class Streaming(Policy):
    """Keep `sinks` first tokens and the newest of the rest. The middle is forgotten: it does not extend memory.

    Args:
        sinks: first tokens that are always kept.
        recent: has no effect here: all of the budget behind the sinks is recent.
        positions: `keep` leaves the true positions in the keys; `rerotate` closes the gap as in the paper, so that no
            position ever exceeds the cache. The plan is the same: the host turns the sink keys, or refuses.

    Source: Xiao et al. 2023, arXiv 2309.17453. Differs: by default positions are kept; the budget includes the sinks;
    eviction follows the append (the original makes room before it), which leaves the same tokens.
    """

    source: ClassVar[str] = "Xiao et al. 2023, arXiv 2309.17453"
    claim: ClassVar[str] = "endless fluent text in constant memory, without the middle"
    protects: ClassVar[str] = "first tokens, newest"

    sinks: int = 4
    positions: Literal["keep", "rerotate"] = "keep"

    def __post_init__(self) -> None:
        """Validate options."""
        super().__post_init__()
        check(self, "positions", self.positions in ("keep", "rerotate"), "keep, rerotate")

    @property
    def when(self) -> tuple[Trigger, ...]:
        """After every block, at the end of a prompt and at every decoded token."""
        return (Trigger("prefill_end"), Trigger("block"), Trigger("step"))

    def score(self, view: KVView) -> Tensor:
        """Age, negative, in tokens; the sinks are protected."""
        return (view.positions - view.seen).float()
