"""Remnant: a lasting memory for language models.

This package stays light: importing it loads no torch and no host framework. The parts are
`remnant.kv`, `remnant.testbed` (both need torch), `remnant.plugins` and `remnant.cli`.
"""

from typing import TYPE_CHECKING

from remnant.lazy import attach

if TYPE_CHECKING:
    from remnant.errors import (
        ConfigError,
        HostVersionError,
        MissingExtra,
        RemnantError,
        ShapeError,
        UnsupportedPolicy,
    )
    from remnant.hookspecs import hookimpl
    from remnant.kv import get_policy, list_policies

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "HostVersionError",
    "MissingExtra",
    "RemnantError",
    "ShapeError",
    "UnsupportedPolicy",
    "__version__",
    "get_policy",
    "hookimpl",
    "list_policies",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "ConfigError": "remnant.errors",
        "HostVersionError": "remnant.errors",
        "MissingExtra": "remnant.errors",
        "RemnantError": "remnant.errors",
        "ShapeError": "remnant.errors",
        "UnsupportedPolicy": "remnant.errors",
        "hookimpl": "remnant.hookspecs",
        "get_policy": "remnant.kv",
        "list_policies": "remnant.kv",
    },
    extra="torch",
)
