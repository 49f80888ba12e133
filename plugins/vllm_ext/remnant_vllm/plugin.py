"""Entry points: what vLLM calls in each of its processes, and what `remnant` finds."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

__all__ = ["register"]

_log = logging.getLogger("vllm.remnant")  # below vLLM's own logger, so its level and format apply
_MARK = "__remnant__"
_CPU = "remnant_vllm.cpu.RemnantCPUBackend"
_CUDA = {"flash": "remnant_vllm.cuda.RemnantFlashBackend", "triton": "remnant_vllm.cuda.RemnantTritonBackend"}


def register() -> None:
    """`vllm.general_plugins`: make `--attention-backend CUSTOM` ours and read our flag where configurations are made.

    Runs in every process of vLLM, also for those who never heard of us: it imports nothing heavy, can be called any
    number of times, and never raises.
    """
    try:
        _register()
    except Exception:
        _log.warning("remnant stays off: this vLLM has no place for it", exc_info=True)


def _register() -> None:
    from remnant_vllm._compat.platform import AttentionBackendEnum, current_platform, register_backend

    path = _CPU if current_platform.is_cpu() else _CUDA["flash"]
    register_backend(AttentionBackendEnum.CUSTOM, path)
    platform = type(current_platform)
    _wrap(platform, "check_and_update_config", _reading_the_flag)
    _wrap(platform, "get_attn_backend_cls", _choosing)
    _register_trimmed()


def _register_trimmed() -> None:
    """Architectures of draft models that `remnant trim-vocab` writes; by name, so that nothing is imported yet."""
    from remnant.speculative.vocab_names import SERVED, trimmed_name
    from remnant_vllm._compat.registry import ModelRegistry

    for name in map(trimmed_name, SERVED):
        if name not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(name, f"remnant_vllm.trimmed:{name}")


def _wrap(platform: type, name: str, around: Callable[..., Any]) -> None:
    """Put `around(original, ...)` in the place of a class method, once."""
    original = getattr(platform, name).__func__
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def wrapper(cls: type, *args: Any, **kwargs: Any) -> Any:
        return around(functools.partial(original, cls), *args, **kwargs)

    setattr(wrapper, _MARK, True)
    setattr(platform, name, classmethod(wrapper))


def _reading_the_flag(original: Callable[..., None], vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    """`Platform.check_and_update_config`: whoever asked for us and cannot have us hears it before anything starts."""
    original(vllm_config, *args, **kwargs)
    if not _concerned(vllm_config):
        return
    from remnant_vllm.startup import prepare

    prepare(vllm_config)


def _concerned(vllm_config: Any) -> bool:
    """Whether anything of ours was asked for: an option, a drafter, or a checkpoint that we wrote as a drafter."""
    from remnant_vllm.ours import drafts_by_ours

    asked = (getattr(vllm_config, "additional_config", None) or {}).get("remnant") is not None
    return asked or drafts_by_ours(vllm_config)


def _choosing(
    original: Callable[..., str], selected_backend: Any, attn_selector_config: Any, *args: Any, **kwargs: Any
) -> str:
    """`Platform.get_attn_backend_cls`: the CPU's else ignores every backend but its own, CUDA has two to build on."""
    from remnant_vllm._compat.platform import (
        AttentionBackendEnum,
        current_platform,
        get_current_vllm_config_or_none,
    )

    other = attn_selector_config.use_mla or attn_selector_config.use_sparse
    if selected_backend != AttentionBackendEnum.CUSTOM or other:
        return original(selected_backend, attn_selector_config, *args, **kwargs)
    if current_platform.is_cpu():
        return AttentionBackendEnum.CUSTOM.get_path()
    original(selected_backend, attn_selector_config, *args, **kwargs)  # validates it
    config = get_current_vllm_config_or_none()
    asked = ((config.additional_config if config is not None else None) or {}).get("remnant") or {}
    return _CUDA.get(asked.get("base", "flash"), _CUDA["flash"])
