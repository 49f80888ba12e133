"""Tokens per second and peak memory of `generate` at 32k tokens, per policy, on a GPU with a random-weight model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from remnant_hf import RemnantCache

__all__ = ["POLICIES", "generated"]

POLICIES = ("full", "snapkv", "h2o", "adakv", "think", "kinetics")
CONTEXT, BUDGET, TOKENS = 32768, 2048, 64
SHAPE: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
}  # fmt: skip
"""A Llama of about 1.2 B parameters."""


def generated(quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row per policy; weights are random, so only time and memory mean anything."""
    config = LlamaConfig(**SHAPE, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    with torch.device("cuda"):
        model: Any = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).eval()
    ids = torch.randint(1, 1000, (1, CONTEXT // 4 if quick else CONTEXT), device="cuda")
    base: float | None = None
    for name in ("stock", *POLICIES):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        budget = ids.shape[1] if name == "full" else BUDGET
        cache = None if name == "stock" else RemnantCache(config, name, budget=budget)
        try:
            prefill, rate = _run(model, ids, cache)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            yield {"op": "generate", "provider": name, "skipped": f"{type(error).__name__}: {str(error)[:160]}"}
            continue
        base = base or rate
        yield {
            "op": "generate", "provider": name, "slots": ids.shape[1], "budget": budget,
            "prefill_s": round(prefill, 3), "tokens_per_s": round(rate, 2), "to_stock": round(rate / base, 3),
            "peak_GiB": round(torch.cuda.max_memory_allocated() / 2**30, 3),
            "cache_MiB": None if cache is None else round(cache.stats().bytes / 2**20, 1),
        }  # fmt: skip


@torch.no_grad()
def _run(model: Any, ids: torch.Tensor, cache: Any) -> tuple[float, float]:
    """(seconds for the prompt, tokens per second after it)."""
    given: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    if cache is not None:
        given["past_key_values"] = cache
    stamps: list[float] = []

    def stamp(*_: Any) -> torch.Tensor:
        torch.cuda.synchronize()
        stamps.append(time.perf_counter())
        return torch.zeros(1, dtype=torch.bool, device="cuda")

    torch.cuda.synchronize()
    begin = time.perf_counter()
    model.generate(ids, max_new_tokens=TOKENS, stopping_criteria=[stamp], **given)
    return stamps[0] - begin, (len(stamps) - 9) / (stamps[-1] - stamps[8])  # the first tokens warm kernels up
