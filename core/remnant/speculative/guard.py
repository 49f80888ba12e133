"""Hold a run to its plan: nothing longer, wider or larger than what was reckoned with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from remnant.errors import ConfigError
from remnant.speculative.calibration import select_nodes
from remnant.speculative.planned import Plan, Refusal

if TYPE_CHECKING:
    from torch import Tensor

    from remnant.speculative.target import Head, Target

__all__ = ["Guard", "GuardedTarget"]


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

    def admit(self, lengths: Sequence[int], new_tokens: int = 1) -> None:
        """See `Plan.admit`."""
        self.plan.admit(lengths, new_tokens)

    def limits(self, lengths: Sequence[int], left: Sequence[int] | None = None) -> list[int]:
        """Most tokens that each row may draft now, on a chain; 0 turns drafting off for the row.

        Args:
            lengths: tokens per row so far, the last emitted one included.
            left: tokens that each row may still write, if that is limited; the pass itself brings one of them.
        """
        ends = [self.plan.L_max - length for length in lengths]
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
        planned = self.plan.bytes["kv"] + self.plan.bytes["draft"]
        if cache_bytes > planned:
            raise ConfigError(
                f"caches of {cache_bytes} bytes under a plan for {planned}: {cache_bytes - planned} too many",
                accepted="caches of the model, type, batch and length that were planned",
                do="plan with the type that the model runs in, and with what the cache adds",
            )


class GuardedTarget:
    """A target that refuses what its plan has no room for, for `generate(GuardedTarget(target, plan), ..., plan=plan)`.

    Args:
        target: that is guarded.
        plan: that it obeys.

    Raises:
        ConfigError: the plan is a refusal. Later: more rows, a longer block or larger caches than were planned.
    """

    def __init__(self, target: Target, plan: Plan | Refusal) -> None:
        """See the class."""
        self._target = target
        self.guard = Guard(plan)
        self.vocab_size, self.weight_bytes = target.vocab_size, target.weight_bytes

    def prefill(self, prompts: Sequence[Tensor]) -> Tensor:
        """Read the prompts, if all of them have room with at least one token more."""
        self.guard.admit([len(prompt) for prompt in prompts])
        logits = self._target.prefill(prompts)
        self.guard.check(self._target.nbytes())
        return logits

    def step(self, tokens: Tensor, positions: Tensor, widths: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run a block, if it is no wider than planned."""
        self._refuse_wider(tokens)
        logits = self._target.step(tokens, positions, widths, mask)
        self.guard.check(self._target.nbytes())
        return logits

    def defer(self) -> None:
        """See `LazyTarget.defer`; a target without it is refused by its own name."""
        from remnant.speculative.target import deferred  # of torch, which a guard alone does without

        deferred(self._target)

    def step_lazy(
        self, tokens: Tensor, positions: Tensor, widths: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Head]:
        """Run a block without its head, if it is no wider than planned."""
        from remnant.speculative.target import LazyTarget

        self._refuse_wider(tokens)
        assert isinstance(self._target, LazyTarget), "defer comes first"
        made = self._target.step_lazy(tokens, positions, widths, mask)
        self.guard.check(self._target.nbytes())
        return made

    def _refuse_wider(self, tokens: Tensor) -> None:
        if tokens.shape[1] > self.guard.plan.n:
            raise ConfigError(
                f"a block of {tokens.shape[1]} tokens under a plan for {self.guard.plan.n}",
                accepted=f"up to {self.guard.plan.n}, the newest token among them",
                do="give the plan to generate too",
            )

    def commit(self, keep: Tensor) -> None:
        """See `Target.commit`."""
        self._target.commit(keep)

    def crop(self, lengths: Tensor) -> None:
        """See `Target.crop`."""
        self._target.crop(lengths)

    def select(self, rows: Tensor) -> None:
        """See `Target.select`."""
        self._target.select(rows)

    def nbytes(self) -> int:
        """See `Target.nbytes`."""
        return self._target.nbytes()
