"""Remnant for vLLM: evict KV tokens, keep prefixes across restarts, draft what comes next; by flags.

    vllm serve MODEL --attention-backend CUSTOM \
        --additional-config '{"remnant": {"policy": "snapkv", "budget": 1024}}'

vLLM finds the plugin by itself once the package is installed; nothing happens without the flags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remnant.lazy import attach

if TYPE_CHECKING:
    from remnant_vllm.connector import RemnantConnector
    from remnant_vllm.counts import gone_blocks, kept_tokens
    from remnant_vllm.drafter import LookupDrafter
    from remnant_vllm.rapid import RapidDrafter
    from remnant_vllm.settings import Settings

__all__ = ["LookupDrafter", "RapidDrafter", "RemnantConnector", "Settings", "gone_blocks", "kept_tokens"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "LookupDrafter": "remnant_vllm.drafter",
        "RapidDrafter": "remnant_vllm.rapid",
        "RemnantConnector": "remnant_vllm.connector",
        "Settings": "remnant_vllm.settings",
        "gone_blocks": "remnant_vllm.counts",
        "kept_tokens": "remnant_vllm.counts",
    },
    extra="vllm",
)
