"""transformers, imported late and untyped: its annotations are not meant for strict checking."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["hf"]


def hf() -> Any:
    """The module `transformers`."""
    return importlib.import_module("transformers")
