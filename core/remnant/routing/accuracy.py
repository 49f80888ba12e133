"""How often each mode is expected to answer rightly: measured curves, never rising with length.

The numbers are percentages read from ConvoMem's released results (Pakhomov et al. 2025) at 6, 30, 100, 150 and
300 conversations. Cells that were not measured take the nearest one that was; the docstrings say which.
Between lengths we go straight in the logarithm of the length. Rises along a curve are noise of small samples and
are pooled away, so that a longer history never looks easier. Retrieval gets no more credit than the same reader over
the whole history: full context led at every length that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

from remnant.routing.decision import Mode
from remnant.routing.request import QueryType, Request
from remnant.routing.settings import Settings

LENGTHS = (6, 30, 100, 150, 300)  # conversations

# Whole history in the prompt, by tier of the reader and kind of question.
_FULL: Mapping[tuple[str, str], Sequence[float]] = {
    ("mid", "one"): (91.0, 87.5, 84.4, 82.0, 83.6),
    ("mid", "many"): (93.5, 90.6, 80.8, 86.5, 83.4),
    ("mid", "preference"): (90.4, 85.7, 78.3, 79.5, 77.3),
    ("mid", "implicit"): (81.4, 73.3, 71.6, 67.4, 63.5),
    ("mid", "changing"): (97.6, 94.9, 91.0, 90.8, 85.0),
    ("mid", "assistant"): (99.5, 99.5, 98.9, 98.7, 98.5),
    ("mid", "abstain"): (99.3, 95.0, 84.3, 79.7, 76.3),
    ("top", "many"): (94.3, 93.2, 87.4, 91.1, 89.4),
    ("top", "implicit"): (74.9, 76.7, 69.0, 65.8, 65.8),
    ("weak", "many"): (77.4, 71.3, 46.2, 65.4, 52.2),
    ("weak", "changing"): (95.4, 81.4, 69.2, 62.2, 33.8),
    ("weak", "abstain"): (97.6, 93.9, 87.8, 86.6, 80.2),
}

# A memory of extracted facts (mem0), read by a mid-tier model: the prior where no recall was measured.
_RAG: Mapping[str, Sequence[float]] = {
    "one": (75.7, 68.3, 56.6, 56.0, 61.0),
    "many": (54.2, 53.8, 37.0, 33.9, 25.0),
    "preference": (34.0, 31.7, 43.5, 45.5, 40.7),
    "implicit": (43.9, 39.8, 37.5, 32.2, 24.9),
}

# Blocks of ten, implicit questions, by tier of the extractor.
_BLOCK: Mapping[str, Sequence[float]] = {
    "mid": (77.0, 79.0, 66.7, 72.2, 70.8),
    "weak": (70.7, 69.6, 68.2, 65.5, 63.4),
}

_FOUND = 0.95  # prior: evidence lies in the retrieved conversations (not measured; units are recalled less well)


def p_answerable(mode: Mode, kind: QueryType, request: Request, settings: Settings, n: float, k: int) -> float:
    """Expected fraction of such questions answered rightly.

    Args:
        mode: how the history reaches the model.
        kind: what the question asks for.
        request: gives the models, the number of evidence messages and the index's measured recall.
        settings: recent conversations and the like.
        n: effective number of conversations.
        k: passages retrieved.

    Returns:
        0 to 1; never rises with `n`.

    Source: Pakhomov et al. 2025, ConvoMem, released tables. Differs: pooled and interpolated; retrieval with a
        measured recall is that recall times what the reader reaches on a short history.
    """
    key = _key(kind, request.est_evidence)
    tier = request.model.tier
    if mode is Mode.NONE:
        return 0.0
    full = _full(tier, key, n)
    if mode is Mode.FULL:
        return full
    if mode is Mode.RAG:
        return min(full, _rag(key, request, settings, n, k))
    if mode is Mode.RECENT_PLUS_RAG:
        share = min(1.0, settings.recent / max(1.0, n))
        recent = _full(tier, key, min(n, settings.recent))
        return min(full, share * recent + (1 - share) * _rag(key, request, settings, n, k))
    block = _block(key, request, min(n, settings.conversations) if mode is Mode.RETRIEVE_THEN_BLOCK else n)
    missed = mode is Mode.RETRIEVE_THEN_BLOCK and n > settings.conversations
    return block * _FOUND if missed else block


def _key(kind: QueryType, evidence: int | None) -> str:
    """The row of the table for a type; temporal questions count as changing facts."""
    if kind in (QueryType.CHANGING, QueryType.TEMPORAL):
        return "changing"
    if kind in (QueryType.PREFERENCE, QueryType.IMPLICIT):
        return kind.value
    if kind is QueryType.ASSISTANT_FACT:
        return "assistant"
    if kind is QueryType.ABSTAIN_PROBE:
        return "abstain"
    return "many" if kind is QueryType.MULTI_HOP or (evidence or 1) > 1 else "one"


def _full(tier: str, key: str, n: float) -> float:
    return _at(_row(tier, key), n)


@cache
def _row(tier: str, key: str) -> tuple[float, ...]:
    """A row that a tier lacks is the mid tier's, moved by how the tiers differ where both were measured."""
    if (tier, key) in _FULL or tier == "mid":
        return tuple(_FULL[tier, key])
    own, mid = _falling(tuple(_FULL[tier, "many"])), _falling(tuple(_FULL["mid", "many"]))
    base = _falling(tuple(_FULL["mid", key]))
    return tuple(min(100.0, value * ours / theirs) for value, ours, theirs in zip(base, own, mid, strict=True))


def _rag(key: str, request: Request, settings: Settings, n: float, k: int) -> float:
    measured = {at: recall for at, recall in request.index.recall_at.items() if at <= k}
    if measured:
        return max(measured.values()) * _full(request.model.tier, key, min(n, settings.recent))
    known = key if key in _RAG else "many" if (request.est_evidence or 1) > 1 else "one"
    return _at(_RAG[known], n)


def _block(key: str, request: Request, n: float) -> float:
    """Only implicit questions were measured: others keep the same share of what the reader reaches when short.

    Samples were small (24 at 300 conversations), so blocks get no more credit than a mid-tier reader of the whole.
    """
    tier = (request.extractor or request.model).tier
    curve = _BLOCK["weak" if tier == "weak" else "mid"]
    implicit = _FULL["mid", "implicit"][0] / 100
    reader = _full(request.model.tier, key, LENGTHS[0])
    most = _full("mid" if request.model.tier == "weak" else request.model.tier, key, n)
    return min(most, _at(curve, n) / implicit * reader)


def _at(curve: Sequence[float], n: float) -> float:
    """A curve at a length, as a fraction; flat beyond both ends."""
    pooled = _falling(tuple(curve))
    if n <= LENGTHS[0]:
        return pooled[0] / 100
    for i, right in enumerate(LENGTHS[1:]):
        if n <= right:
            left, high, low = LENGTHS[i], pooled[i], pooled[i + 1]
            share = math.log(n / left) / math.log(right / left)
            return (high + share * (low - high)) / 100
    return pooled[-1] / 100


@cache
def _falling(curve: tuple[float, ...]) -> tuple[float, ...]:
    """The closest curve that never rises: neighbours out of order take their mean."""
    pools: list[tuple[float, int]] = []
    for value in curve:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (b, m), (a, l) = pools.pop(), pools.pop()
            pools.append(((a * l + b * m) / (l + m), l + m))
    return tuple(value for value, count in pools for _ in range(count))
