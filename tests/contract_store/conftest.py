"""The same store in every backend: a file, a temporary file, and a schema on a real server."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from remnant.memory import Memory, Record, RecordStore, Version, Write
from remnant.memory.memory import open_store
from remnant.memory.record import digest

SCOPE = "tenant-a"
Lessons: Any = runpy.run_path(str(Path(__file__).with_name("child.py")))["Lessons"]


@dataclass
class Backend:
    """Where one memory lies, and everything that was opened on it."""

    name: str
    where: dict[str, Any]
    opened: list[Any] = field(default_factory=list)

    @property
    def is_server(self) -> bool:
        return self.name == "postgres"

    def store(self, **options: Any) -> RecordStore:
        """Open it once more; a temporary file can be opened only once."""
        if self.name == ":memory:" and self.opened:
            return self.opened[0]
        self.opened.append(open_store(**self.where, **options))
        return self.opened[-1]

    def memory(self, strategy: Any = None, **settings: Any) -> Memory:
        made = Memory.open(
            **self.where,
            strategy=strategy or Lessons(),
            **{"scope": SCOPE, "write": "inline", "strict": True, **settings},
        )
        self.opened.append(made)
        return made

    def arguments(self) -> list[str]:
        """Where it is on a command line: an address, and its schema if it has one."""
        return [str(self.where["path_or_url"]), self.where.get("schema", "")]


@pytest.fixture(params=["file", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """A place that several processes can open."""
    yield from _backend(request.param, request, tmp_path)


@pytest.fixture(params=["file", ":memory:", "postgres"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    yield from _backend(request.param, request, tmp_path)


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    yield from _backend("postgres", request, tmp_path)


@pytest.fixture
def store(backend: Backend) -> RecordStore:
    return backend.store()


def _backend(name: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Backend]:
    if name == "postgres":
        found = Backend(name, request.getfixturevalue("new_schema")())
    else:
        found = Backend(name, {"path_or_url": folder / "memory.db" if name == "file" else name})
    yield found
    for made in found.opened:
        made.close()


@pytest.fixture
def write() -> Callable[..., Write]:
    """A write of a record that is found by its content: `write("id", "content", expected=1)`."""

    def write(id: str, content: str, expected: int = 0, *, words: str = "", vectors: Any = None, **of: Any) -> Write:
        return Write(Record(content, id=id, **of), expected, words or content, digest(content), vectors or {})

    return write


@pytest.fixture
def put(write: Callable[..., Write]) -> Callable[..., Version]:
    """Commit records: `put(store, ("id", "content"), ...)`."""

    def put(store: RecordStore, *items: Any, scope: str = SCOPE, reason: str = "r") -> Version:
        writes: Sequence[Write] = [item if isinstance(item, Write) else write(*item) for item in items]
        return store.commit(scope, writes, actor="a", reason=reason)

    return put
