"""What the bytes of a stored block depend on, and which models can have theirs stored at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from remnant_vllm.blockstore import stamp

__all__ = ["facts", "obstacle", "one_block_size"]

_PLAIN = ("FullAttentionSpec", "MLAAttentionSpec")
_NO_CACHE = ("ngram", "ngram_gpu", "custom_class", "suffix", "medusa")
_NOISE = ("transformers_version", "_name_or_path")


def obstacle(vllm_config: Any, kv_cache_config: Any) -> str | None:
    """Why blocks of this model cannot be kept; None if they can.

    A prefix of a request must be the same blocks in every layer, all of them there: so full attention only, one block
    size, and no token axis spread over ranks. Both halves of the connector ask, and both fall silent together.
    """
    groups = kv_cache_config.kv_cache_groups
    for spec in _specs(groups):
        if type(spec).__name__ not in _PLAIN and not hasattr(spec, "remnant"):
            return f"{type(spec).__name__}: only full attention; try --disable-hybrid-kv-cache-manager"
        if getattr(spec, "non_causal", False):
            return "attention that looks ahead"
    if not groups or not all(group.enable_kv_transfer for group in groups):
        return "caches that vLLM does not transfer"
    if len({group.kv_cache_spec.block_size for group in groups}) > 1:
        return "layers with different block sizes"
    parallel = vllm_config.parallel_config
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        return "context parallelism"
    if parallel.distributed_executor_backend == "external_launcher" and parallel.world_size > 1:
        return "external_launcher with several ranks, which would have to see the same blocks without talking"
    if getattr(vllm_config.cache_config, "calculate_kv_scales", False):
        return "calculate_kv_scales: scales that every start measures anew"
    return None


def one_block_size(kv_cache_config: Any) -> int:
    """Tokens per block, where there is no obstacle."""
    return kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size


def facts(
    vllm_config: Any, kv_cache_config: Any, layout: Sequence[Any], version: str, rank: tuple[int, int]
) -> dict[str, Any]:
    """Everything that must agree, besides the tokens, before one worker may use a block of another.

    Not among it: the cache specification and the grouping of layers. A compressing engine and a plain one write the
    same bytes for the same tokens.

    Args:
        vllm_config: of the engine.
        kv_cache_config: of the worker.
        layout: name, dtype and shape of a block for every layer, in the order of the payload.
        version: of vLLM, whose release may arrange blocks in another way.
        rank: pipeline and tensor rank.
    """
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    modules = vllm_config.compilation_config.static_forward_context
    random = vllm_config.load_config.load_format == "dummy"
    return {
        "model": _model(model),
        "seed": model.seed if random else None,
        "draft": _draft(vllm_config.speculative_config),
        "kv": [str(cache.cache_dtype), str(model.dtype), one_block_size(kv_cache_config)],
        "layers": [[name, *rest, *_kernel(modules.get(name))] for name, *rest in layout],
        "physical": str(kv_cache_config.kv_cache_layout),
        "ranks": [parallel.pipeline_parallel_size, parallel.tensor_parallel_size, *rank],
        "vllm": ".".join(version.split(".")[:2]),
    }


def _specs(groups: Sequence[Any]) -> Iterator[Any]:
    for group in groups:
        inner = getattr(group.kv_cache_spec, "kv_cache_specs", None)
        yield from inner.values() if inner else (group.kv_cache_spec,)


def _model(model: Any) -> dict[str, Any]:
    """A model as it was configured, RoPE included, and which weights it has."""
    config = model.hf_config
    plain = {key: value for key, value in config.to_dict().items() if key not in _NOISE}
    text = json.dumps(plain, sort_keys=True, default=str)
    return {
        "name": str(model.model),
        "revision": [str(model.revision), str(getattr(config, "_commit_hash", None))],
        "weights": [stamp(str(model.model)), str(model.model_weights)],
        "quantization": str(model.quantization),
        "config": text,
        # These choose between two sets of frequencies by the longest request.
        "length": model.max_model_len if "longrope" in text or '"su"' in text else None,
    }


def _draft(speculative: Any) -> dict[str, Any] | None:
    """The draft model, if its layers are cached beside the target's; else blocks are those of an engine without it."""
    model = getattr(speculative, "draft_model_config", None)
    if model is None or speculative.method in _NO_CACHE:
        return None
    return _model(model)


def _kernel(module: Any) -> tuple[str, str, str]:
    """How a kernel arranges a block: the backend of vLLM that it is or is derived from, tiles, scales."""
    backend = getattr(module, "attn_backend", None)
    family = [base for base in getattr(backend, "__mro__", ()) if base.__module__.startswith("vllm.")]
    name = f"{family[0].__module__}.{family[0].__qualname__}" if family else "unknown"
    scales = [getattr(module, f"_{part}_scale_float", None) for part in "kv"]
    return name, str(getattr(module, "isa", None)), str(scales)
