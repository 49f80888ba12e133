"""Which modes a request allows, and what stands against the others."""

from __future__ import annotations

import math

from remnant.routing.accuracy import p_answerable
from remnant.routing.cost import estimate, recent_tokens, unit_tokens
from remnant.routing.decision import Cost, Mode, Option
from remnant.routing.request import QueryType, Request
from remnant.routing.settings import Settings

_SEARCHES = (Mode.RAG, Mode.RECENT_PLUS_RAG, Mode.RETRIEVE_THEN_BLOCK)
_BLOCKS = (Mode.BLOCK_EXTRACT, Mode.RETRIEVE_THEN_BLOCK)


def effective_conversations(request: Request, settings: Settings) -> float:
    """Conversations, or what the tokens make of them if that is more."""
    return max(request.n_conversations, request.history_tokens / settings.tokens_per_conversation)


def options(request: Request, settings: Settings, kind: QueryType) -> dict[Mode, Option]:
    """Every mode with its cost, expected accuracy and obstacle, budgets included.

    Plain retrieval is never refused for its cost: it is what remains when nothing else fits.
    """
    n = effective_conversations(request, settings)
    found: dict[Mode, Option] = {}
    for mode in Mode:
        k = passages(mode, request, settings)
        cost = estimate(mode, request, settings, max(k, 0))
        chance = p_answerable(mode, kind, request, settings, n, max(k, 0))
        obstacle = _refusal(mode, request, settings, cost, k)
        if not obstacle and mode is not Mode.RAG:
            obstacle = over_budget(cost, request.budgets.usd, request.budgets.latency_s)
        found[mode] = Option(mode, cost, chance, max(k, 0), obstacle)
    return found


def over_budget(cost: Cost, usd: float | None, latency_s: float | None) -> str:
    """What a cost breaks; empty where it breaks nothing."""
    if usd is not None and cost.usd > usd:
        return f"{cost.usd:.4g} USD, budget {usd:.4g}"
    if latency_s is not None and cost.latency_s > latency_s:
        return f"{cost.latency_s:.3g} s, budget {latency_s:.3g}"
    return ""


def passages(mode: Mode, request: Request, settings: Settings) -> int:
    """Passages to retrieve: as many as the tier reads well, fewer where the prompt would grow too long.

    Returns:
        A count; 0 in modes that retrieve no passages, -1 where not even one fits.
    """
    if mode is Mode.RETRIEVE_THEN_BLOCK:
        return min(settings.conversations, request.n_conversations)
    if mode not in (Mode.RAG, Mode.RECENT_PLUS_RAG):
        return 0
    # Newest conversations and those not indexed yet overlap: the longer of the two is a lower bound, taken for both.
    recent = recent_tokens(request, settings) if mode is Mode.RECENT_PLUS_RAG else 0.0
    verbatim = max(recent, min(request.index.unindexed_tokens, request.history_tokens))
    room = request.model.reliable_tokens / settings.token_margin
    room -= verbatim + request.query_tokens + request.output_tokens
    fit = math.floor(room / unit_tokens(request, settings))
    return min(settings.k_by_tier[request.model.tier], fit) if fit >= 1 else -1


def _refusal(mode: Mode, request: Request, settings: Settings, cost: Cost, k: int) -> str:
    """What stands against a mode, budgets apart."""
    if mode is Mode.NONE:
        return ""
    if mode is Mode.FULL and request.allow_full is False:
        return "not allowed"
    if mode in _BLOCKS and not request.allow_blocks:
        return "nothing reads blocks"
    if mode is Mode.RECENT_PLUS_RAG and request.allow_full is False and request.n_conversations <= settings.recent:
        return f"the newest {settings.recent} conversations are the whole history, which is not allowed"
    if mode in _SEARCHES and not request.index.ready:
        return "the index is not ready"
    if k < 0:
        return f"not one passage fits in {request.model.reliable_tokens} reliable tokens"
    reader = (
        request.model
        if mode not in _BLOCKS
        else min((request.extractor or request.model, request.model), key=lambda model: model.reliable_tokens)
    )
    needed = math.ceil(cost.longest_prompt * settings.token_margin)
    if needed > reader.reliable_tokens:
        what = "a block" if mode in _BLOCKS else "the prompt"
        return f"{what} of {needed} tokens, reliable up to {reader.reliable_tokens}"
    return ""
