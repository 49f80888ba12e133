"""Lazy exports: a package names what it offers and imports it on first use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any


def attach(
    package: str, names: Mapping[str, str], *, extra: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package that exports lazily.

    Args:
        package: the package's `__name__`.
        names: exported name -> module that holds it, absolute or relative (`"._cache"`).
        extra: the extra named by `MissingExtra` when that module's framework is absent; left
            empty, the import error passes unchanged.

    Returns:
        The two functions, to be assigned in the package: `__getattr__, __dir__ = attach(...)`.
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with needs(extra, wanted_by=f"{package}.{name}"):
            value = getattr(importlib.import_module(names[name], package), name)
        setattr(sys.modules[package], name, value)  # the next access does not come here
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return __getattr__, __dir__


@contextmanager
def needs(extra: str, *, wanted_by: str) -> Generator[None, None, None]:
    """Turn "no module named X" into `MissingExtra`, for imports that an extra provides.

    Only a foreign module counts: a missing module of ours is a bug and passes unchanged.

    Args:
        extra: the extra that brings the module; empty passes every error unchanged.
        wanted_by: what needs the module, for the message.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if not extra or not module or module.startswith("remnant"):
            raise
        from remnant.errors import MissingExtra

        raise MissingExtra(wanted_by, module, extra) from error
