"""What must be right before any speed is printed."""

from __future__ import annotations

from typing import Any

import torch
from speed_cases import SKIPPED, options_of
from transformers import DynamicCache

from remnant.kv import get_policy, list_policies
from remnant_hf import RemnantCache

_PROMPT, _STEPS, _BUDGET, _TOLERANCE = 96, 12, 64, 2e-4


def policies() -> list[str]:
    """The policies that are measured."""
    return [name for name in list_policies() if name not in SKIPPED]


def faults(model: Any) -> list[str]:
    """One line per broken promise: an unbounded budget changes nothing; eviction equals its simulation."""
    ids = torch.randint(2, model.config.vocab_size, (1, _PROMPT + _STEPS))
    stock = _logits(model, DynamicCache(config=model.config), ids)
    found: list[str] = []
    for name in policies():
        options = options_of(name)
        wide = _logits(model, RemnantCache(model.config, name, budget=1 << 20, **options), ids)
        if name != "think" and not torch.allclose(wide, stock, atol=_TOLERANCE):
            found.append(f"{name}: an unbounded budget changes logits by {float((wide - stock).abs().max()):.1e}")
        policy = get_policy(name, **options)
        if policy.layout == "channels" or "layers" in policy.needs:
            continue  # merged values and pruned channels cannot be simulated by a mask
        real = _logits(model, RemnantCache(model.config, name, budget=_BUDGET, **options), ids)
        oracle = _logits(model, RemnantCache(model.config, name, budget=_BUDGET, simulate=True, **options), ids)
        if not torch.allclose(real, oracle, atol=_TOLERANCE):
            found.append(f"{name}: eviction differs from its simulation by {float((real - oracle).abs().max()):.1e}")
    return found


def _logits(model: Any, cache: Any, ids: torch.Tensor) -> torch.Tensor:
    """`[1 + STEPS, V]` logits of the last prompt token and of every decoded one."""
    rows: list[torch.Tensor] = []
    with torch.no_grad():
        for part in (ids[:, :_PROMPT], *ids[:, _PROMPT:].split(1, 1)):
            rows.append(model(part, past_key_values=cache, use_cache=True).logits[0, -1])
    return torch.stack(rows)
