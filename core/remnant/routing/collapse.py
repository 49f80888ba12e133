"""Passages that say the same: one of them is enough, and the rest would push others out of the prompt."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from operator import mul
from typing import Any, TypeVar

from remnant.errors import ConfigError
from remnant.index.words import spread

T = TypeVar("T")
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
    near: Any = _near_vectors if vector else _near_words
    groups: list[tuple[Any, list[T]]] = []
    for item in ranked:
        seen: Any = _unit(vector(item)) if vector else _weights(text(item))
        group = next((group for first, group in groups if near(first, seen) >= alike - 1e-9), None)
        if group is None:
            groups.append((seen, [item]))
        else:
            group.append(item)
    return [group[0] if when is None else max(group, key=when) for _, group in groups]


def _weights(text: str) -> dict[str, float]:
    """How often each word stands in a text, to the length 1."""
    counts = Counter(_WORD.findall(spread(text).lower()))
    length = math.sqrt(sum(n * n for n in counts.values()))
    return {word: n / length for word, n in counts.items()}


def _unit(vector: Vector) -> list[float]:
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector] if length else []


def _near_words(one: dict[str, float], other: dict[str, float]) -> float:
    """The cosine; texts without a word are alike among themselves."""
    if not one or not other:
        return float(one == other)
    return sum(one[word] * other[word] for word in one.keys() & other.keys())


def _near_vectors(one: list[float], other: list[float]) -> float:
    return sum(map(mul, one, other)) if one and other else float(one == other)
