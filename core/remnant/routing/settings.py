"""The constants of the router, in one place, with overrides per model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from remnant.errors import ConfigError, unknown

TIERS = ("weak", "mid", "top")


def _no_models() -> Mapping[str, Mapping[str, Any]]:
    return MappingProxyType({})


def _k_by_tier() -> Mapping[str, int]:
    return MappingProxyType({"weak": 10, "mid": 20, "top": 40})


@dataclass(frozen=True)
class Settings:
    """Every constant the router uses.

    Args:
        low: conversations up to which the whole history is read.
        high: conversations above which passages are retrieved.
        hysteresis: fraction of a threshold by which the length must pass it before a mode changes.
        tokens_per_conversation: tokens; a history of fewer, longer conversations counts by its tokens.
        block: conversations per block.
        recent: newest conversations that the mix of recent and retrieved holds verbatim.
        conversations: conversations retrieved before they are read in blocks.
        cost_ratio: full context is fair when it costs at most this many times retrieval.
        cached_share: fraction of the history in the prefix cache that counts as cached.
        token_margin: factor on estimated tokens before they are compared with a limit.
        extraction_tokens: most tokens that one block's extraction writes.
        unit_tokens: tokens of a retrieved unit where the index does not say.
        parallel: blocks read at once.
        relevant_blocks: blocks expected to hold evidence where the request does not say.
        k_by_tier: passages retrieved for a reader of each tier.
        max_escalations: most steps up after a poor answer.
        models: model name -> overrides of any field above, as data.

    Raises:
        ConfigError: a value is out of range, or an override names no field.

    Source: Pakhomov et al. 2025, ConvoMem: 30 and 150 conversations, blocks of 10. Differs: per model, since
        weak models lose 15-40 points well before 100 conversations.
    """

    low: int = 30
    high: int = 150
    hysteresis: float = 0.1
    tokens_per_conversation: int = 2000
    block: int = 10
    recent: int = 10
    conversations: int = 50
    cost_ratio: float = 4.0
    cached_share: float = 0.9
    token_margin: float = 1.1
    extraction_tokens: int = 300
    unit_tokens: int = 100
    parallel: int = 8
    relevant_blocks: int = 3
    k_by_tier: Mapping[str, int] = field(default_factory=_k_by_tier)
    max_escalations: int = 2
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=_no_models)

    def __post_init__(self) -> None:
        """Refuse values that no router can work with."""
        if not 0 <= self.low <= self.high:
            raise ConfigError(f"thresholds {self.low} and {self.high}", accepted="0 <= low <= high")
        if not 0 <= self.hysteresis < 1:
            raise ConfigError(f"hysteresis {self.hysteresis}", accepted="a fraction, 0 <= hysteresis < 1")
        if not self.token_margin >= 1:
            raise ConfigError(f"token_margin {self.token_margin}", accepted="1 or more")
        if not self.cost_ratio >= 0 or not 0 <= self.cached_share <= 1 or self.max_escalations < 0:
            raise ConfigError("cost_ratio, cached_share or max_escalations", accepted="0 or more; cached_share up to 1")
        counts = "tokens_per_conversation block recent conversations extraction_tokens unit_tokens parallel"
        for name in (*counts.split(), "relevant_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}", accepted="1 or more")
        if set(self.k_by_tier) != set(TIERS) or min(self.k_by_tier.values()) < 1:
            raise ConfigError(f"k_by_tier {dict(self.k_by_tier)}", accepted="1 or more for each of weak, mid, top")
        for model in self.models:
            self.for_model(model)  # a bad override is refused now, not at the first question

    def for_model(self, name: str) -> Settings:
        """The settings of one model: these, with its overrides."""
        overrides = self.models.get(name)
        if overrides is None:
            return self
        names = {f.name for f in fields(self)} - {"models"}
        for key in overrides:
            if key not in names:
                raise unknown(f"setting of model {name!r}", key, names)
        return replace(self, **{**overrides, "models": _no_models()})
