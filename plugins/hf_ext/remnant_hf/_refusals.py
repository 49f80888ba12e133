"""What drafting cannot honour, said before anything is computed."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import StaticCache
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant_hf import _hooks

__all__ = ["parameter_bytes", "refuse_call", "refuse_drafter", "refuse_model", "refuse_tokenizers", "vocab_size"]


def vocab_size(model: Any) -> int:
    """Token ids that a model knows, its padded ones included."""
    return int(model.config.get_text_config(decoder=True).vocab_size)


def parameter_bytes(model: Any) -> int:
    """Bytes of a model's weights, shared ones once; what one step of it reads."""
    return sum(p.nbytes for p in model.parameters())


def refuse_model(model: Any) -> None:
    """Refuse a target whose passes cannot be undone, or that does not write left to right.

    Raises:
        ConfigError: an encoder-decoder model, or one with recurrent state.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise ConfigError(f"{type(model).__name__} is an encoder-decoder model", accepted="decoder-only models")
    if getattr(model, "_is_stateful", False):
        raise ConfigError(
            f"{type(model).__name__} keeps recurrent state, which a rejected draft cannot leave unchanged",
            accepted="models whose memory is a KV cache",
        )


def refuse_drafter(target: Any, drafter: Any, name: str, allow_larger: bool) -> None:
    """Refuse a drafter that cannot serve this target.

    Args:
        target: a model.
        drafter: a model, or a `Drafter` with a `vocab_size`, which may be None.
        name: for the message.
        allow_larger: accept a drafter model with more weights than its target.

    Raises:
        ConfigError: another vocabulary, or a drafter that is larger than its target.
    """
    has = vocab_size(drafter) if hasattr(drafter, "config") else drafter.vocab_size
    wanted = vocab_size(target)
    if has is not None and has != wanted:
        raise ConfigError(
            f"drafter {name!r} has a vocabulary of {has} tokens, its target one of {wanted}",
            accepted="the target's own vocabulary",
            do='use a drafter made for this target, or "lookup", which fits every target',
        )
    if allow_larger or not hasattr(drafter, "parameters"):
        return
    mine, its = parameter_bytes(drafter), parameter_bytes(target)
    if mine > its:
        raise ConfigError(
            f"drafter {name!r} has {mine} bytes of weights, its target {its}: drafting cannot pay",
            accepted="a drafter smaller than its target",
            do="pass allow_larger=True if that is meant (RAPID with a stronger drafter)",
        )


def refuse_tokenizers(tokenizer: Any, drafter_tokenizer: Any) -> None:
    """Refuse two tokenizers that give one token different ids.

    Raises:
        ConfigError: they differ, or only one of them was given.
    """
    if drafter_tokenizer is None:
        return
    if tokenizer is None:
        raise ConfigError("a drafter_tokenizer without a tokenizer to compare it with", accepted="both or neither")
    mine, its = drafter_tokenizer.get_vocab(), tokenizer.get_vocab()
    if mine != its:
        some = next(t for t in sorted({*mine, *its}) if mine.get(t) != its.get(t))
        raise ConfigError(
            f"the tokenizers differ: {some!r} is {mine.get(some)} for the drafter and {its.get(some)} for the target",
            accepted="one tokenizer for both",
        )


def refuse_call(model: Any, config: Any, processors: Any, input_ids: Tensor, kwargs: dict[str, Any]) -> None:
    """Refuse options of one `generate` call.

    Args:
        model: the target.
        config: the prepared generation configuration.
        processors: the prepared logits processors.
        input_ids: `[B, S]`, the prompts.
        kwargs: the model's keyword arguments, cache included.

    Raises:
        ConfigError: beams, no cache, a cache that cannot go back, or a processor with a memory of its own.
        UnsupportedPolicy: the cache's policy follows the text as it is written.
    """
    if config.num_beams > 1:
        raise ConfigError(f"num_beams={config.num_beams} with drafts", accepted="greedy decoding and sampling")
    if config.output_attentions or config.output_hidden_states:
        raise ConfigError(
            "output_attentions or output_hidden_states with drafts", accepted="output_scores, output_logits"
        )
    mask, width = kwargs.get("attention_mask"), input_ids.shape[1]
    if not width or (mask is not None and mask.shape[1] != width):
        raise ConfigError(
            f"a prompt of {width} ids under a mask of {0 if mask is None else mask.shape[1]}",
            accepted="input_ids with the whole conversation",
            do="pass the earlier turns too; what the cache holds of them is not read again",
        )
    _refuse_cache(kwargs)
    _refuse_processors(processors)


def _refuse_cache(kwargs: dict[str, Any]) -> None:
    cache = kwargs.get("past_key_values")
    if not kwargs.get("use_cache", True) or cache is None:
        raise ConfigError("drafting without a cache", accepted="use_cache=True")
    if isinstance(cache, StaticCache) or getattr(cache, "is_compileable", False) is True:
        raise ConfigError(
            f"a {type(cache).__name__}, whose size is fixed", accepted="DynamicCache, RemnantCache", do="leave it out"
        )


def _refuse_processors(processors: Any) -> None:
    for each in processors or ():
        if isinstance(each, UnbatchedClassifierFreeGuidanceLogitsProcessor):
            raise ConfigError("guidance_scale with drafts: its second pass remembers rejected tokens", accepted="none")
        if isinstance(each, _hooks._Processor):
            raise UnsupportedPolicy(
                "remnant_hf.hooks follows the text as it is written, and drafts are not yet text",
                accepted="generate with hooks, or with drafts",
            )
