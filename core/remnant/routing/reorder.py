"""Reorder passages so that the best stand at both ends of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def reorder(items: Sequence[T], k: int | None = None) -> list[T]:
    """Put the best-ranked passages at both ends and the weakest in the middle.

    Args:
        items: passages, best first.
        k: how many of the best to keep; None keeps all.

    Returns:
        `p1, p3, p5, ..., p6, p4, p2`: rank 1 is first and rank 2 last, for odd and for even counts.
        Two items or fewer stay as they are.

    Source: Jin et al. 2025, Long-Context LLMs Meet RAG (ICLR), retrieval reordering.
    Example: reorder([1, 2, 3, 4, 5]) -> [1, 3, 5, 4, 2]
    """
    kept = list(items if k is None else items[: max(0, k)])
    return kept[0::2] + kept[1::2][::-1]


def chronological(items: Sequence[T], when: Callable[[T], Any], conversation: Callable[[T], Any]) -> list[T]:
    """Keep the order of time, with the most relevant conversation last.

    For questions about what changed or when: there recency is the evidence, and reordering by rank would
    hide it. Nothing is repeated.

    Args:
        items: passages, best first.
        when: the time of a passage; anything that can be compared.
        conversation: the conversation a passage belongs to; all passages of the best one move to the end.

    Returns:
        The same passages; equal times keep the order of relevance.

    Example: chronological([(2, "a"), (3, "b"), (1, "a")], lambda p: p[0], lambda p: p[1])
        -> [(3, "b"), (1, "a"), (2, "a")]
    """
    if not items:
        return []
    best = conversation(items[0])
    return sorted(sorted(items, key=when), key=lambda item: conversation(item) == best)
