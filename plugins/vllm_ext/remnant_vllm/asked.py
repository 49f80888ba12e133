"""Which part of `--additional-config` is for whom: eviction, or one of the drafters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

__all__ = ["DRAFTERS", "KEY", "drafting", "eviction", "given"]

KEY = "remnant"
DRAFTERS = ("lookup", "rapid")
"""Keys under `remnant` that hold the options of a drafter; all others are eviction's."""


def given(vllm_config: Any) -> object:
    """Everything under `remnant`; None when there is nothing."""
    return (getattr(vllm_config, "additional_config", None) or {}).get(KEY)


def eviction(vllm_config: Any) -> object:
    """What was asked of eviction: None when nothing was, as with the options of a drafter alone.

    Example: {"lookup": {"min_match": 3}} -> None; {"policy": "snapkv", "budget": 64, "lookup": {}} -> the first two
    """
    asked = given(vllm_config)
    if not isinstance(asked, Mapping) or not asked:
        return asked  # nothing, or nothing that makes sense; `Settings.parse` says so
    rest = {key: value for key, value in cast("Mapping[str, Any]", asked).items() if key not in DRAFTERS}
    return rest or None


def drafting(vllm_config: Any, name: str) -> object:
    """The options of one drafter; None when there are none."""
    asked = given(vllm_config)
    return cast("Mapping[str, Any]", asked).get(name) if isinstance(asked, Mapping) else None
