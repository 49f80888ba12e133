"""How long work reports how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, text)`: steps done, steps in all, what is being done."""


def silent(done: int, total: int, text: str) -> None:
    """Report nothing."""
