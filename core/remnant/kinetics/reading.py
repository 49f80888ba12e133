"""What a decoding step reads of the KV cache: all of it, the best tokens, the best pages, or what eviction left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from remnant.errors import ConfigError, unknown

__all__ = ["Block", "Dense", "Evict", "Reading", "TopK", "parse_reading"]

_FORMS = "dense, topk:B, block:B[:PAGE[:LOCAL[:SUMMARIES]]] or evict:M, in tokens"


@dataclass(frozen=True)
class Dense:
    """Every step reads everything; the prompt's part is read once for all trials."""

    @property
    def label(self) -> str:
        """As typed."""
        return "dense"

    @property
    def limit(self) -> int | None:
        """Most tokens read per step and head; None reads all."""
        return None


@dataclass(frozen=True)
class TopK:
    """The best tokens, as if finding them were free: a lower bound for every token-wise selection.

    Attributes:
        budget: tokens read per step and KV head.
    """

    budget: int

    def __post_init__(self) -> None:
        """Check the budget."""
        _positive("topk", budget=self.budget)

    @property
    def label(self) -> str:
        """As typed."""
        return f"topk:{self.budget}"

    @property
    def limit(self) -> int | None:
        """Most tokens read per step and head."""
        return self.budget


@dataclass(frozen=True)
class Block:
    """The best pages by a summary of each, and the newest tokens; finding them is paid for.

    Attributes:
        budget: tokens read per step and KV head, those of `local` among them; what is not local is rounded up to
            whole pages.
        page: tokens per page.
        local: newest tokens, always read.
        summaries: vectors per page: 1 for the mean of its keys, 2 for their minima and maxima (Quest).
    """

    budget: int
    page: int = 16
    local: int = 16
    summaries: int = 1

    def __post_init__(self) -> None:
        """Check the sizes."""
        _positive("block", budget=self.budget, page=self.page)
        if not 0 <= self.local < self.budget:
            raise ConfigError(
                f"block with local {self.local}", accepted=f"0 to {self.budget - 1}, less than its budget"
            )
        if self.summaries not in (1, 2):
            raise ConfigError(f"block with {self.summaries} summaries", accepted="1 (mean) or 2 (minima and maxima)")

    @property
    def label(self) -> str:
        """As typed."""
        return f"block:{self.budget}:{self.page}:{self.local}" + (":2" if self.summaries == 2 else "")

    @property
    def pages(self) -> int:
        """Pages chosen per step."""
        return -(-(self.budget - self.local) // self.page)

    @property
    def limit(self) -> int | None:
        """Most tokens read per step and head: local ones and whole pages."""
        return self.local + self.page * self.pages


@dataclass(frozen=True)
class Evict:
    """A cache that holds no more than so many tokens; the scores of what is dropped are taken as free.

    Attributes:
        capacity: tokens kept per KV head.
    """

    capacity: int

    def __post_init__(self) -> None:
        """Check the capacity."""
        _positive("evict", capacity=self.capacity)

    @property
    def label(self) -> str:
        """As typed."""
        return f"evict:{self.capacity}"

    @property
    def limit(self) -> int | None:
        """Most tokens read per step and head."""
        return self.capacity


Reading = Dense | TopK | Block | Evict

_KINDS: dict[str, tuple[Callable[..., Reading], int, int]] = {
    "dense": (Dense, 0, 0),
    "topk": (TopK, 1, 1),
    "block": (Block, 1, 4),
    "evict": (Evict, 1, 1),
}
"""Name -> what it makes, least and most numbers behind it."""


def parse_reading(text: str) -> Reading:
    """A way of reading from text.

    Raises:
        ConfigError: no such way, or numbers that it cannot have.

    Example: parse_reading("block:1024:16:64") -> Block(budget=1024, page=16, local=64)
    """
    name, *numbers = text.strip().split(":")
    if name not in _KINDS:
        raise unknown("policy", name, _KINDS, do=f"give {_FORMS}")
    make, least, most = _KINDS[name]
    if not least <= len(numbers) <= most or not all(number.isdecimal() for number in numbers):
        raise ConfigError(f"policy {text!r}", accepted=_FORMS)
    values: Sequence[int] = [int(number) for number in numbers]
    return make(*values)


def _positive(kind: str, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"{kind} with {name} {value}", accepted="1 or more tokens")
