"""`rapid`: a model of transformers as the drafter that reads retrieved passages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from remnant.speculative.drafters.rapid import RagDrafter
from remnant.speculative.rag_context import RagPrompt
from remnant.speculative.rapid import Tilt
from remnant_hf._refusals import refuse_model
from remnant_hf._target import ModelTarget

__all__ = ["rapid"]


def rapid(
    model: Any,
    shorten: Callable[[Tensor], RagPrompt | Tensor],
    tilt: Tilt | None = None,
    confidence: float = 0.1,
    ending: int = 1,
) -> RagDrafter:
    """A drafter for `speculate` that reads a short prompt, made out of each long one, with a model of transformers.

    Without a tilt it changes no output. A tilt, given here and to `speculate`, lets what the drafter read into the
    answer; its modes say what is sampled then, and its `audit` how much of the drafter is in each token.

    Args:
        model: a causal language model with the target's vocabulary, of any size; also the target itself, whose weights
            then serve twice, over two caches.
        shorten: makes the short prompt, `remnant.speculative.rag_context.RagContext` or a function of ids.
        tilt: None or mode `target` drafts only.
        confidence: a row stops drafting where the likeliest token has less than this probability, 0 to 1.
        ending: last tokens that both prompts must share.

    Raises:
        ConfigError: a model that cannot draft, or a number out of range.

    Source: Chen et al. 2025 (RAPID), arXiv 2502.20330.
    Example:
        tilt = Tilt("geometric", lam=0.5, audit=Audit())
        drafter = rapid(small, RagContext(tokenizer, marker="Question:"), tilt)
        out = model.generate(**inputs, custom_generate=speculate(drafter, num_draft=8, tilt=tilt))
    """
    refuse_model(model)
    return RagDrafter(ModelTarget(model, chunk=2048, revocable=True), shorten, tilt, confidence, ending)
