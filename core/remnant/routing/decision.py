"""What the router answers: a mode, why, and what it will cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Mode(str, Enum):
    """How the history reaches the model.

    NONE: not at all. FULL: whole. RECENT_PLUS_RAG: the newest conversations whole, passages of the rest.
    RAG: passages. BLOCK_EXTRACT: every block of conversations is read by itself, then a synthesis.
    RETRIEVE_THEN_BLOCK: the same over retrieved conversations only.
    """

    NONE = "none"
    FULL = "full"
    RECENT_PLUS_RAG = "recent_plus_rag"
    RAG = "rag"
    BLOCK_EXTRACT = "block_extract"
    RETRIEVE_THEN_BLOCK = "retrieve_then_block"


class Order(str, Enum):
    """How passages are laid out: by rank (best at both ends) or by time."""

    RELEVANCE = "relevance"
    CHRONOLOGICAL = "chronological"


@dataclass(frozen=True)
class Cost:
    """What one answer costs, estimated.

    Args:
        usd: USD.
        latency_s: seconds until the answer is complete.
        tokens_in: tokens read over all calls, cached ones included.
        tokens_out: tokens written over all calls.
        longest_prompt: tokens of the longest single prompt.
        calls: calls of a model.
    """

    usd: float = 0.0
    latency_s: float = 0.0
    tokens_in: float = 0.0
    tokens_out: float = 0.0
    longest_prompt: float = 0.0
    calls: int = 0


@dataclass(frozen=True)
class Option:
    """One mode as the router saw it.

    Args:
        mode: the mode.
        cost: its cost.
        p_answerable: expected fraction of such questions answered rightly, 0 to 1.
        k: passages it would retrieve.
        obstacle: why it cannot be used; empty when it can.
    """

    mode: Mode
    cost: Cost
    p_answerable: float
    k: int = 0
    obstacle: str = ""


@dataclass(frozen=True)
class RouteDecision:
    """The router's answer.

    Args:
        mode: how the history reaches the model.
        why: the reason, in one or two sentences.
        cost: what the answer will cost.
        p_answerable: expected fraction of such questions answered rightly, 0 to 1.
        k: passages to retrieve; 0 where none are.
        block_size: conversations per block; 0 where none are read in blocks.
        reorder: whether to put the best passages at both ends (`remnant.routing.reorder`).
        order: by relevance, or by time.
        escalation: modes to try in turn when the answer is poor; after the last, abstain.
        zone: 0 up to the lower threshold, 1 between them, 2 above; hysteresis looks at it.
        query_type: the type it decided for, classified if need be.
        considered: every mode with its cost and what stood against it.
    """

    mode: Mode
    why: str
    cost: Cost
    p_answerable: float
    k: int = 0
    block_size: int = 0
    reorder: bool = False
    order: Order = Order.RELEVANCE
    escalation: tuple[Mode, ...] = ()
    zone: int = 0
    query_type: str = ""
    considered: tuple[Option, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The decision as data, for `--json` output."""
        return asdict(self)
