"""Choose how many tokens to verify at once under a budget of memory, or say how much is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from remnant.errors import ConfigError
from remnant.speculative.calibration import Acceptance, Node, best_nodes
from remnant.speculative.costs import DEVICES, Costs, Roofline
from remnant.speculative.memory_model import MemoryModel
from remnant.speculative.planned import Candidate, Plan, Refusal

__all__ = ["BATCHES", "Candidate", "Plan", "Planner", "Refusal", "lower_bound", "plan"]

EPSILON = 0.04
"""Fraction of the best speed that is given up for memory: SpecMemo keeps 96 %."""
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Rows that are tried when the batch is left to the planner."""
ASSUMED = 0.7
"""Acceptance of the best candidate that is assumed as long as nothing was measured."""


@dataclass(frozen=True)
class Planner:
    """Everything that a plan depends on but the budget.

    Args:
        model: bytes.
        batch: rows; None leaves them to the planner, which takes those with the most tokens per second.
        context: tokens per row that are asked for, prompt and answer.
        now: tokens per row that must fit; left out, all of `context`. Fewer let a plan shorten `L_max`.
        acceptance: of the drafter; one rank makes chains, more make trees. Left out, 0.7 everywhere.
        costs: seconds; left out, those of an A100 by the roofline.
        max_nodes: most nodes of a block.
        epsilon: fraction of the best speed given up for memory.
        lazy_logits: reckon with a host that computes the head only where the walk comes by: `generate` and
            `remnant_hf.speculate` do, and a plan made so switches it on there. The loop of transformers cannot.
        resident: the drafter stays loaded while nothing is drafted, so its weights and cache count then too.
        strict: refuse budgets below the lower bound, instead of drafting less.

    Raises:
        ConfigError: a number out of range, or lazy logits of a host that has none.
    """

    model: MemoryModel
    batch: int | None = 1
    context: int = 4096
    now: int | None = None
    acceptance: Acceptance | None = None
    costs: Costs | None = None
    max_nodes: int = 64
    epsilon: float = EPSILON
    lazy_logits: bool = False
    resident: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        given: tuple[Any, Any, Any] = (self.model, self.acceptance, self.costs)  # callers need not be type-checked
        if not isinstance(given[0], MemoryModel):
            raise ConfigError(
                f"model of type {type(given[0]).__name__}", accepted="a MemoryModel of the configurations"
            )
        if given[1] is not None and not isinstance(given[1], Acceptance):
            raise ConfigError(
                f"acceptance={given[1]!r}", accepted="an Acceptance", do="Acceptance.constant of a number"
            )
        if given[2] is not None and not (hasattr(given[2], "verify") and hasattr(given[2], "draft")):
            raise ConfigError(f"costs={given[2]!r}", accepted="Roofline, Measured, or what has their two methods")
        for name in ("batch", "context", "now", "max_nodes"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name}={value!r}", accepted="an integer of at least 1")
        if not 0 <= self.epsilon < 1:
            raise ConfigError(f"epsilon={self.epsilon}", accepted="0 or more, below 1")
        if self.now is not None and self.now > self.context:
            raise ConfigError(f"{self.now} tokens now, {self.context} at most", accepted="now of at most context")
        if self.lazy_logits and self.model.host == "transformers":
            raise ConfigError(
                "lazy logits on host 'transformers', whose own loop computes those of every drafted token",
                accepted="engine, kernels",
                do="plan for host 'engine' and generate with remnant_hf.speculate",
            )

    @cached_property
    def table(self) -> Acceptance:
        """The acceptance that is reckoned with."""
        return self.acceptance or Acceptance.constant(ASSUMED, depth=min(32, self.max_nodes))

    @cached_property
    def time(self) -> Costs:
        """The times that are reckoned with."""
        return self.costs or Roofline(self.model, DEVICES["a100-80gb"])

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes in the order in which they are worth verifying."""
        return tuple(best_nodes(self.table, self.max_nodes))

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every way to decode, by rising bytes."""
        rows = BATCHES if self.batch is None else (self.batch,)
        found = (candidate for batch in rows for candidate in self._of_batch(batch))
        return tuple(sorted(found, key=lambda one: (one.total, -one.speed, one.n)))

    @cached_property
    def goal(self) -> float:
        """The speed that a plan goes for: all but a fraction of the best one of all, budget or not."""
        return (1 - self.epsilon) * max(one.speed for one in self.candidates)

    def choose(self, budget: int) -> Candidate | None:
        """The cheapest candidate that reaches the goal, or the fastest one that fits where none does.

        More budget never chooses a slower one.
        """
        fits = [one for one in self.candidates if one.total <= budget]
        wanted = min(self.goal, max((one.speed for one in fits), default=0.0))
        return next((one for one in fits if one.speed >= wanted), None)

    def bound(self) -> Candidate:
        """The lower bound: the cheapest candidate of all that reaches the goal."""
        return next(one for one in self.candidates if one.speed >= self.goal)

    def curve(self) -> list[tuple[int, Candidate]]:
        """(bytes, what is chosen from that budget on), wherever the choice changes."""
        steps: list[tuple[int, Candidate]] = []
        for one in self.candidates:
            chosen = self.choose(one.total)
            if chosen is not None and (not steps or steps[-1][1] != chosen):
                steps.append((one.total, chosen))
        return steps

    def plan(self, budget: int) -> Plan | Refusal:
        """Plan for one budget; see `plan`."""
        if type(budget) is not int or budget < 1:
            raise ConfigError(f"budget={budget!r}", accepted="an integer of at least 1, in bytes")
        bound = self.bound()
        rows = self.batch or 1
        floor = self._bytes(rows, self.now or self.context, 1, 0, 1)
        least = floor["total"] if not self.strict else max(floor["total"], bound.total)
        if budget < least:
            parts = floor if least == floor["total"] else self._parts(bound)
            return Refusal(least - budget, least, budget, parts, bound.total)
        chosen = self.choose(budget)
        if chosen is not None:
            return self._plan(chosen, self.context, budget, bound)
        length = self._longest(budget, rows, self.context)
        plain = self._candidate(rows, 1, ())
        return self._plan(plain, length, budget, bound)

    def _of_batch(self, batch: int) -> Iterator[Candidate]:
        for n in range(1, len(self.nodes) + 2):
            yield self._candidate(batch, n, self.nodes[: n - 1])

    def _candidate(self, batch: int, n: int, nodes: Sequence[Node]) -> Candidate:
        depth = max(map(len, nodes), default=0)
        levels = [0] * (depth + 1)
        for node in nodes:
            levels[len(node)] += 1
        top_k = max(1, *levels)
        tau = 1 + sum(map(self.table.path, nodes))
        seconds = self.time.draft(batch, depth, top_k, self.context) + self.time.verify(batch, n, self.context)
        total = self._bytes(batch, self.context, n, depth, top_k)["total"]
        return Candidate(batch, n, depth, top_k, tau, seconds, total)

    def _bytes(self, batch: int, length: int, n: int, depth: int, top_k: int) -> dict[str, int]:
        model = self.model if n > 1 or self.resident else self.model.without_drafter()
        return model.bytes(batch, length, n, self.lazy_logits, depth=depth, top_k=top_k)

    def _parts(self, one: Candidate) -> dict[str, int]:
        return self._bytes(one.batch, self.context, one.n, one.depth, one.top_k)

    def _longest(self, budget: int, batch: int, most: int, n: int = 1, depth: int = 0, top_k: int = 1) -> int:
        model = self.model if n > 1 or self.resident else self.model.without_drafter()
        return model.longest(budget, batch, n, most, self.lazy_logits, depth=depth, top_k=top_k)

    def _plan(self, one: Candidate, length: int, budget: int, bound: Candidate) -> Plan:
        most = max(self.context, self.model.target.positions)
        held = [self.model.target.kv(each, 0, self.model.stored(each)) for each in (self.context, length)]
        return Plan(
            n=one.n,
            depth=one.depth,
            top_k=one.top_k,
            L_max=length,
            kv_length=self.model.stored(length),
            batch=one.batch,
            nodes=self.nodes[: one.n - 1],
            tau=one.tau,
            speed=one.speed,
            plain_speed=self._candidate(one.batch, 1, ()).speed,
            bytes=self._bytes(one.batch, length, one.n, one.depth, one.top_k),
            budget=budget,
            lazy_logits=self.lazy_logits,
            longest=self._longest(budget, one.batch, most, one.n, one.depth, one.top_k),
            offload=one.batch * (held[0] - held[1]),
            bound=bound.total,
        )


def plan(budget: int, model: MemoryModel, batch: int | None = 1, context: int = 4096, **options: Any) -> Plan | Refusal:
    """Choose what to draft under a budget, or say what is missing.

    Speculation is off (`n` below 2) where no draft fits or none pays. More budget never gives a lower predicted speed.

    Args:
        budget: bytes, for everything that `MemoryModel` counts.
        model: what is held.
        batch: rows; None chooses them.
        context: tokens per row, prompt and answer.
        options: as of `Planner`: `now`, `acceptance`, `costs`, `max_nodes`, `epsilon`, `lazy_logits`, `resident`,
            `strict`.

    Raises:
        ConfigError: an option that is not accepted.

    Source: Yang et al. 2025 (SpecMemo), arXiv 2506.01986. Differs: the paper gives no planner; this one is ours.
    Example: plan(24 * 2**30, MemoryModel(target, draft, "float16"), context=4096).n
    """
    return _planner(model, batch, context, options).plan(budget)


def lower_bound(model: MemoryModel, batch: int | None = 1, context: int = 4096, **options: Any) -> Candidate:
    """The least memory with which drafting reaches all but a fraction (`epsilon`) of its best speed; as `plan`."""
    return _planner(model, batch, context, options).bound()


def _planner(model: MemoryModel, batch: int | None, context: int, options: dict[str, Any]) -> Planner:
    try:
        return Planner(model, batch, context, **options)
    except TypeError as error:
        raise ConfigError(f"options {sorted(options)}: {error}", accepted="those of Planner") from error
