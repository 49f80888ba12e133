"""An operation with its providers, its examples, and what it moves and computes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pkgutil import iter_modules
from typing import Any, Literal

import torch

from remnant.errors import unknown
from remnant.lazy import needs
from remnant_kernels.dispatch import provider

__all__ = ["Op", "Provider", "Size", "get_op", "list_ops", "load"]

Size = Literal["small", "odd", "large"]
Provider = Callable[..., Any]
Kwargs = Mapping[str, Any]
_kernels: dict[str, Provider] = {}


@dataclass(frozen=True)
class Op:
    """One operation. Results are a tensor or a named tuple of tensors; what is written in place is returned as well.

    Args:
        name: of the operation and of its folder.
        naive: obviously right, in plain torch.
        fast: the same in few vectorised calls of torch, for devices without Triton.
        example: `(seed, size, device, dtype) -> kwargs`. `small` is for the interpreter, `odd` has sizes that no tile
            divides, strides and ragged lengths, `large` is at least 64 MB on a GPU.
        tolerance: dtype -> (absolute, relative) between a provider and `naive` in float64 or float32; (0, 0) where
            results are integers or copies.
        bytes: kwargs -> bytes that must be read and written at least once.
        flops: kwargs -> floating-point operations of the algorithm.
        efficiency: share of the roofline that is aimed at, 0 to 1.
        source: the section of the specification.
    """

    name: str
    naive: Provider
    fast: Provider
    make_example: Callable[[int, Size, str, torch.dtype], dict[str, Any]]
    tolerance: Callable[[torch.dtype], tuple[float, float]]
    bytes: Callable[[Kwargs], int]
    flops: Callable[[Kwargs], int]
    efficiency: float
    source: str

    def example(
        self, seed: int = 0, size: Size = "small", device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> dict[str, Any]:
        """Arguments that the operation accepts; the same seed gives the same ones.

        Raises:
            ConfigError: an unknown size.
        """
        if size not in ("small", "odd", "large"):
            raise unknown("size", str(size), ("small", "odd", "large"))
        return self.make_example(seed, size, device, dtype)

    @property
    def triton(self) -> Provider:
        """The kernel; imported on first use.

        Raises:
            MissingExtra: triton is not installed.
        """
        found = _kernels.get(self.name)
        if found is None:
            found = _kernels[self.name] = _kernel(self.name)
        return found

    def __call__(self, **kwargs: Any) -> Any:
        """Run the provider that `dispatch` chooses for the arguments' device."""
        return provider(self, kwargs)(**kwargs)


def _kernel(name: str) -> Provider:
    with needs("kernels", wanted_by=f"remnant_kernels.{name}"):
        module = importlib.import_module(f"remnant_kernels.{name}.triton")
    return getattr(module, name)


_ops: dict[str, Op] = {}


def load(folders: Sequence[str]) -> None:
    """Import every folder of a package that holds an operation; once, as the package itself is imported.

    Not at the first `get_op`: that may be within `torch.compile`, which imports nothing.
    """
    for name in sorted(found.name for found in iter_modules(folders) if found.ispkg):
        _ops[name] = importlib.import_module(f"remnant_kernels.{name}").OP


def list_ops() -> list[Op]:
    """Every operation, sorted by name."""
    return list(_ops.values())


def get_op(name: str) -> Op:
    """An operation by name.

    Raises:
        ConfigError: there is none of that name.
    """
    found = _ops.get(name)
    if found is None:
        raise unknown("operation", name, _ops)
    return found
