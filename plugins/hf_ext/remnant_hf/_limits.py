"""What passes over single rows, or over several tokens at once, would compute otherwise than plain generation does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from remnant.errors import ConfigError

__all__ = ["refuse_growing_rope", "refuse_inputs", "refuse_kinds", "refuse_short"]

_READ = {"attention_mask", "logits_to_keep", "past_key_values", "position_ids", "return_dict", "use_cache"}
"""Keyword arguments that our engine follows or makes itself."""

_KINDS = {"full_attention", "sliding_attention"}
"""Kinds of layers whose masks we make for single rows."""


def refuse_inputs(kwargs: Mapping[str, Any], prompts: Sequence[Tensor], reals: Iterable[Tensor]) -> None:
    """Refuse what the model would be told beside its tokens, which our engine does not hand on.

    Args:
        kwargs: the model's keyword arguments.
        prompts: per row `[T]` int64, without padding.
        reals: per row, which columns of the call hold the prompt.

    Raises:
        ConfigError: images, embeddings, token types or positions of the caller's own.
    """
    wide = "several rows, a tree, a tilt, a plan, a generator or lazy logits"
    do = "generate row by row, without these options of speculate"
    others = sorted(name for name, value in kwargs.items() if name not in _READ and _said(value))
    if others:
        raise ConfigError(f"{', '.join(others)} with {wide}", accepted="input_ids and attention_mask", do=do)
    positions = kwargs.get("position_ids")
    if positions is None:
        return
    per_row = positions.reshape(-1, *positions.shape[-2:])
    for row, (ids, real) in enumerate(zip(prompts, reals, strict=True)):
        own = per_row[:, min(row, per_row.shape[1] - 1), : real.shape[0]]
        if not torch.equal(own[:, real.to(own.device)].cpu(), torch.arange(len(ids)).expand(len(own), -1)):
            raise ConfigError(f"position_ids of the caller's own with {wide}", accepted="positions that count", do=do)


def _said(value: Any) -> bool:
    return isinstance(value, Tensor) or bool(value)


def refuse_kinds(model: Any) -> None:
    """Refuse rows apart for a model whose layers see otherwise than all tokens before, or a window of them.

    Raises:
        ConfigError: chunked, convolutional or other layers, or attention biased by distance.
    """
    config = model.config.get_text_config(decoder=True)
    others = sorted({*(getattr(config, "layer_types", None) or ())} - _KINDS)
    if getattr(config, "alibi", False):
        others.append("ALiBi")
    if others:
        raise ConfigError(
            f"{type(model).__name__} has {', '.join(others)}, over rows of unequal length or a tree",
            accepted="full and sliding attention",
            do="generate row by row, with chains",
        )


def refuse_growing_rope(config: Any, shortest: int, longest: int) -> None:
    """Refuse rotary frequencies that change while the text grows: a pass over a draft has those of its last token.

    Args:
        config: of the model.
        shortest: tokens of the shortest prompt.
        longest: tokens that a text may reach.

    Raises:
        ConfigError: `dynamic` frequencies, or `longrope` ones, whose mark the text may pass.
    """
    text = config.get_text_config(decoder=True)
    parameters = getattr(text, "rope_parameters", None) or {}
    for each in [parameters, *(part for part in parameters.values() if isinstance(part, Mapping))]:
        kind = each.get("rope_type")
        mark = text.max_position_embeddings if kind == "dynamic" else each.get("original_max_position_embeddings") or 0
        if longest > mark and (kind == "dynamic" or (kind == "longrope" and shortest <= mark)):
            raise ConfigError(
                f"{kind} positions and a text of {shortest} to {longest} tokens: its frequencies change at {mark}",
                accepted=f"at most {mark} tokens with the answer",
                do="lower max_new_tokens, or generate without drafts",
            )


def refuse_short(drafter: Any, longest: int, name: str) -> None:
    """Refuse a drafter model with learned positions that end before the text may.

    Raises:
        ConfigError: it has fewer positions.
    """
    config = drafter.config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None)
    if getattr(config, "rope_parameters", None) or positions is None or longest <= positions:
        return
    raise ConfigError(
        f"drafter {name!r} has {positions} positions, the text may reach {longest} tokens",
        accepted="a drafter with rotary positions, or a shorter text",
        do="lower max_new_tokens",
    )
