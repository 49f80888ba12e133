"""The Kinetics cost model: operations and bytes of generating, added up in one unit.

One step of one trial costs two operations per parameter, and per token that it sees two operations and the read of a
number for every channel of keys and of values. A byte counts as much as the operations that the device does while it
moves one, so that the sum, in eFLOPs, divided by the device's operations per second is a time.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from remnant.errors import ConfigError
from remnant.kinetics.reading import Block, Dense, Evict, Reading
from remnant.kinetics.shape import Group, Shape

__all__ = ["REFERENCE_INTENSITY", "Cost", "eflops", "held_bytes", "read_tokens"]

REFERENCE_INTENSITY = 562.5
"""Operations per byte in the paper's own scripts, for a device of the class of a B200."""


@dataclass(frozen=True)
class Cost:
    """The parts of a cost.

    Attributes:
        linear: operations of everything but attention.
        attention: operations on keys and values that are read.
        search: operations on the summaries of pages.
        kv_bytes: of keys and values that are read.
        search_bytes: of summaries that are read.
        weight_bytes: of weights that are read; 0 when many requests share each read.
        intensity: operations that count as much as one byte.
    """

    linear: float
    attention: float
    search: float
    kv_bytes: float
    search_bytes: float
    weight_bytes: float
    intensity: float

    @property
    def compute(self) -> float:
        """All operations, in FLOPs."""
        return self.linear + self.attention + self.search

    @property
    def bytes(self) -> float:
        """All bytes."""
        return self.kv_bytes + self.search_bytes + self.weight_bytes

    @property
    def memory(self) -> float:
        """All bytes, as operations."""
        return self.intensity * self.bytes

    @property
    def eflops(self) -> float:
        """Operations and bytes together. Summed, not the longer of both: attention hardly overlaps with the rest."""
        return self.compute + self.memory

    def to_dict(self) -> dict[str, Any]:
        """The parts and the sums as data."""
        sums = {"compute": self.compute, "bytes": self.bytes, "memory": self.memory, "eflops": self.eflops}
        return {**asdict(self), **sums}


def eflops(
    model: Shape,
    x: int,
    y: int,
    N: int,
    policy: Reading,
    *,
    intensity: float = REFERENCE_INTENSITY,
    batch: int | None = None,
) -> Cost:
    """Cost of N answers to one prompt; reading the prompt itself is left out, being the same for all of them.

    Args:
        model: its parameters and attention layers.
        x: tokens of the prompt.
        y: tokens of each answer.
        N: answers, called trials; with `Dense` they share the prompt's keys and values.
        policy: what is read of layers with full attention; those with a sliding window read their window.
        intensity: the device's operations per second over its bytes per second.
        batch: requests like this one, all N answers of each, that are decoded together and share each read of the
            weights, those of all experts; None leaves the weights out, as the paper does for large batches.

    Raises:
        ConfigError: a number is out of range.

    Source: Sadhukhan et al. 2025, Kinetics, and its released cost model. Differs: the number of bytes per element is
        the model's, not 2; a budget that exceeds the text reads the text; pages are searched only once there is more
        text than budget; windows; the weights' term. The sum over min(b, x+t) subtracts the triangle in which the
        text is still shorter than the budget (one of the released functions adds it). As there, the sums are
        integrals over t: each step's own token counts half, 0.02 % for a few thousand tokens.
    Example: eflops(Shape.uniform("m", parameters=10, layers=1, heads=1, kv_heads=1, dim=1), 2, 2, 1, Dense()).compute
        -> 64.0
    """
    _check(x, y, N, intensity, batch)
    attention = search = kv = searched = 0.0
    for group in model.groups:
        chosen = Dense() if group.span else policy
        limit = group.span or policy.limit
        seen = read_tokens(x, y, limit)
        own = read_tokens(0, y, limit)
        loaded = (seen - own) + N * own if isinstance(chosen, Dense) else N * seen
        attention += N * seen * group.flops
        kv += loaded * group.numbers * model.element
        if isinstance(chosen, Block):
            search += (
                N * _page_reads(x, y, 1, chosen) * 2 * group.count * group.heads * group.key_dim * chosen.summaries
            )
            searched += _page_reads(x, y, N, chosen) * _summary_numbers(group, chosen) * model.element
    weights = model.weights * y / batch if batch else 0.0
    return Cost(2.0 * model.parameters * N * y, attention, search, kv, searched, weights, intensity)


def read_tokens(x: int, y: int, limit: int | None = None) -> float:
    """Tokens seen by all steps of an answer together: the integral of min(limit, x + t) for t from 0 to y.

    Args:
        x: tokens before it.
        y: tokens of it.
        limit: most tokens that one step sees; None has no limit.

    Example: read_tokens(2, 3) -> 10.5, and read_tokens(2, 3, 4) -> 10.0
    """
    if limit is None:
        return (2 * x + y) * y / 2
    return (2 * limit * y - max(0, limit - x) ** 2 + max(0, limit - x - y) ** 2) / 2


def held_bytes(model: Shape, x: int, y: int, N: int, policy: Reading) -> float:
    """Bytes of the KV cache at the end of N answers to one prompt, summaries of pages included.

    Only eviction frees anything; then no trial shares the prompt, as each has dropped other tokens of it.
    """
    total = 0.0
    for group in model.groups:
        span = group.span
        if span:
            tokens = min(x, max(0, span - y)) + N * min(y, span)
        elif isinstance(policy, Evict) and policy.capacity < x + y:
            tokens = N * policy.capacity
        else:
            tokens = x + N * y
        total += tokens * group.numbers
        if isinstance(policy, Block) and not span:
            total += (x // policy.page + N * (y // policy.page)) * _summary_numbers(group, policy)
    return total * model.element


def _page_reads(x: int, y: int, own: int, policy: Block) -> float:
    """Summaries read over all steps that choose; `own` is how many trials' answers are read beside one prompt."""
    limit = policy.limit or 0
    start = min(y, max(0, limit - x))  # before it, everything is read and nothing is searched

    def until(t: int) -> int:
        return (2 * x + own * t) // policy.page * t

    return (until(y) - until(start)) / 2


def _summary_numbers(group: Group, policy: Block) -> int:
    return group.count * group.kv_heads * group.key_dim * policy.summaries


def _check(x: int, y: int, N: int, intensity: float, batch: int | None) -> None:
    for name, value, least in (("x", x, 0), ("y", y, 1), ("N", N, 1), ("batch", batch, 1)):
        if value is not None and (isinstance(value, bool) or value != int(value) or value < least):
            raise ConfigError(f"{name} {value}", accepted=f"a whole number from {least} on")
    if not (math.isfinite(intensity) and intensity >= 0):
        raise ConfigError(f"intensity {intensity}", accepted="operations per byte, 0 or more")
