"""What vLLM can show a policy, and which policies that is enough for."""

from __future__ import annotations

from remnant.errors import UnsupportedPolicy
from remnant.kv import Policy
from remnant_vllm.counts import Mode

__all__ = ["SUPPLIED", "check_supply", "queries_needed"]

SUPPLIED = frozenset({"queries", "all_queries", "attn", "rope"})
"""Needs that are met: queries are kept across chunks, the decode row is computed from the stored keys."""


def check_supply(policy: Policy, mode: Mode) -> None:
    """Refuse a policy that cannot run in vLLM, before anything starts.

    Raises:
        UnsupportedPolicy: names what the policy needs and what vLLM gives.
    """
    name = policy.name
    missing = sorted(policy.needs - SUPPLIED)
    if missing:
        raise UnsupportedPolicy(
            f"policy {name!r} needs {', '.join(missing)}, which vLLM does not show",
            accepted=f"policies that need no more than {', '.join(sorted(SUPPLIED))}",
        )
    if not policy.even:
        raise UnsupportedPolicy(
            f"policy {name!r} keeps another number of tokens in every head; a vLLM block holds all heads of a layer",
            accepted="policies with equal counts per head",
            do="for trimkv: share='head'" if name == "trimkv" else "choose snapkv or pyramidkv",
        )
    if policy.layout == "channels":
        raise UnsupportedPolicy(f"policy {name!r} stores fewer channels; vLLM's blocks have one shape")
    if not policy.when:
        raise UnsupportedPolicy(f"policy {name!r} evicts nothing", do="leave the flags out")
    if mode == "stream" and "all_queries" in policy.needs and not policy.bounded:
        raise UnsupportedPolicy(
            f"policy {name!r} compresses prompts only, by all of their queries", accepted="mode 'prompt' for it"
        )
    if mode == "prompt" and not any(trigger.kind == "prefill_end" for trigger in policy.when):
        raise UnsupportedPolicy(f"policy {name!r} acts while decoding only", accepted="mode 'stream' for it")


def queries_needed(policy: Policy, prompt_len: int) -> int:
    """Newest prompt tokens whose queries the policy must see; these are computed even when their keys are cached."""
    if "all_queries" in policy.needs:
        return prompt_len
    return max(policy.window, 1) if "queries" in policy.needs else 1
