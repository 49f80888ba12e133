"""vLLM's sampler under drafts, and a repair of what its CPU build gets wrong there."""

from __future__ import annotations

import functools
import inspect
import logging
from typing import Any

import torch
from torch import Tensor
from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler

__all__ = ["REPAIRS", "expand_batch_to_tokens", "repair_sampling", "stop_at_padding"]

_log = logging.getLogger("vllm.remnant")
_MARK = "__remnant__"


def expand_batch_to_tokens(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """Repeat what belongs to a request (its temperature, top-k, top-p) for each of its drafted tokens.

    Args:
        x: `[B]`.
        cu_num_tokens: `[B]`, drafted tokens of a request and of all before it.
        num_tokens: of all requests.
        replace_from: a value that is replaced.
        replace_to: by this one.

    Returns:
        `[num_tokens]`.

    Example: x [0.5, 2.0], cu_num_tokens [1, 3] -> [0.5, 2.0, 2.0]
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1)).long()
    each = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    return each.repeat_interleave(counts, output_size=num_tokens)


def repair_sampling() -> None:
    """On the CPU, make drafts exact under sampling; elsewhere, and for whoever drafts without us, nothing changes.

    Called in the worker, where a drafter of ours is loaded or one that we wrote is configured.

    Three faults of the CPU build of vLLM 0.32, with drafts of any method: `expand_batch_to_tokens` fills an integer
    copy of what it returns, so that logits are divided by whatever was in memory and answers have a wrong distribution;
    a step without any draft, as every first one is, fails where a request has a `top_k`; and drafts of -1, with which
    the scheduler pads a request whose prompt is cached but for its last token, are looked up in front of the table of
    probabilities, now and then accepted, and left out of the answer as if they had not been there.
    """
    if not current_platform.is_cpu():
        return
    for name, ours in REPAIRS.items():
        theirs = getattr(rejection_sampler, name, None)
        if getattr(theirs, _MARK, False):
            continue
        made = ours(theirs) if theirs is not None else None
        if made is None:
            _log.warning("remnant: %s is not what it was; sampling with drafts on the CPU is not repaired", name)
            continue
        made.__wrapped__ = theirs
        setattr(made, _MARK, True)
        setattr(rejection_sampler, name, made)


def _expanding(theirs: Any) -> Any:
    """`expand_batch_to_tokens`, if it still takes what ours takes."""
    ours = inspect.signature(expand_batch_to_tokens).parameters
    if inspect.signature(theirs).parameters.keys() != ours.keys():
        return None
    return expand_batch_to_tokens


def _constraining(theirs: Any) -> Any:
    """`apply_sampling_constraints`: there is nothing to do where no token was drafted."""
    if next(iter(inspect.signature(theirs).parameters), None) != "logits":
        return None

    @functools.wraps(theirs)
    def apply_sampling_constraints(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return theirs(logits, *args, **kwargs) if logits.shape[0] else logits

    return apply_sampling_constraints


def _rejecting(theirs: Any) -> Any:
    """`rejection_sample`: an answer ends in front of the first draft of -1, with a token of the target's own."""
    order = list(inspect.signature(theirs).parameters)[:8]
    if order[:2] != ["draft_token_ids", "num_draft_tokens"] or order[5:] != [
        "target_logits",
        "bonus_token_ids",
        "sampling_metadata",
    ]:
        return None

    @functools.wraps(theirs)
    def rejection_sample(draft_token_ids: Tensor, num_draft_tokens: list[int], *args: Any, **kwargs: Any) -> Tensor:
        if not (draft_token_ids < 0).any():
            return theirs(draft_token_ids, num_draft_tokens, *args, **kwargs)
        out = theirs(draft_token_ids.clamp(min=0), num_draft_tokens, *args, **kwargs)
        return stop_at_padding(out, draft_token_ids, num_draft_tokens, args[3], args[5])

    return rejection_sample


def stop_at_padding(out: Tensor, drafts: Tensor, counts: list[int], logits: Tensor, metadata: Any) -> Tensor:
    """Reject the first draft of -1 of every request, and all after it.

    Args:
        out: `[B, most + 1]`, what was accepted or put in the place of a draft, -1 behind; it is changed.
        drafts: `[n]`, of all requests one after the other.
        counts: drafts of each request.
        logits: `[n, V]` of the target at each draft, as they are sampled from.
        metadata: vLLM's, of the batch.

    Returns:
        `out`.
    """
    start = 0
    for row, count in enumerate(counts):
        padded = (drafts[start : start + count] < 0).nonzero()
        place = int(padded[0]) if len(padded) else count
        if place < count and out[row, place] >= 0:  # what came before was accepted
            if not (metadata.all_greedy or metadata.temperature[row] == rejection_sampler.GREEDY_TEMPERATURE):
                chances = logits[start + place].softmax(-1, dtype=torch.float32)
                noise = torch.empty_like(chances).exponential_(generator=metadata.generators.get(row))
                out[row, place] = (chances / noise).argmax()
            out[row, place + 1 :] = -1
        start += count
    return out


REPAIRS = {
    "expand_batch_to_tokens": _expanding,
    "apply_sampling_constraints": _constraining,
    "rejection_sample": _rejecting,
}
"""Functions of vLLM's `rejection_sampler`, and what puts ours around each; that gives None where it no longer fits."""
