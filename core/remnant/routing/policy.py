"""Which modes suit a length and a type of question, best first."""

from __future__ import annotations

from collections.abc import Mapping

from remnant.routing.decision import Mode, Option
from remnant.routing.request import QueryType, Request
from remnant.routing.settings import Settings

_FACTS = (QueryType.USER_FACT, QueryType.ASSISTANT_FACT, QueryType.TEMPORAL, QueryType.ABSTAIN_PROBE)
_WHOLE = (QueryType.PREFERENCE, QueryType.IMPLICIT, QueryType.MULTI_HOP, QueryType.CHANGING)
_LAST = (Mode.RAG, Mode.BLOCK_EXTRACT, Mode.FULL)


def zone(n: float, settings: Settings, last: int | None = None) -> int:
    """0 up to the lower threshold, 1 up to the upper, 2 above.

    Args:
        n: effective conversations.
        settings: thresholds and hysteresis.
        last: the zone of the last decision; it is left only when the length passes a threshold by the
            hysteresis, so that prefix caches stay warm. None: no last decision.
    """
    now = (n > settings.low) + (n > settings.high)
    if last is None or now == last:
        return now
    slack = settings.hysteresis if now > last else -settings.hysteresis
    low, high = settings.low * (1 + slack), settings.high * (1 + slack)
    moved = (n > low) + (n > high)
    return max(last, moved) if now > last else min(last, moved)


def preferred(
    where: int, kind: QueryType, request: Request, settings: Settings, options: Mapping[Mode, Option]
) -> list[tuple[Mode, str]]:
    """Modes with the reason for each, best first; the first that is possible is taken.

    Args:
        where: the zone.
        kind: the type of question, classified.
        request: evidence, cache and permission.
        settings: the cost ratio and what counts as cached.
        options: costs of full context and retrieval.

    Source: specification of Remnant's router, section 3.3, after ConvoMem (Pakhomov et al. 2025).
    """
    if where == 0:
        short = f"up to {settings.low} conversations"
        first = [(Mode.FULL, f"{short}: reading everything is simply best"), _mixed(short, kind, settings)]
    elif where == 1:
        first = _between(kind, settings, options)
    else:
        first = _above(kind, request, settings)
    barred = {mode for mode, _ in first}
    if where == 2 and not request.allow_full:
        barred.add(Mode.FULL)  # a mere lack of an index does not make so long a prompt welcome
    return first + [(mode, f"nothing better fits; {mode.value} does") for mode in _LAST if mode not in barred]


def _between(kind: QueryType, settings: Settings, options: Mapping[Mode, Option]) -> list[tuple[Mode, str]]:
    full, rag = options[Mode.FULL].cost.usd, options[Mode.RAG].cost.usd
    span = f"{settings.low}-{settings.high} conversations"
    fair = full <= settings.cost_ratio * rag
    chosen: list[tuple[Mode, str]] = []
    if kind in _WHOLE:
        chosen.append((Mode.FULL, f"{span}, and {kind.value} questions need the whole"))
    elif fair:
        chosen.append((Mode.FULL, f"{span}, and full context costs at most {settings.cost_ratio:g} times retrieval"))
    return [*chosen, _mixed(span, kind, settings)]


def _mixed(span: str, kind: QueryType, settings: Settings) -> tuple[Mode, str]:
    """What comes next where the whole history cannot be had."""
    if kind in _FACTS:
        reason = f"{span}, a fact: the newest {settings.recent} verbatim, passages of the rest"
        return Mode.RECENT_PLUS_RAG, reason
    return Mode.BLOCK_EXTRACT, f"{span}, {kind.value}: blocks of {settings.block} keep accuracy flat"


def _above(kind: QueryType, request: Request, settings: Settings) -> list[tuple[Mode, str]]:
    span = f"over {settings.high} conversations"
    chosen: list[tuple[Mode, str]] = []
    cached = request.cached_tokens >= settings.cached_share * request.history_tokens
    if request.allow_full and cached:
        chosen.append((Mode.FULL, f"{span}, but full context is allowed and its prefix cached"))
    if kind in _FACTS and (request.est_evidence or 1) == 1:
        chosen.append((Mode.RAG, f"{span}, a fact in one place: retrieval finds it"))
    else:
        retrieved = f"{span}, {kind.value}: the {settings.conversations} best conversations in blocks"
        chosen.append((Mode.RETRIEVE_THEN_BLOCK, retrieved))
    return chosen
