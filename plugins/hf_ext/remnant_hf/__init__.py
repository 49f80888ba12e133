"""Remnant for Hugging Face transformers: swap `past_key_values`, keep what lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remnant.hosts import require_version
from remnant.lazy import attach, needs

if TYPE_CHECKING:
    from remnant_hf._feed import feed
    from remnant_hf._hooks import hooks
    from remnant_hf._rapid import rapid
    from remnant_hf._reason import reason
    from remnant_hf._speculate import speculate
    from remnant_hf.cache import RemnantCache
    from remnant_hf.episodic import EpisodicCache
    from remnant_hf.stats import CacheStats, LayerStats

__all__ = ["CacheStats", "EpisodicCache", "LayerStats", "RemnantCache", "feed", "hooks", "rapid", "reason", "speculate"]

with needs("hf", wanted_by="remnant_hf"):
    require_version("transformers")

__getattr__, __dir__ = attach(
    __name__,
    {
        "RemnantCache": "remnant_hf.cache",
        "EpisodicCache": "remnant_hf.episodic",
        "feed": "remnant_hf._feed",
        "hooks": "remnant_hf._hooks",
        "rapid": "remnant_hf._rapid",
        "reason": "remnant_hf._reason",
        "speculate": "remnant_hf._speculate",
        "CacheStats": "remnant_hf.stats",
        "LayerStats": "remnant_hf.stats",
    },
    extra="hf",
)
