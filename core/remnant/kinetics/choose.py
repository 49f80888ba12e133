"""What a budget buys: samples at a length, length at a number of samples, and the best of what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from remnant.errors import ConfigError
from remnant.kinetics.cost import REFERENCE_INTENSITY, Cost, eflops, held_bytes
from remnant.kinetics.reading import Reading
from remnant.kinetics.shape import Shape

__all__ = ["Option", "Purse", "afford", "best", "efficient", "exchange", "frontier", "longest", "most_trials"]

_MOST = 2**40  # tokens or trials; no budget is meant to reach it


@dataclass(frozen=True)
class Purse:
    """What may be spent, and on which device.

    Attributes:
        budget: eFLOPs.
        x: tokens of the prompt.
        intensity: operations per byte of the device.
        batch: requests that share each read of the weights; None leaves the weights out.
    """

    budget: float
    x: int
    intensity: float = REFERENCE_INTENSITY
    batch: int | None = None

    def __post_init__(self) -> None:
        """Check the budget."""
        if not (math.isfinite(self.budget) and self.budget > 0):
            raise ConfigError(f"a budget of {self.budget} eFLOPs", accepted="more than 0")

    def cost(self, shape: Shape, y: int, N: int, policy: Reading) -> Cost:
        """See `eflops`."""
        return eflops(shape, self.x, y, N, policy, intensity=self.intensity, batch=self.batch)

    def pays(self, shape: Shape, y: int, N: int, policy: Reading) -> bool:
        """Whether the budget is enough."""
        return self.cost(shape, y, N, policy).eflops <= self.budget


@dataclass(frozen=True)
class Option:
    """One way to spend.

    Attributes:
        model: its name.
        policy: what it reads, as typed.
        y: tokens of each answer.
        N: answers.
        cost: of all of it.
        held: bytes of the KV cache at the end.
        limited: what keeps it from being larger: `budget`, `positions` of the model, or `measured`.
        accuracy: fraction of problems solved, where it was measured.
    """

    model: str
    policy: str
    y: int
    N: int
    cost: Cost
    held: float
    limited: str = "budget"
    accuracy: float | None = None

    @property
    def tokens(self) -> int:
        """Tokens generated, all answers together."""
        return self.N * self.y

    def to_dict(self) -> dict[str, Any]:
        """As data."""
        head = {"model": self.model, "policy": self.policy, "y": self.y, "N": self.N, "tokens": self.tokens}
        tail = {"held_bytes": self.held, "limited": self.limited, "accuracy": self.accuracy}
        return {**head, **tail, "cost": self.cost.to_dict()}


def option(
    purse: Purse, shape: Shape, policy: Reading, y: int, N: int, limited: str, accuracy: float | None = None
) -> Option:
    """Price one way to spend."""
    held = held_bytes(shape, purse.x, y, N, policy)
    return Option(shape.name, policy.label, y, N, purse.cost(shape, y, N, policy), held, limited, accuracy)


def most_trials(purse: Purse, shape: Shape, policy: Reading, y: int) -> int:
    """Most answers of y tokens that the budget pays; 0 when not even one."""
    return _largest(lambda N: purse.pays(shape, y, N, policy), _MOST)


def longest(purse: Purse, shape: Shape, policy: Reading, N: int) -> tuple[int, str]:
    """(most tokens of each of N answers, what limits them); 0 tokens when the budget pays none.

    Answers end where the model's positions end, if it says where.
    """
    room = max(0, shape.positions - purse.x) if shape.positions else _MOST
    y = _largest(lambda y: purse.pays(shape, y, N, policy), room)
    return y, "positions" if shape.positions and y == room else "budget"


def afford(
    purse: Purse, shapes: Sequence[Shape], policies: Sequence[Reading], lengths: Sequence[int], trials: Sequence[int]
) -> tuple[list[Option], list[Option]]:
    """What the budget buys with every model and policy.

    Args:
        purse: the budget.
        shapes: models.
        policies: ways of reading.
        lengths: tokens per answer; for each, the most answers are sought.
        trials: answers; for each, the longest are sought.

    Returns:
        (one option per length, one per number of trials); what cannot be had at all is left out.
    """
    by_length: list[Option] = []
    by_trials: list[Option] = []
    for shape in shapes:
        for policy in policies:
            for y in lengths:
                fits = not shape.positions or purse.x + y <= shape.positions
                most = most_trials(purse, shape, policy, y) if fits else 0
                if most:
                    by_length.append(option(purse, shape, policy, y, most, "budget"))
            for N in trials:
                y, limit = longest(purse, shape, policy, N)
                if y:
                    by_trials.append(option(purse, shape, policy, y, N, limit))
    return by_length, by_trials


def frontier(options: Sequence[Option]) -> list[bool]:
    """Which options no other of the same model beats: none has answers as long and as many, and more of one.

    Says nothing of quality: policies are compared as if they answered equally well.
    """
    return [
        not any(b.model == a.model and b.y >= a.y and b.N >= a.N and (b.y, b.N) != (a.y, a.N) for b in options)
        for a in options
    ]


def exchange(by_length: Sequence[Option], lengths: Sequence[int]) -> dict[int, list[Option]]:
    """What each model would have the same budget buy: its most answers of a length, whatever reading buys them.

    Args:
        by_length: see `afford`; `topk`, which nobody can serve as cheaply as it is priced, counts only alone.
        lengths: tokens per answer.

    Returns:
        Length -> one option per model that affords any, in the order of the models.
    """
    served = [one for one in by_length if not one.policy.startswith("topk:")] or by_length
    found: dict[int, list[Option]] = {}
    for y in lengths:
        most: dict[str, Option] = {}
        for one in served:
            if one.y == y and (one.model not in most or one.N > most[one.model].N):
                most[one.model] = one
        found[y] = list(most.values())
    return found


def efficient(options: Sequence[Option]) -> list[bool]:
    """Which measured options no other beats: none is as accurate and as cheap, and better in one."""

    def beats(b: Option, a: Option) -> bool:
        more, less = (b.accuracy or 0) - (a.accuracy or 0), a.cost.eflops - b.cost.eflops
        return more >= 0 and less >= 0 and (more > 0 or less > 0)

    return [not any(beats(b, a) for b in options) for a in options]


def best(options: Iterable[Option], budget: float) -> Option | None:
    """The most accurate of the measured options within the budget, of equal ones the cheapest; None if there is none.

    Args:
        options: with accuracies; others are passed over.
        budget: eFLOPs.
    """
    paid = [one for one in options if one.accuracy is not None and one.cost.eflops <= budget]
    return max(paid, key=lambda one: (one.accuracy or 0.0, -one.cost.eflops), default=None)


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest count up to `most` that fits, where less always fits too; 0 when 1 does not."""
    if most < 1 or not fits(1):
        return 0
    high = 1
    while high < most and fits(min(2 * high, most)):
        high = min(2 * high, most)
    low, high = high, min(2 * high, most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
