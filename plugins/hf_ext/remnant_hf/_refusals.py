"""What drafting cannot honour, said before anything is computed."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import QuantizedCache, StaticCache
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import (
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant_hf import _hooks
from remnant_hf._limits import refuse_growing_rope

__all__ = [
    "parameter_bytes",
    "refuse_call",
    "refuse_headless",
    "refuse_larger",
    "refuse_model",
    "refuse_tokenizers",
    "refuse_vocabulary",
    "vocab_size",
]


_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.ASSISTED_GENERATION)


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


def refuse_headless(model: Any) -> None:
    """Refuse a model that has no head to write with.

    Raises:
        ConfigError: transformers says that it cannot generate.
    """
    able = getattr(model, "can_generate", None)
    if able is not None and not able():
        raise ConfigError(f"drafter {type(model).__name__} has no language model head", accepted="a ...ForCausalLM")


def refuse_vocabulary(target: Any, size: int | None, name: str, spare: bool) -> None:
    """Refuse a drafter whose token ids are not its target's.

    Args:
        target: a model.
        size: of the drafter's vocabulary; None proposes only what it has read.
        name: of the drafter, for the message.
        spare: a smaller one is the target's beginning: the drafter says so, or one tokenizer serves both and the
            target's vocabulary is only padded further.

    Raises:
        ConfigError: another vocabulary.
    """
    wanted = vocab_size(target)
    if size is None or size == wanted or (spare and size < wanted):
        return
    raise ConfigError(
        f"drafter {name!r} has a vocabulary of {size} tokens, its target one of {wanted}",
        accepted="the target's own vocabulary; a shorter one with tokenizer= and drafter_tokenizer= that are equal",
        do='use a drafter made for this target, or "lookup", which fits every target',
    )


def refuse_larger(target: Any, drafter: Any, name: str) -> None:
    """Refuse a drafter model with more weights than its target.

    Raises:
        ConfigError: it is larger.
    """
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
        ConfigError: beams, another way to generate, padding on the right, no cache, a cache that cannot go back, or a
            processor with a memory of its own.
        UnsupportedPolicy: the cache's policy follows the text as it is written.
    """
    if config.num_beams > 1:
        raise ConfigError(f"num_beams={config.num_beams} with drafts", accepted="greedy decoding and sampling")
    if (mode := config.get_generation_mode()) not in _MODES:
        raise ConfigError(f"{mode.value} with drafts", accepted="greedy decoding and sampling")
    if config.output_attentions or config.output_hidden_states:
        raise ConfigError(
            "output_attentions or output_hidden_states with drafts", accepted="output_scores, output_logits"
        )
    if getattr(config, "assistant_ensemble_weight", None) is not None:
        raise ConfigError("assistant_ensemble_weight with drafts", accepted="speculate(..., tilt=) to mix two models")
    mask, width = kwargs.get("attention_mask"), input_ids.shape[1]
    if not width or (mask is not None and mask.shape[1] != width):
        raise ConfigError(
            f"a prompt of {width} ids under a mask of {0 if mask is None else mask.shape[1]}",
            accepted="input_ids with the whole conversation",
            do="pass the earlier turns too; what the cache holds of them is not read again",
        )
    if mask is not None and not bool(mask[:, -1].all()):
        raise ConfigError("a prompt whose last column is padding", accepted="padding on the left")
    _refuse_cache(kwargs)
    real = [width] if mask is None else mask.bool().sum(1).tolist()
    refuse_growing_rope(model.config, min(real), max(real) + config.max_length - width)
    _refuse_processors(processors)


def _refuse_cache(kwargs: dict[str, Any]) -> None:
    cache = kwargs.get("past_key_values")
    if not kwargs.get("use_cache", True) or cache is None:
        raise ConfigError("drafting without a cache", accepted="use_cache=True")
    if isinstance(cache, StaticCache | QuantizedCache) or not hasattr(cache, "activate_past_recording"):
        raise ConfigError(
            f"a {type(cache).__name__}, which cannot take tokens back",
            accepted="DynamicCache, RemnantCache",
            do="leave it out",
        )


def _refuse_processors(processors: Any) -> None:
    for each in processors or ():
        if isinstance(each, UnbatchedClassifierFreeGuidanceLogitsProcessor):
            raise ConfigError("guidance_scale with drafts: its second pass remembers rejected tokens", accepted="none")
        if isinstance(each, SynthIDTextWatermarkLogitsProcessor):
            raise ConfigError(
                "a SynthID watermark with drafts: it remembers rejected tokens", accepted="WatermarkingConfig, or none"
            )
        if isinstance(each, _hooks._Processor):
            raise UnsupportedPolicy(
                "remnant_hf.hooks follows the text as it is written, and drafts are not yet text",
                accepted="generate with hooks, or with drafts",
            )
