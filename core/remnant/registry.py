"""A typed table of named things: policies, drafters, strategies, indexes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from remnant.errors import ConfigError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to things of one kind, in the order they were registered.

    Args:
        kind: what is registered, in the singular, for messages (`"policy"`).
    """

    def __init__(self, kind: str) -> None:
        """See the class."""
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str, item: T) -> T:
        """Add a thing under a name and return it.

        Registering the same object again changes nothing, so a module may be imported twice.

        Raises:
            ConfigError: the name is empty, or taken by another thing.
        """
        if not name:
            raise ConfigError(f"empty {self.kind} name", do=f"name the {self.kind} {item!r}")
        if self._items.setdefault(name, item) is not item:
            raise ConfigError(
                f"{self.kind} {name!r} is already {self._items[name]!r}, not {item!r}",
                do="choose another name",
            )
        return item

    def get(self, name: str) -> T:
        """The thing registered under a name.

        Raises:
            ConfigError: nothing has that name; the message lists the names and the nearest one.
        """
        if name not in self._items:
            raise unknown(self.kind, name, self._items)
        return self._items[name]

    def names(self) -> tuple[str, ...]:
        """Every registered name, in order of registration."""
        return tuple(self._items)

    def __contains__(self, name: object) -> bool:
        """Whether a name is registered."""
        return name in self._items

    def __iter__(self) -> Iterator[T]:
        """The registered things, in order of registration."""
        return iter(self._items.values())

    def __len__(self) -> int:
        """How many things are registered."""
        return len(self._items)
