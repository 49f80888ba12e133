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

__all__ = ["expand_batch_to_tokens", "repair_sampling"]

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

    Two faults of the CPU build of vLLM 0.32, with drafts of any method: `expand_batch_to_tokens` fills an integer copy
    of what it returns, so that logits are divided by whatever was in memory and answers have a wrong distribution; and
    a step without any draft, as every first one is, fails where a request has a `top_k`.
    """
    if not current_platform.is_cpu():
        return
    for name, ours in (("expand_batch_to_tokens", _expanding), ("apply_sampling_constraints", _constraining)):
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
