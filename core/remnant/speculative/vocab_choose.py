"""How many tokens to keep: what a draft step costs by k, and the k with the best memory-bound speed-up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from remnant.errors import ConfigError
from remnant.speculative.stats import block_efficiency, mbsu
from remnant.speculative.vocab_map import VocabMap

__all__ = ["StepCost", "choose_k", "geometric_grid"]

_MULTIPLE = 64  # what servers pad a vocabulary to


@dataclass(frozen=True)
class StepCost:
    """Bytes that one step of the drafter and one of the target read; time goes with them where memory is the bound.

    Args:
        rest: bytes of the drafter's weights without its head, and without an embedding, of which a step reads one row.
        row: bytes of one row of its head, bias included.
        target: bytes of the target's weights, all of them, at the drafter's precision; 0 when not known.

    Example: round(StepCost(2 * 293_629_952, 2 * 4096, 2 * 8_030_261_248).ratio(32_000), 3) -> 0.053
    """

    rest: int
    row: int
    target: int = 0

    def step(self, k: int) -> int:
        """Bytes of one draft step with a head of k rows."""
        return self.rest + k * self.row

    def ratio(self, k: int) -> float:
        """Bytes of a draft step over bytes of a target step: `c` of the speed-up.

        Raises:
            ConfigError: the target is not known.
        """
        if not self.target:
            raise ConfigError("the cost of a step of the target is not known", do="give --target")
        return self.step(k) / self.target


def choose_k(
    scores: Tensor,
    cost_fn: Callable[[int], float],
    accept_fn: Callable[[int], float],
    grid: Iterable[int],
    *,
    num_draft: int = 3,
    always: Sequence[int] = (),
) -> tuple[int, list[dict[str, Any]]]:
    """The number of kept tokens with the highest memory-bound speed-up.

    Args:
        scores: `[V]` counts of tokens, or `g(x) = E[min(p(x), q(x))]`; what the kept set of every k is chosen by.
        cost_fn: k -> bytes of a draft step over bytes of a target step, such as `StepCost.ratio`.
        accept_fn: k -> probability that a drafted token is accepted, 0 to 1, measured or bounded from below.
        grid: values of k to try, each in `[1, V]`.
        num_draft: draft steps per block.
        always: ids that are kept whatever their score.

    Returns:
        `(k, table)`: the best k, the smaller one of equals; a row per value of the grid, ascending, with `k`,
        `coverage` (share of the scores that the kept set holds), `acceptance`, `block_efficiency`, `cost`, `mbsu`.

    Raises:
        ConfigError: an empty grid, scores that are all zero, or a function that gives what is not accepted.

    Source: Goel et al. 2025 (VocabTrim), arXiv 2506.22694: the speed-up is `stats.mbsu`.
    """
    values = sorted(set(grid))
    total = float(scores.sum())
    if not values or not total > 0:
        raise ConfigError(f"{len(values)} values of k, scores that sum to {total:g}", accepted="some of each")
    table: list[dict[str, Any]] = []
    for k in values:
        kept = VocabMap.from_counts(scores, k, always).coverage(scores.double().cpu())
        acceptance, cost = float(accept_fn(k)), float(cost_fn(k))
        tokens = block_efficiency(acceptance, num_draft)
        row = {"k": k, "coverage": float(kept) / total, "acceptance": acceptance, "block_efficiency": tokens}
        table.append({**row, "cost": cost, "mbsu": mbsu(tokens, cost, num_draft)})
    return max(table, key=lambda row: (row["mbsu"], -row["k"]))["k"], table


def geometric_grid(largest: int, least: int = 1, points: int = 12) -> list[int]:
    """Values of k from a sixty-fourth of the vocabulary up to all of it, in equal ratios.

    Args:
        largest: rows of the head as it is, always part of the grid.
        least: the smallest k that may be, for example the number of tokens that are always kept.
        points: values at most.

    Returns:
        Ascending; multiples of 64 but for the largest, so that no server pads them.
    """
    if not 1 <= least <= largest or points < 1:
        raise ConfigError(f"a grid of {points} from {least} to {largest}", accepted="1 <= least <= largest")
    start = max(largest / 64, least, 1)
    ratio = (largest / start) ** (1 / max(points - 1, 1))
    rounded = (-(-round(start * ratio**i) // _MULTIPLE) * _MULTIPLE for i in range(points))
    return sorted({k for k in rounded if least <= k < largest} | {largest})
