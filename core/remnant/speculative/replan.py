"""Plan again while a run goes on: at every turn, and when the drafter turns out better or worse than assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from remnant.errors import ConfigError
from remnant.speculative.calibration import Acceptance, Calibration
from remnant.speculative.planner import Plan, Planner, Refusal
from remnant.speculative.turns import common_prefix

if TYPE_CHECKING:
    from torch import Tensor

    from remnant.speculative.drafter import Draft, Drafter, Sampler

__all__ = ["PlannedDrafter", "Replanner"]


class Replanner:
    """Keeps the plan of a conversation up to date.

    The drafter is taken to stay loaded, so that drafting may come back. Where drafting did not pay, nothing is
    observed any more; every `probe` turns it is tried again with what was assumed in the beginning.

    Args:
        planner: what plans are made from; its acceptance is the assumption to start with.
        budget: bytes.
        calibration: what learns; left out, a new one.
        threshold: relative change of the acceptance of a level that calls for a new plan.
        probe: turns without drafting until it is tried again.
    """

    def __init__(
        self,
        planner: Planner,
        budget: int,
        calibration: Calibration | None = None,
        threshold: float = 0.1,
        probe: int = 8,
    ) -> None:
        """See the class."""
        if threshold <= 0 or probe < 1:
            raise ConfigError(f"threshold={threshold}, probe={probe}", accepted="above 0, and 1 or more")
        self.planner = replace(planner, resident=True)
        self.budget, self.threshold, self.probe = budget, threshold, probe
        self.calibration = calibration or Calibration(self.planner.table)
        self.plans = 0
        """How many plans were made."""
        self._idle = 0
        self.plan = self._make(self.calibration.table())

    def turn(self, now: int | None = None, context: int | None = None) -> Plan | Refusal:
        """A turn begins: plan with what was learned.

        Args:
            now: tokens per row that must fit.
            context: tokens per row that are asked for; left out, as before.
        """
        planner = replace(self.planner, context=context or self.planner.context)
        self.planner = replace(planner, now=min(now, planner.context) if now else planner.now)
        drafted = isinstance(self.plan, Plan) and self.plan.speculate
        self._idle = 0 if drafted else self._idle + 1
        trying = self._idle >= self.probe
        self._idle = 0 if trying else self._idle
        self.plan = self._make(self.planner.table if trying else self.calibration.table())
        return self.plan

    def observe_block(self, proposed: int, accepted: int) -> bool:
        """One row of one verified chain.

        Returns:
            Whether a new plan was made: it holds from the next block on.
        """
        self.calibration.observe_block(proposed, accepted)
        if self.calibration.drift() <= self.threshold:
            return False
        self.plan = self._make(self.calibration.table())
        return True

    def _make(self, acceptance: Acceptance) -> Plan | Refusal:
        self.plans += 1
        self.calibration.mark()
        return replace(self.planner, acceptance=acceptance).plan(self.budget)


class PlannedDrafter:
    """A drafter that drafts as much as the newest plan allows, and lets the plan learn from what became of it.

    Every `reset` is a turn. Give the first plan to `generate` as well, which bounds the text.

    Args:
        drafter: of chains.
        run: what plans.
    """

    name: ClassVar[str] = "planned"

    def __init__(self, drafter: Drafter, run: Replanner) -> None:
        """See the class."""
        self._drafter, self.run = drafter, run
        self.vocab_size = drafter.vocab_size
        self.weight_bytes: int = getattr(drafter, "weight_bytes", 0)
        self._drafts: list[Draft] = []

    def reset(self, prompts: Sequence[Tensor]) -> None:
        """Begin a turn.

        Raises:
            ConfigError: the prompts do not fit into the budget.
        """
        made = self.run.turn(now=max(map(len, prompts)))
        if isinstance(made, Refusal):
            made.throw()
        self._drafts = []
        self._drafter.reset(prompts)

    def propose(self, limits: Sequence[int], sampler: Sampler | None = None) -> list[Draft]:
        """Guess within the newest plan."""
        most = self.run.plan.gamma if isinstance(self.run.plan, Plan) else 0
        self._drafts = self._drafter.propose([min(limit, most) for limit in limits], sampler)
        return self._drafts

    def observe(self, emitted: Sequence[Tensor]) -> None:
        """Learn, and let the plan learn."""
        from remnant.speculative._lists import ints  # of torch, which planning alone does without

        for draft, tokens in zip(self._drafts, emitted, strict=False):
            ids = ints(draft.ids)[: len(tokens)]  # what comes behind an end token was not looked at
            if ids and draft.tree is None:
                self.run.observe_block(len(ids), common_prefix(ids, ints(tokens)))
        self._drafts = []
        self._drafter.observe(emitted)

    def rollback(self, counts: Sequence[int]) -> None:
        """Take back."""
        self._drafter.rollback(counts)

    def nbytes(self) -> int:
        """Bytes that the drafter holds, as far as it says so."""
        own = getattr(self._drafter, "nbytes", None)
        return int(own()) if own else 0
