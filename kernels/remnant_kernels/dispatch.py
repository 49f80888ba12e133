"""Which provider of an operation runs: chosen once per kind of device, and said in the log once per operation.

`REMNANT_KERNELS` forces one for all: `naive`, `fast` or `triton`. A forced provider that cannot run is an error;
without one, CUDA tensors go to Triton and all others to `fast`. Float64 and gradients, for which there are no kernels,
go to `fast` everywhere.

What was chosen stands in a plain dictionary, because `torch.compile` looks through `functools.cache`, with a warning.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from remnant.errors import ConfigError, MissingExtra, unknown

if TYPE_CHECKING:
    from remnant_kernels.op import Op, Provider

__all__ = ["FORCE", "INTERPRET", "chosen", "forget", "provider", "run", "wanted"]

FORCE, INTERPRET = "REMNANT_KERNELS", "TRITON_INTERPRET"
PROVIDERS = ("naive", "fast", "triton")
TRITON_FOUND = find_spec("triton") is not None
"""Looked for once, here: a compiled step cannot look."""

_log = logging.getLogger("remnant.kernels")
_choices: dict[str, tuple[str, str]] = {}
_said: set[tuple[str, str, str]] = set()


def run(op: Op, **kwargs: Any) -> Any:
    """Run an operation with the provider chosen for the device of its first tensor.

    Raises:
        ConfigError: there is no tensor, or Triton was forced for what it does not take.
    """
    return provider(op, kwargs)(**kwargs)


def provider(op: Op, kwargs: Mapping[str, Any]) -> Provider:
    """What `run` runs. In the way of every decoded token, so it looks at no more than it must."""
    for first in kwargs.values():
        if isinstance(first, torch.Tensor):
            break
    else:
        raise ConfigError("no tensor among the arguments", accepted="keyword arguments as `Op.example` gives them")
    device = first.device.type
    which, why = _choices.get(device) or _choice(op.name, device)
    if which == "triton" and not _for_kernels(first, *kwargs.values()):
        which, why = _instead(op.name)
    # A log line would break a graph of `torch.compile`.
    if not torch.compiler.is_compiling() and (op.name, device, which) not in _said:
        _said.add((op.name, device, which))
        _log.info("%s on %s: %s (%s)", op.name, device, which, why)
    return getattr(op, which)


def chosen(name: str, device: str | torch.device = "cpu") -> str:
    """Which provider runs an operation on a kind of device: `naive`, `fast` or `triton`.

    Raises:
        ConfigError: `REMNANT_KERNELS` names none, or Triton was forced where it cannot run.
        MissingExtra: Triton was forced and is not installed.
    """
    return _choice(name, torch.device(device).type)[0]


def wanted(name: str, like: torch.Tensor) -> bool:
    """Whether a kernel runs an operation on the device of a tensor; callers with a way of their own ask before.

    False for what kernels do not take: numbers such as float64, and tensors that need a gradient.
    """
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    return like.dtype in kinds and _for_kernels(like) and chosen(name, like.device) == "triton"


def forget() -> None:
    """Choose anew: after `REMNANT_KERNELS` was changed in a running process."""
    _choices.clear()
    _said.clear()


def _for_kernels(first: torch.Tensor, *values: Any) -> bool:
    """Whether a kernel computes what is asked for: none is for float64, and none has a backward pass."""
    if first.dtype == torch.float64:
        return False
    if torch.is_grad_enabled():
        for value in (first, *values):
            if isinstance(value, torch.Tensor) and value.requires_grad:
                return False
    return True


def _instead(name: str) -> tuple[str, str]:
    """What runs where a kernel cannot."""
    if os.environ.get(FORCE) == "triton":
        raise ConfigError(f"{FORCE}=triton with {name}", accepted="tensors without gradients, not float64")
    return "fast", "float64 or a gradient"


def _choice(name: str, device: str) -> tuple[str, str]:
    """(provider, reason), the same for every operation; the name is for errors."""
    found = _choices.get(device)
    if found is None:
        found = _choose(name, device)
        if not torch.compiler.is_compiling():  # a graph that writes down its choice is compiled again at the next step
            _choices[device] = found
    return found


def _choose(name: str, device: str) -> tuple[str, str]:
    forced = os.environ.get(FORCE, "")
    if forced and forced not in PROVIDERS:
        raise unknown(FORCE, forced, PROVIDERS)
    if forced == "triton":
        _require_triton(name, device)
    if forced:
        return forced, f"{FORCE}={forced}"
    if device != "cuda":
        return "fast", "not a CUDA device"
    if not TRITON_FOUND:
        return "fast", "triton is not installed"
    return "triton", "a CUDA device"


def _require_triton(name: str, device: str) -> None:
    if not TRITON_FOUND:
        raise MissingExtra(f"{FORCE}=triton", "triton", "kernels")
    if device != "cuda" and os.environ.get(INTERPRET) != "1":
        raise ConfigError(
            f"{FORCE}=triton with {name} on {device}",
            accepted="CUDA tensors",
            do=f"{INTERPRET}=1 runs kernels on a CPU, slowly",
        )
