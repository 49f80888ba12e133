"""One ranking out of two: meaning and words, each brought to 0..1 and mixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Scored(NamedTuple):
    """An id with its mixed score and what it was mixed from."""

    id: str
    score: float
    parts: Mapping[str, float]


def mix(cosine: Mapping[str, float], bm25: Mapping[str, float], weight: float, low: float, high: float) -> list[Scored]:
    """Rank ids by `weight * minmax(cosine) + (1 - weight) * bm25 / max(bm25)`.

    Args:
        cosine: id -> cosine with the query, of the candidates; ids that are missing count as `low`.
        bm25: id -> BM25, 0 and up; ids that are missing count as 0.
        weight: share of the meaning, 0 to 1.
        low: the smallest cosine of the whole scope.
        high: the greatest cosine of the whole scope.

    Returns:
        The union of both, best first, ties by id.

    Source: measured in `agent-frameworks`, section 7: weight 0.5 beats reciprocal ranks.
    Example: mix({"a": 1.0, "b": 0.0}, {"b": 4.0}, 0.25, 0.0, 1.0)[0].id -> "b"
    """
    top, span = max(bm25.values(), default=0.0) or 1.0, (high - low) or 1.0
    mixed: list[Scored] = []
    for id in cosine.keys() | bm25.keys():
        words = bm25.get(id, 0.0) / top
        if cosine:
            dense = (cosine.get(id, low) - low) / span
            mixed.append(Scored(id, weight * dense + (1 - weight) * words, {"dense": dense, "words": words}))
        else:
            mixed.append(Scored(id, (1 - weight) * words, {"words": words}))
    mixed.sort(key=_best_first)
    return mixed


def _best_first(scored: Scored) -> tuple[float, str]:
    return -scored[1], scored[0]
