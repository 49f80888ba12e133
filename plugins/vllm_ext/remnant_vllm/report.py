"""One line at start that says what will be evicted, and from which layers."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from remnant_vllm.spec import RemnantSpec, governed

__all__ = ["report_once", "startup_line"]

_log = logging.getLogger("vllm.remnant")


def startup_line(vllm_config: Any, spec: RemnantSpec) -> str:
    """What an engine evicts; only a worker can say it, because only there the layers exist.

    Example: remnant: policy snapkv keeps 1024 tokens per KV head (mode prompt, blocks of 16); evicts in 4 layers
        (5, 11, 17, 23); left alone: 20 with a sliding window
    """
    settings = spec.remnant
    ours = governed(vllm_config)
    options = "".join(f", {key}={value}" for key, value in settings.options)
    budget = f"{settings.budget} tokens per KV head"
    if settings.by_layer:
        budget += " on average over layers"
    how = f"mode {settings.mode}, blocks of {spec.block_size}{options}"
    line = (
        f"remnant: policy {settings.policy} keeps {budget} ({how}); "
        f"evicts in {len(ours)} layers ({_ranges([_number(name) for name in ours])})"
    )
    others = _others(vllm_config, set(ours))
    return line + (f"; left alone: {', '.join(f'{n} {kind}' for kind, n in others.items())}" if others else "")


def _others(vllm_config: Any, ours: set[str]) -> Counter[str]:
    """Layers with a cache or state of their own that keep everything, by kind."""
    found: Counter[str] = Counter()
    for name, layer in vllm_config.compilation_config.static_forward_context.items():
        if name in ours or not hasattr(layer, "get_kv_cache_spec"):
            continue
        sliding = getattr(layer, "sliding_window", None) is not None
        found["with a sliding window" if sliding else f"of {type(layer).__name__}"] += 1
    return found


def _number(name: str) -> int:
    """A layer's place in the model: "model.layers.3.self_attn.attn" -> 3."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers in short: [0, 1, 2, 5] -> "0-2, 5"."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def report_once(vllm_config: Any, spec: RemnantSpec) -> None:
    """Log the line: once per engine, by the first worker of each pipeline stage."""
    if getattr(vllm_config, "_remnant_reported", False):
        return
    vllm_config._remnant_reported = True
    if vllm_config.parallel_config.rank % max(1, vllm_config.parallel_config.tensor_parallel_size) == 0:
        _log.info(startup_line(vllm_config, spec))
