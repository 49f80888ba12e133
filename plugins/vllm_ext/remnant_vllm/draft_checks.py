"""What is checked of `--speculative-config` where flags are read: before a weight of target or drafter is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import remnant_vllm
from remnant.errors import ConfigError, UnsupportedPolicy, unknown
from remnant_vllm.asked import DRAFTERS, drafting, given

__all__ = ["check_drafting"]

_PACKAGE = "remnant_vllm"


def check_drafting(vllm_config: Any) -> None:
    """Refuse a drafter of ours, or options for one, that cannot work with this engine.

    Args:
        vllm_config: of the engine; nothing is changed.

    Raises:
        ConfigError: an unknown drafter or option, a value out of range, options for a drafter that is not chosen, a
            checkpoint whose vocabulary map is missing or inconsistent, a drafter larger than its target.
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


def _checkpoint(vllm_config: Any, draft: Any) -> None:
    """A drafter with weights: what stock vLLM would load in silence, and then draft nonsense with or waste memory on."""
    target, drafter = vllm_config.model_config, getattr(draft, "draft_model_config", None)
    folder = Path(str(getattr(draft, "model", None) or ""))
    if draft.method not in ("draft_model", "eagle3") or drafter is None or not folder.is_dir():
        return
    config = getattr(drafter, "hf_config", None)
    config = getattr(config, "model", config) if not hasattr(config, "vocab_size") else config
    size = getattr(config, "draft_vocab_size", None)
    if size is not None and size < target.get_vocab_size():
        from remnant.speculative.vocab_checkpoint import read_checkpoint

        read_checkpoint(folder)
    if draft.method == "draft_model":
        _smaller(Path(str(target.model)), folder)


def _smaller(target: Path, drafter: Path) -> None:
    """Both as their files are: weights are what a step reads."""
    from remnant.serving.checkpoint import stored_bytes

    if not target.is_dir():
        return
    ours, theirs = stored_bytes(drafter, 2), stored_bytes(target, 2)
    if ours and theirs and ours > theirs:
        raise ConfigError(
            f"a drafter of {ours} bytes for a target of {theirs} at equal precision; it would slow every token down",
            accepted="a drafter that is no larger than its target",
            do="exchange the two, or train a small one with remnant fastdraft",
        )
