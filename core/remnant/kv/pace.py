"""Eviction in whole blocks: any policy at the pace of a paged cache, so that two hosts keep the same tokens."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, TypeVar, cast

from remnant.errors import ConfigError
from remnant.kv.policy import Phase, Policy, Trigger
from remnant.kv.view import Keep, KVView

__all__ = ["Pace", "paced"]

Pace = Literal["prompt", "stream"]
P = TypeVar("P", bound=Policy)


def paced(policy: P, mode: Pace, block: int) -> P:
    """The same policy, acting when a paged cache acts and dropping what fills whole blocks.

    With it a `RemnantCache` does what `remnant_vllm` does for the same budget, mode and block size.

    Args:
        policy: decides which tokens go, as ever; its own triggers are not used.
        mode: `prompt` acts once, when the prompt is in; `stream` whenever `block` tokens have gathered above the
            budget, in the prompt and in the answer.
        block: tokens per block, at least 1.

    Returns:
        A policy of a subclass of the given one's class, with the same options.

    Raises:
        ConfigError: an unknown mode, or a block below 1.

    Example: RemnantCache(config, paced(get_policy("knorm"), "prompt", 32), budget=128)
    """
    if mode not in ("prompt", "stream"):
        raise ConfigError(f"mode={mode!r}", accepted="prompt, stream")
    if block < 1:
        raise ConfigError(f"block={block}", accepted="an integer of at least 1")
    return cast("P", _subclass(type(policy), mode, block)(**policy.options()))


@lru_cache(maxsize=256)
def _subclass(cls: type[Policy], mode: Pace, block: int) -> type[Policy]:
    stream = (Trigger("prefill_end"), Trigger("block"), Trigger("overflow", block))
    triggers = stream if mode == "stream" else (Trigger("prefill_end"),)

    def due(self: Policy, phase: Phase, step: int, stored: int, budget: int) -> bool:
        return stored - budget >= block and (mode == "stream" or phase == "prefill")

    def plan(self: Policy, view: KVView, tokens: int) -> Keep:
        stored = view.shape[2]
        return cls.plan(self, view, stored - max(0, stored - tokens) // block * block)

    body: dict[str, Any] = {
        "__doc__": cls.__doc__,
        "__module__": cls.__module__,
        "when": property(lambda self: triggers),  # pyright: ignore[reportUnknownLambdaType]
        "in_place": property(lambda self: False),  # pyright: ignore[reportUnknownLambdaType]
        "due": due,
        "plan": plan,
    }
    return type(f"Paced{cls.__name__}", (cls,), body)
