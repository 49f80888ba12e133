"""Whether what drafts in an engine is ours; asked of everyone's configuration, so nothing is imported for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["drafts_by_ours"]

TRIM = "remnant_trim"
"""Key that `remnant trim-vocab` writes into the `config.json` of a drafter."""
CARD = "fastdraft.json"
"""File that `remnant fastdraft` writes beside the weights."""


def drafts_by_ours(vllm_config: Any) -> bool:
    """Whether a class of ours drafts, or a checkpoint that we wrote in vLLM's own machinery.

    Args:
        vllm_config: of the engine.

    Example: method "eagle3" with a folder of `remnant trim-vocab` -> True; method "ngram" -> False
    """
    draft = getattr(vllm_config, "speculative_config", None)
    if draft is None:
        return False
    model = str(getattr(draft, "model", None) or "")
    if model.startswith("remnant_vllm."):
        return True
    config = getattr(getattr(draft, "draft_model_config", None), "hf_config", None)
    return hasattr(config, TRIM) or bool(model and (Path(model) / CARD).is_file())
