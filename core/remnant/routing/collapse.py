"""Passages that say the same: one of them is enough, and the rest would push others out of the prompt."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from remnant.errors import ConfigError
from remnant.index.words import spread

T = TypeVar("T")
K = TypeVar("K")
Vector = Sequence[float]
_WORD = re.compile(r"\w+")


def collapse(
    ranked: Sequence[T],
    *,
    text: Callable[[T], str],
    when: Callable[[T], Any] | None = None,
    vector: Callable[[T], Vector] | None = None,
    alike: float = 0.95,
) -> list[T]:
    """Keep one of the passages that say the same: the newest, in the place of the best-ranked.

    Passages are compared with the best of each group only, so a chain of small differences does not draw
    unlike passages together.

    Args:
        ranked: passages, best first.
        text: the words of a passage; compared where there is no `vector`.
        when: the time of a passage; None keeps the best-ranked of a group. Ties keep the better one.
        vector: the embedding of a passage.
        alike: cosine from which on two passages say the same.

    Returns:
        The passages that stay, in order.

    Raises:
        ConfigError: `alike` is not in (0, 1].

    Source: specification of Remnant's router, section 2.2. Differs: words where there are no embeddings.
    Example: collapse(["a b", "b a", "c"], text=str) -> ["a b", "c"]
    """
    if not 0 < alike <= 1:
        raise ConfigError(f"alike {alike}", accepted="above 0, up to 1")
    groups: list[tuple[Any, list[T]]] = []
    for item in ranked:
        seen = _unit(vector(item)) if vector else _counts(text(item))
        near = next((group for group in groups if _cosine(group[0], seen) >= alike - 1e-9), None)
        if near is None:
            groups.append((seen, [item]))
        else:
            near[1].append(item)
    return [group[0] if when is None else max(group, key=when) for _, group in groups]


def _counts(text: str) -> dict[str, float]:
    counts = Counter(_WORD.findall(spread(text).lower()))
    return _unit_of({word: float(n) for word, n in counts.items()})


def _unit(vector: Vector) -> dict[int, float]:
    return _unit_of({i: float(x) for i, x in enumerate(vector) if x})


def _unit_of(weights: dict[K, float]) -> dict[K, float]:
    length = math.sqrt(sum(x * x for x in weights.values()))
    return {name: x / length for name, x in weights.items()} if length else {}


def _cosine(one: dict[Any, float], other: dict[Any, float]) -> float:
    if not one or not other:
        return float(one == other)
    small, large = (one, other) if len(one) < len(other) else (other, one)
    return sum(x * large.get(name, 0.0) for name, x in small.items())
