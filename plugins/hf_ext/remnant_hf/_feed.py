"""Long prompts in blocks: the same result as in one forward pass, with less memory on the way."""

from __future__ import annotations

import contextlib
import inspect
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from remnant.errors import ConfigError, ShapeError
from remnant.progress import Progress, silent

__all__ = ["blocks", "feed", "forward", "remember"]


def feed(
    model: Any,
    input_ids: Tensor,
    cache: Any,
    block: int | None = None,
    attention_mask: Tensor | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Read a prompt into a cache.

    Args:
        model: a causal language model of transformers.
        input_ids: `[B, S]` int64, what is new to the cache.
        cache: a `RemnantCache`, empty or not.
        block: tokens per forward pass; default the cache's `prefill_block`, or 2048.
        attention_mask: `[B, seen + S]` with zeros for left padding; None when there is none.
        progress: called after every block.

    Returns:
        `[B, V]` logits of the last token.

    A cache made with `prefill_block` compresses after every block. Otherwise a policy that acts at the end of the
    prompt waits for the last block, so that blocks change nothing but the size of the activations.
    """
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise ShapeError(f"input_ids {list(input_ids.shape)}", accepted="[B, S] with at least one token")
    size = block or getattr(cache, "prefill_block", None) or 2048
    seen, n = int(cache.get_seq_length()), input_ids.shape[1]
    if attention_mask is not None and attention_mask.shape[1] != seen + n:
        raise ShapeError(f"attention_mask {list(attention_mask.shape)}", accepted=f"[B, {seen + n}], the past included")
    logits: Tensor | None = None
    with torch.no_grad(), _deferred(cache):
        for start, end in blocks(n, size):
            remember(cache, input_ids[:, start:end], seen + start)
            extra: dict[str, Any] = {}
            if attention_mask is not None:
                positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
                extra["attention_mask"] = attention_mask[:, : seen + end]
                extra["position_ids"] = positions[:, seen + start : seen + end]
            logits = forward(model, input_ids[:, start:end], cache, **extra)
            progress(end, n, "reading the prompt")
    assert logits is not None
    return logits


def forward(model: Any, input_ids: Tensor, cache: Any, **extra: Any) -> Tensor:
    """One forward pass; `[B, V]` logits of the last token only, where the model can do so."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        extra["logits_to_keep"] = 1
    out = model(input_ids=input_ids, past_key_values=cache, use_cache=True, **extra)
    return out.logits[:, -1]


def remember(cache: Any, ids: Tensor, position: int) -> None:
    """Tell a cache the ids of the tokens from `position` on, for policies that want them."""
    if position == 0:
        cache.tokens = ids
        return
    known = getattr(cache, "tokens", None)
    past = ids.new_full((ids.shape[0], position), -1)
    if known is not None and known.shape[0] == ids.shape[0]:
        width = min(position, known.shape[1])
        past[:, :width] = known[:, :width]
    cache.tokens = torch.cat([past, ids], 1)


def blocks(n: int, size: int) -> list[tuple[int, int]]:
    """Cut n tokens into blocks, none of which is a single token: that would look like decoding."""
    if size < 3:
        raise ConfigError(f"block={size}", accepted="an integer of at least 3")
    cuts = [*range(0, n, size), n]
    if len(cuts) > 2 and n - cuts[-2] == 1:
        cuts[-2] -= 1
    return list(pairwise(cuts))


def _deferred(cache: Any) -> AbstractContextManager[Any]:
    """Wait with the decision until all blocks are in, unless the cache was made to decide after every block."""
    if getattr(cache, "prefill_block", None):
        return contextlib.nullcontext()
    return cache.prefilling()
