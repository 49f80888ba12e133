"""Hold a run to its plan: nothing longer, wider or larger than what was reckoned with."""

from __future__ import annotations

from collections.abc import Sequence

from remnant.errors import ConfigError
from remnant.speculative.calibration import select_nodes
from remnant.speculative.planner import Plan, Refusal

__all__ = ["Guard"]


class Guard:
    """What an engine asks before it allocates, and tells after it has.

    Args:
        plan: that the run obeys.

    Raises:
        ConfigError: the plan is a refusal; says how many bytes are missing.
    """

    def __init__(self, plan: Plan | Refusal) -> None:
        """See the class."""
        if isinstance(plan, Refusal):
            plan.throw()
        self.plan = plan
        self.peak = 0
        """Most bytes that `check` was told of."""

    def admit(self, lengths: Sequence[int], new_tokens: int = 0) -> None:
        """Refuse, before anything is computed, a batch that would outgrow the plan.

        Args:
            lengths: tokens per row of the prompts.
            new_tokens: that each row may write.

        Raises:
            ConfigError: too many rows, or a row that would get too long.
        """
        if len(lengths) > self.plan.batch:
            raise ConfigError(
                f"{len(lengths)} rows under a plan for {self.plan.batch}",
                accepted=f"up to {self.plan.batch}",
                do="plan with that batch, or run the rows in turns",
            )
        longest = max(lengths, default=0) + new_tokens
        if longest > self.plan.context:
            raise ConfigError(
                f"a row of up to {longest} tokens under a plan for {self.plan.context}: "
                f"{longest - self.plan.context} too many",
                accepted=f"prompt and answer of up to {self.plan.context} tokens",
                do="plan with a longer context, write less, or drop old turns (remnant.speculative.turns)",
            )

    def limits(self, lengths: Sequence[int], left: Sequence[int] | None = None) -> list[int]:
        """Most tokens that each row may draft now, on a chain; 0 turns drafting off for the row.

        Args:
            lengths: tokens per row so far, the last emitted one included.
            left: tokens that each row may still write, if that is limited; the pass itself brings one of them.
        """
        ends = [self.plan.context - length for length in lengths]
        if left is not None:
            ends = [min(end, more) for end, more in zip(ends, left, strict=True)]
        return [max(0, min(self.plan.gamma, end - 1)) for end in ends]

    def nodes(self, parents: Sequence[int], scores: Sequence[float]) -> list[int]:
        """Which nodes of a drafted tree are verified: the n best, closed under parents; see `select_nodes`."""
        return select_nodes(parents, scores, max(1, self.plan.n))

    def check(self, cache_bytes: int) -> None:
        """Compare what the caches really hold with the plan.

        Args:
            cache_bytes: of target and drafter, slots that are not accepted yet included.

        Raises:
            ConfigError: it is more; the host allocates otherwise than the plan assumes.
        """
        self.peak = max(self.peak, cache_bytes)
        if cache_bytes > self.plan.bytes["kv"] + self.plan.bytes["draft"]:
            room = self.plan.bytes["kv"] + self.plan.bytes["draft"]
            raise ConfigError(
                f"caches of {cache_bytes} bytes under a plan for {room}: {cache_bytes - room} too many",
                accepted="caches of the model, type, batch and length that were planned",
                do="plan with the type that the model runs in, and with what the cache adds",
            )
