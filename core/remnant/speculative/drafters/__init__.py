"""One file per drafter that can be made by name; every module of this folder is imported, sorted by name."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

_found: list[type[Any]] = []
for _module in sorted(m.name for m in iter_modules(__path__)):
    _loaded = import_module(f"{__name__}.{_module}")
    _found += [
        made
        for made in vars(_loaded).values()
        if isinstance(made, type)
        and made.__module__ == _loaded.__name__
        and isinstance(getattr(made, "name", None), str)
    ]

BUILTIN = tuple(_found)
