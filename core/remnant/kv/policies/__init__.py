"""One file per policy. Every module of this folder is imported, sorted by name; nothing else lists them."""

from importlib import import_module
from pkgutil import iter_modules

from remnant.kv.policy import builtin_policies

for _module in sorted(m.name for m in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")

BUILTIN = builtin_policies()
