"""What is checked of `--speculative-config` where flags are read: before a weight of target or drafter is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import remnant_vllm
from remnant.errors import ConfigError, UnsupportedPolicy, unknown
from remnant.serving.checkpoint import find_config, read_json, stored_bytes
from remnant_vllm.asked import DRAFTERS, drafting, given
from remnant_vllm.ours import drafts_by_ours

__all__ = ["check_drafting", "check_sampling"]

_PACKAGE = "remnant_vllm"


def check_drafting(vllm_config: Any) -> None:
    """Refuse a drafter of ours, or options for one, that cannot work with this engine.

    Args:
        vllm_config: of the engine; nothing is changed.

    Raises:
        ConfigError: an unknown drafter or option, a value out of range, options for a drafter that is not chosen; a
            checkpoint whose vocabulary map is missing or inconsistent; a drafter with another vocabulary or tokenizer,
            or one larger than its target.
        UnsupportedPolicy: a combination that would not do what it says.
    """
    draft = getattr(vllm_config, "speculative_config", None)
    chosen = _chosen(draft)
    asked = given(vllm_config)
    for name in DRAFTERS:
        if isinstance(asked, Mapping) and name in asked and chosen != f"{name.capitalize()}Drafter":
            raise ConfigError(
                f"additional_config['remnant'] has options for {name!r}, which --speculative-config does not choose",
                do=f'add --speculative-config \'{{"method": "custom_class", "model": "{_PACKAGE}.'
                f'{name.capitalize()}Drafter", "num_speculative_tokens": 4}}\', or remove {name!r}',
            )
    if draft is None:
        return
    if chosen is not None:
        _custom(vllm_config, draft, chosen)
    else:
        _checkpoint(vllm_config, draft)


def check_sampling(vllm_config: Any, params: Any) -> None:
    """Refuse what vLLM leaves out in silence where it drafts, if the drafter is one of ours.

    Args:
        vllm_config: of the engine.
        params: `SamplingParams` of a request; None or something else for a request that samples nothing.

    Raises:
        ConfigError: `min_p` or `logit_bias`.
    """
    if not drafts_by_ours(vllm_config):
        return
    for name in ("min_p", "logit_bias"):
        value = getattr(params, name, None)
        if value:
            raise ConfigError(
                f"{name}={value!r} in an engine that drafts: vLLM would ignore it and answer as if it was not given",
                accepted="temperature, top_p, top_k, penalties, bad_words, allowed_token_ids, min_tokens, seed",
                do=f"leave out {name}, or send the request to an engine without --speculative-config",
            )


def _chosen(draft: Any) -> str | None:
    """Name of our class that was chosen; None for anything else."""
    model = str(getattr(draft, "model", None) or "")
    if not model.startswith(f"{_PACKAGE}."):
        return None
    return model.rpartition(".")[2]


def _custom(vllm_config: Any, draft: Any, name: str) -> None:
    names = [known for known in remnant_vllm.__all__ if known.endswith("Drafter")]
    if name not in names:
        raise unknown("drafter", str(draft.model), [f"{_PACKAGE}.{known}" for known in names])
    if getattr(draft, "num_speculative_tokens_per_batch_size", None):
        raise UnsupportedPolicy(
            "num_speculative_tokens_per_batch_size is not told to a drafter of method 'custom_class'",
            accepted="num_speculative_tokens",
            do="leave it out; where little is expected of a draft, LookupDrafter makes none",
        )
    if name == "LookupDrafter":
        from remnant_vllm.drafting import LookupOptions

        LookupOptions.parse(drafting(vllm_config, "lookup"), draft.num_speculative_tokens)
    if name == "RapidDrafter":
        from remnant_vllm.rapid_options import RapidOptions

        options = RapidOptions.parse(drafting(vllm_config, "rapid"))
        folder = _folder(options.model)
        if folder is not None:
            wanted = vllm_config.model_config.get_vocab_size()
            _same_vocabulary(folder.name, read_json(folder / "config.json"), wanted)


def _checkpoint(vllm_config: Any, draft: Any) -> None:
    """A drafter with weights: what stock vLLM would load in silence and then draft nonsense with."""
    target, folder = vllm_config.model_config, _folder(draft.model)
    if draft.method not in ("draft_model", "eagle3") or folder is None:
        return
    config, wanted = read_json(folder / "config.json"), target.get_vocab_size()
    _same_vocabulary(folder.name, config, wanted)
    if (config.get("draft_vocab_size") or wanted) < wanted:
        from remnant.speculative.vocab_checkpoint import read_checkpoint

        read_checkpoint(folder)
    other = _folder(target.model)
    if draft.method == "draft_model" and other is not None:
        _same_tokenizer(folder, other)
        _smaller(folder, other)


def _folder(model: object) -> Path | None:
    """Where a model lies; None for one that vLLM will have to download."""
    try:
        return find_config(str(model)).parent
    except ConfigError:
        if model and Path(str(model)).is_dir():
            raise
        return None


def _same_vocabulary(name: str, config: Mapping[str, Any], wanted: int) -> None:
    has = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    if has is not None and has != wanted:
        raise ConfigError(
            f"drafter {name!r} has a vocabulary of {has} tokens, its target one of {wanted}",
            accepted="the target's own vocabulary",
            do=f"use a drafter made for this target, or {_PACKAGE}.LookupDrafter, which fits every target",
        )


def _same_tokenizer(drafter: Path, target: Path) -> None:
    """Equal sizes are not enough: a token with two meanings is a guess that is never right."""
    from tokenizers import Tokenizer

    files = [folder / "tokenizer.json" for folder in (drafter, target)]
    if not all(file.is_file() for file in files) or files[0].read_bytes() == files[1].read_bytes():
        return
    mine, its = (Tokenizer.from_file(str(file)).get_vocab() for file in files)
    some = next((token for token in sorted({*mine, *its}) if mine.get(token) != its.get(token)), None)
    if some is not None:
        raise ConfigError(
            f"the tokenizers differ: {some!r} is {mine.get(some)} for the drafter and {its.get(some)} for the target",
            accepted="one tokenizer for both",
        )


def _smaller(drafter: Path, target: Path) -> None:
    """Both as their files are: weights are what a step reads."""
    mine, its = stored_bytes(drafter, 2), stored_bytes(target, 2)
    if mine and its and mine > its:
        raise ConfigError(
            f"drafter {drafter.name!r} has {mine} bytes of weights in 16 bits, its target {its}: drafting cannot pay",
            accepted="a drafter that is no larger than its target",
            do="exchange the two, or train a small one with remnant fastdraft",
        )
