"""Memories on real files and, for tests that ask only what `Memory` promises, on a real server too."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remnant.memory import Memory

NEUTRAL = {"test_consolidate", "test_late_verdicts", "test_learning", "test_memory", "test_place", "test_reopen"}
"""Modules whose tests run on every store, unless they look at the file."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    looks = {"path", "tmp_path"} & inspect.signature(metafunc.function).parameters.keys()
    if "address" in metafunc.fixturenames and Path(metafunc.definition.path).stem in NEUTRAL and not looks:
        metafunc.parametrize("address", ["file", "server"], indirect=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
def address(request: pytest.FixtureRequest, path: Path) -> dict[str, Any]:
    """Where the memory of a test lies: a file, unless the test is repeated on a server."""
    if getattr(request, "param", "file") == "file":
        return {"path_or_url": path}
    return request.getfixturevalue("new_schema")()


@pytest.fixture
def make(address: dict[str, Any]) -> Iterator[Callable[..., Memory]]:
    """Open memories on one store; all are closed afterwards. Distillation runs as episodes close."""
    opened: list[Memory] = []

    def make(**settings: Any) -> Memory:
        memory = Memory.open(**{**address, "scope": "tenant-a", "write": "inline", "strict": True, **settings})
        opened.append(memory)
        return memory

    yield make
    for memory in opened:
        memory.close()


@pytest.fixture
def memory(make: Callable[..., Memory]) -> Memory:
    return make()
