"""What each mode costs: tokens, money and time.

Prices are USD per million tokens, times are seconds. `p'` in the formulas is the extractor's.

    full    usd = cached*p_c + (H - cached)*p_i + q*p_i + o*p_o
            t   = ttft + (H - cached)/prefill + o/decode
    rag     usd = e(q) + k*l*p_i + q*p_i + o*p_o
            t   = search + rerank + ttft + k*l/prefill + o/decode
    block   usd = H*p_i' + B*x*p_o' + R*x*p_i + o*p_o
            t   = ceil(B/parallel)*(ttft' + H_b/prefill' + x/decode') + ttft + R*x/prefill + o/decode
"""

from __future__ import annotations

import math
from dataclasses import replace

from remnant.routing.decision import Cost, Mode
from remnant.routing.request import Model, Request
from remnant.routing.settings import Settings

_MILLION = 1_000_000


def estimate(mode: Mode, request: Request, settings: Settings, k: int) -> Cost:
    """The cost of answering in one mode.

    Args:
        mode: the mode.
        request: the question, history and prices.
        settings: block size, extraction cap and the like.
        k: passages retrieved, where the mode retrieves passages.

    Source: specification of Remnant's router, section 3.2.
    """
    if mode is Mode.NONE:
        return _read(request, 0, 0)
    if mode is Mode.FULL:
        return _read(request, request.history_tokens, request.cached_tokens)
    if mode is Mode.BLOCK_EXTRACT:
        return _blocks(request, settings, request.n_conversations)
    if mode is Mode.RETRIEVE_THEN_BLOCK:
        return _search(request, _blocks(request, settings, min(settings.conversations, request.n_conversations)))
    recent = recent_tokens(request, settings) if mode is Mode.RECENT_PLUS_RAG else 0.0
    passages = min(k * unit_tokens(request, settings), request.history_tokens - recent)
    verbatim = max(0, min(request.index.unindexed_tokens, request.history_tokens) - recent)
    return _search(request, _read(request, min(request.history_tokens, recent + passages + verbatim), 0))


def unit_tokens(request: Request, settings: Settings) -> float:
    """Mean tokens of a retrieved unit: as told, as the index implies, or the default."""
    if request.index.unit_tokens:
        return request.index.unit_tokens
    if request.index.items and request.history_tokens:
        return request.history_tokens / request.index.items
    return float(settings.unit_tokens)


def recent_tokens(request: Request, settings: Settings) -> float:
    """Tokens of the newest conversations, at the mean length."""
    share = min(1.0, settings.recent / max(1, request.n_conversations))
    return request.history_tokens * share


def break_even(usd_ingest: float, usd_full: float, usd_memory: float) -> float:
    """Questions after which a memory has paid for its making.

    Args:
        usd_ingest: USD of taking the history in.
        usd_full: USD of a question over the whole history, at the cached price where it is cached.
        usd_memory: USD of a question over the memory.

    Returns:
        `usd_ingest / (usd_full - usd_memory)`; infinity where the memory is not cheaper per question.

    Example: break_even(1.0, 0.3, 0.1) -> 5.0 (about)
    """
    saved = usd_full - usd_memory
    if saved <= 0:
        return 0.0 if usd_ingest == 0 and saved == 0 else math.inf
    return usd_ingest / saved


def _read(request: Request, history: float, cached: float) -> Cost:
    """One call of the reader over a part of the history."""
    model, out, query = request.model, request.output_tokens, request.query_tokens
    price_cached = model.price_in if model.price_cached_in is None else model.price_cached_in
    usd = cached * price_cached + (history - cached + query) * model.price_in + out * model.price_out
    latency = model.ttft_s + (history - cached) / model.prefill_tok_s + out / model.decode_tok_s
    return Cost(usd / _MILLION, latency, history + query, out, history + query + out, 1)


def _search(request: Request, cost: Cost) -> Cost:
    """The same with a search before it, and its share of taking the history in."""
    index = request.index
    usd = index.usd_query + index.usd_ingest / request.calls_expected
    return replace(cost, usd=cost.usd + usd, latency_s=cost.latency_s + index.search_s + index.rerank_s)


def _blocks(request: Request, settings: Settings, conversations: int) -> Cost:
    """One call per block, then a synthesis by the reader."""
    model, extractor = request.model, request.extractor or request.model
    history = request.history_tokens * conversations / max(1, request.n_conversations)
    blocks = -(-conversations // settings.block)
    relevant = min(blocks, request.est_evidence or settings.relevant_blocks)
    x, out = settings.extraction_tokens, request.output_tokens
    usd = history * extractor.price_in + blocks * x * extractor.price_out
    usd += relevant * x * model.price_in + out * model.price_out
    rounds = math.ceil(blocks / settings.parallel)
    latency = rounds * _seconds(extractor, block_tokens(request, settings), x) + _seconds(model, relevant * x, out)
    longest = max(block_tokens(request, settings) + request.query_tokens + x, relevant * x + request.query_tokens + out)
    return Cost(usd / _MILLION, latency, history + relevant * x, blocks * x + out, longest, blocks + 1)


def block_tokens(request: Request, settings: Settings) -> float:
    """Tokens of one block, at the mean length of a conversation."""
    held = min(settings.block, request.n_conversations)
    return request.history_tokens * held / max(1, request.n_conversations)


def _seconds(model: Model, read: float, written: float) -> float:
    return model.ttft_s + read / model.prefill_tok_s + written / model.decode_tok_s
