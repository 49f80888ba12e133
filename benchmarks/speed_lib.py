"""What both environments of the speed benchmark share: the model, contexts without a prompt, and one timed step."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from speed_cases import MODEL

_BLOCK = 2048


def make_model(longest: int = 40000) -> Any:
    """The seeded two-layer model, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=MODEL["vocab"], hidden_size=MODEL["hidden"], intermediate_size=MODEL["hidden"],
        num_hidden_layers=MODEL["layers"], num_attention_heads=MODEL["heads"], num_key_value_heads=MODEL["kv_heads"],
        head_dim=MODEL["head_dim"], max_position_embeddings=longest, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def _random(heads: int, n: int) -> torch.Tensor:
    return torch.randn(1, heads, n, MODEL["head_dim"])


def fill_stock(cache: Any, n: int) -> None:
    """Put n random tokens into every layer of a stock cache."""
    for layer in range(MODEL["layers"]):
        cache.update(_random(MODEL["kv_heads"], n), _random(MODEL["kv_heads"], n), layer)


def fill_ours(cache: Any, n: int) -> None:
    """Put n random tokens into every layer of ours, as the attention of a prompt would, without the attention itself.

    A policy that reads all queries gets its prompt in blocks, since it would read n x n otherwise.
    """
    both = {"attn", "all_queries"} <= cache.policy.needs
    sizes = [_BLOCK] * (n // _BLOCK) + [n % _BLOCK] * bool(n % _BLOCK) if both else [n]
    for size in sizes:
        for index in range(MODEL["layers"]):
            k, v = cache.update(_random(MODEL["kv_heads"], size), _random(MODEL["kv_heads"], size), index)
            module = SimpleNamespace(layer_idx=index, scaling=MODEL["head_dim"] ** -0.5)
            cache.layers[index].attend(_no_attention, module, _random(MODEL["heads"], size), k, v, None)


def _no_attention(*_: Any, **__: Any) -> tuple[torch.Tensor, None]:
    return torch.empty(0), None


def step(model: Any, cache: Any, tokens: int = 1) -> float:
    """Seconds of process time of one forward pass of random tokens."""
    ids = torch.randint(2, MODEL["vocab"], (1, tokens))
    seen = int(cache.get_seq_length())
    at = torch.arange(seen, seen + tokens)
    extra: dict[str, Any] = {"position_ids": at[None], "logits_to_keep": 1}
    if _old_transformers():
        extra["cache_position"] = at
    with torch.no_grad():
        begin = time.process_time()
        model(ids, past_key_values=cache, use_cache=True, **extra)
        return time.process_time() - begin


def _old_transformers() -> bool:
    major, minor = transformers.__version__.split(".")[:2]
    return (int(major), int(minor)) < (5, 3)


def percentiles(values: list[float]) -> tuple[float, float, float]:
    """p20, p50 and p80 by linear interpolation."""
    x = sorted(values)

    def at(q: float) -> float:
        place = q * (len(x) - 1)
        low = int(place)
        return x[low] + (x[min(low + 1, len(x) - 1)] - x[low]) * (place - low)

    return at(0.2), at(0.5), at(0.8)
