"""The engine: what eviction overrides and wraps, and the check that it still is what it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from vllm import _custom_ops as ops
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.kv_cache_interface import FullAttentionSpec, replace_as
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from remnant.errors import HostVersionError
from remnant.hosts import in_range, installed_version, supported

__all__ = [
    "Attention",
    "CPUAttentionBackend",
    "CPUAttentionBackendImpl",
    "CPUAttentionMetadataBuilder",
    "CommonAttentionMetadata",
    "FullAttentionManager",
    "FullAttentionSpec",
    "GPUModelRunner",
    "InputProcessor",
    "KVCacheManager",
    "KVCacheSpecRegistry",
    "VLLMValidationError",
    "check_host",
    "model_runner_v2",
    "ops",
    "replace_as",
    "wrap_once",
]

SIGNATURES: tuple[tuple[Callable[..., Any], tuple[str, ...]], ...] = (
    (Attention.get_kv_cache_spec, ("vllm_config",)),
    (KVCacheManager.get_computed_blocks, ("request",)),
    (FullAttentionManager.remove_skipped_blocks, ("request_id", "processed_computed_tokens", "num_prompt_tokens")),
    (FullAttentionManager.cache_blocks, ("request", "num_tokens")),
    (FullAttentionManager.pop_blocks_for_free, ("request_id",)),
    (FullAttentionManager._remove_blocks_in_range, ("request_id", "first_block", "last_block")),
    (GPUModelRunner._build_attention_metadata, ("num_tokens", "num_reqs")),
    (InputProcessor.process_inputs, ("request_id", "prompt", "params")),
    (CPUAttentionMetadataBuilder.build, ("common_prefix_len", "common_attn_metadata", "fast_build")),
    (CPUAttentionBackendImpl.forward, ("layer", "query", "key", "value", "kv_cache", "attn_metadata", "output")),
    (KVCacheSpecRegistry.register, ("kvcache_spec_cls", "manager_class", "uniform_type_base_spec")),
)
"""What is wrapped or overridden, with the parameters that we rely on."""

_MARK = "__remnant__"


def model_runner_v2() -> tuple[type, type] | None:
    """The second model runner, which CUDA uses, and its state of a model; None where it cannot be imported."""
    try:
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner as Runner
        from vllm.v1.worker.gpu.model_states.default import DefaultModelState as State
    except ImportError:
        return None
    return Runner, State


def check_host() -> None:
    """Refuse a vLLM that is not what this code was written for; called where the flag is read.

    Raises:
        HostVersionError: names the version found, what is supported, and the first thing that differs.
    """
    found, wanted = installed_version("vllm") or "0 (unknown)", supported("vllm") or ">=0.32,<0.34"
    if not in_range(found, wanted):
        raise HostVersionError("vllm", found, wanted)
    for function, needed in SIGNATURES:
        missing = set(needed) - set(inspect.signature(inspect.unwrap(function)).parameters)
        if missing:
            where = f"{function.__qualname__} lacks {', '.join(sorted(missing))}"
            raise HostVersionError("vllm", f"{found} ({where})", wanted)


def wrap_once(owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a method by what `make` returns for it, unless that was done before.

    Args:
        owner: the class.
        name: the method; a class method stays one.
        make: original -> replacement. It must take and pass on whatever it does not know.
    """
    current = inspect.getattr_static(owner, name)
    inner = current.__func__ if isinstance(current, classmethod) else current
    if getattr(inner, _MARK, False):
        return
    outer = make(inner)
    outer.__wrapped__ = inner  # type: ignore[attr-defined]
    setattr(outer, _MARK, True)
    setattr(owner, name, classmethod(outer) if isinstance(current, classmethod) else outer)
