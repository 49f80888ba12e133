"""Memories on real files."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remnant.memory import Memory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
def make(path: Path) -> Iterator[Callable[..., Memory]]:
    """Open memories on one file; all are closed afterwards. Distillation runs as episodes close."""
    opened: list[Memory] = []

    def make(**settings: Any) -> Memory:
        memory = Memory.open(path, **{"scope": "tenant-a", "write": "inline", "strict": True, **settings})
        opened.append(memory)
        return memory

    yield make
    for memory in opened:
        memory.close()


@pytest.fixture
def memory(make: Callable[..., Memory]) -> Memory:
    return make()
