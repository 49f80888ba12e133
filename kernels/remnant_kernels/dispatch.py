"""Which provider of an operation runs: chosen once per operation and kind of device, and said in the log.

`REMNANT_KERNELS` forces one for all: `naive`, `fast` or `triton`. A forced provider that cannot run is an error;
without one, CUDA tensors go to Triton and all others to `fast`.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from remnant.errors import ConfigError, MissingExtra, unknown
from remnant_kernels.op import Op, Provider, get_op

__all__ = ["FORCE", "INTERPRET", "chosen", "forget", "run", "wanted"]

FORCE, INTERPRET = "REMNANT_KERNELS", "TRITON_INTERPRET"
PROVIDERS = ("naive", "fast", "triton")
_log = logging.getLogger("remnant.kernels")


def run(op: Op, **kwargs: Any) -> Any:
    """Run an operation with the provider chosen for the device of its first tensor."""
    return _provider(op.name, _device(kwargs))(**kwargs)


def chosen(name: str, device: str | torch.device = "cpu") -> str:
    """Which provider runs an operation on a kind of device: `naive`, `fast` or `triton`.

    Raises:
        ConfigError: `REMNANT_KERNELS` names none, or Triton was forced where it cannot run.
        MissingExtra: Triton was forced and is not installed.
    """
    return _choice(name, torch.device(device).type)[0]


def wanted(name: str, like: torch.Tensor) -> bool:
    """Whether a kernel runs an operation on the device of a tensor; callers with a way of their own ask before.

    False for numbers that kernels do not take, such as float64.
    """
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    return like.dtype in kinds and chosen(name, like.device) == "triton"


def forget() -> None:
    """Choose anew: after `REMNANT_KERNELS` was changed in a running process."""
    _choice.cache_clear()
    _provider.cache_clear()


@cache
def _provider(name: str, device: str) -> Provider:
    op, (which, why) = get_op(name), _choice(name, device)
    _log.info("%s on %s: %s (%s)", name, device, which, why)
    return getattr(op, which)


@cache
def _choice(name: str, device: str) -> tuple[str, str]:
    forced = os.environ.get(FORCE, "")
    if forced and forced not in PROVIDERS:
        raise unknown(FORCE, forced, PROVIDERS)
    if forced == "triton":
        _require_triton(name, device)
    if forced:
        return forced, f"{FORCE}={forced}"
    if device != "cuda":
        return "fast", "not a CUDA device"
    if find_spec("triton") is None:
        return "fast", "triton is not installed"
    return "triton", "a CUDA device"


def _require_triton(name: str, device: str) -> None:
    if find_spec("triton") is None:
        raise MissingExtra(f"{FORCE}=triton", "triton", "kernels")
    if device != "cuda" and os.environ.get(INTERPRET) != "1":
        raise ConfigError(
            f"{FORCE}=triton with {name} on {device}",
            accepted="CUDA tensors",
            do=f"{INTERPRET}=1 runs kernels on a CPU, slowly",
        )


def _device(kwargs: dict[str, Any]) -> str:
    for value in kwargs.values():
        if isinstance(value, torch.Tensor):
            return value.device.type
    raise ConfigError("no tensor among the arguments", accepted="keyword arguments as `Op.example` gives them")
