"""What a drafter is: it guesses how a text goes on, a target checks the guess, and nothing else is agreed.

A host owns the loop: `reset` with the prompts, then in turns `propose`, one pass of the target, `observe` with what was
really emitted. A drafter never sees the target's logits and never decides what is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from remnant.errors import ConfigError, ShapeError
from remnant.plugins import collect
from remnant.registry import Registry

if TYPE_CHECKING:
    from remnant.speculative.accept import Mode
    from remnant.speculative.tree import Tree

__all__ = ["Draft", "Drafter", "Sampler", "drafter_registry", "get_drafter", "list_drafters"]


@dataclass(frozen=True)
class Draft:
    """One row's guess: a chain of tokens, or a tree of them.

    Args:
        ids: `[n]` int64, the guessed tokens in order; empty where there is no guess. With a tree: its nodes without
            the root.
        q: `[n, V]` float32, the distribution each token was drawn from, after temperature and filters; None says that
            the guess is deterministic (nothing was drawn).
        tree: the tree, for hosts that verify trees; None is a chain.
        mode: how the tree's children were found, as `accept_tree` takes it.
        logits: `[n + 1, V]`, the drafter's own logits before each token of a chain and after the last, before any
            filter; for hosts that mix them into the target's. None: not kept.

    Raises:
        ShapeError: `ids` is not one-dimensional int64, or `q` or `logits` does not fit it.
    """

    ids: Tensor
    q: Tensor | None = None
    tree: Tree | None = None
    mode: Mode = "det"
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the shapes, which no host checks again."""
        if self.ids.dim() != 1 or self.ids.dtype != torch.int64:
            raise ShapeError(f"draft ids of {self.ids.dtype} {tuple(self.ids.shape)}", accepted="int64 [n]")
        if self.q is not None and (self.q.dim() != 2 or self.q.shape[0] != self.ids.shape[0]):
            raise ShapeError(f"draft distributions of {tuple(self.q.shape)}", accepted=f"[{self.ids.shape[0]}, V]")
        if self.logits is not None and (self.logits.dim() != 2 or self.logits.shape[0] != self.ids.shape[0] + 1):
            raise ShapeError(f"draft logits of {tuple(self.logits.shape)}", accepted=f"[{self.ids.shape[0] + 1}, V]")

    def __len__(self) -> int:
        """How many tokens are guessed."""
        return self.ids.shape[0]

    def first(self, n: int) -> Draft:
        """The first n tokens of a chain; a tree is cut by its own `prune`."""
        if self.tree is not None and n < len(self):
            raise ConfigError("a tree cannot be cut by length", do="use tree.prune")
        if n >= len(self):
            return self
        q, logits = None if self.q is None else self.q[:n], None if self.logits is None else self.logits[: n + 1]
        return Draft(self.ids[:n], q, logits=logits)


@runtime_checkable
class Sampler(Protocol):
    """How a host turns logits into the distribution that it samples from, so that p and q are filtered alike."""

    @property
    def generator(self) -> torch.Generator | None:
        """Source of every draw; None is torch's global one."""
        ...

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        ...

    def probs(self, history: Sequence[Tensor], logits: Tensor) -> Tensor:
        """Probabilities `[B, V]` float32 of the next token.

        Args:
            history: per row `[T]` int64, the tokens before, as far as processors that count tokens may see them.
            logits: `[B, V]`, raw.

        Returns:
            Rows that sum to 1: after processors, temperature and filters; one-hot when greedy.
        """
        ...


@runtime_checkable
class Drafter(Protocol):
    """A source of drafts for B requests at once; state belongs to the object, so one object serves one loop.

    `vocab_size` is the number of token ids that it may propose (None: it proposes only what it has read), checked
    against the target's before anything is computed. Hosts let it propose only after the prompt has passed
    through the target, so that a cache which compresses the prompt sees the prompt alone.
    """

    name: ClassVar[str]

    @property
    def vocab_size(self) -> int | None:
        """Token ids that may be proposed; None proposes only what was read."""
        ...

    def reset(self, prompts: Sequence[Tensor]) -> None:
        """Begin: per row `[T]` int64, the prompt without padding."""
        ...

    def propose(self, limits: Sequence[int], sampler: Sampler | None = None) -> list[Draft]:
        """Guess, per row, at most `limits[row]` further tokens; 0 asks for an empty draft (the row is finished).

        Args:
            limits: per row, in tokens.
            sampler: draws and reports `q`; None or a greedy one asks for deterministic drafts.
        """
        ...

    def observe(self, emitted: Sequence[Tensor]) -> None:
        """Learn, per row `[n]` int64, what was really emitted since `propose`; other guesses are dropped."""
        ...

    def rollback(self, counts: Sequence[int]) -> None:
        """Take back, per row, the last emitted tokens (a stop string was cut, a turn was edited)."""
        ...


drafter_registry: Registry[type[Any]] = Registry("drafter")
"""Drafters that can be made by name."""


def list_drafters() -> list[str]:
    """Names of every drafter that can be made by name, built-ins first."""
    _load()
    return list(drafter_registry.names())


def get_drafter(name: str, **options: Any) -> Drafter:
    """Make a drafter by name.

    Args:
        name: one of `list_drafters()`.
        options: its own options.

    Raises:
        ConfigError: an unknown name or option.
    """
    _load()
    made = drafter_registry.get(name)
    try:
        return made(**options)
    except TypeError as error:
        raise ConfigError(f"drafter {name!r} with {sorted(options)}: {error}") from error


def _load() -> None:
    for _, item in collect("remnant_drafters"):
        drafter_registry.register(item.name, item)
