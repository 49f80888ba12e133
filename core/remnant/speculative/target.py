"""What the engine asks of a model with a cache, and a drafter of its stepper: the same five verbs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from remnant.errors import ConfigError

__all__ = ["Head", "LazyTarget", "Target", "deferred"]

Head = Callable[[Tensor, Tensor], Tensor]
"""Rows and columns of the last pass, both `[R]` int64, to their logits `[R, V]`; valid until `commit`."""


@runtime_checkable
class Target(Protocol):
    """A causal language model over B rows with a cache of its own.

    The cache of a row holds whole tokens, without padding as far as the caller can tell: its length is what `prefill`,
    `commit` and `crop` left. Between blocks it holds every emitted token but the last, which `step` gets first.
    """

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one step reads; 0 when not known."""
        ...

    def prefill(self, prompts: Sequence[Tensor]) -> Tensor:
        """Begin anew with these prompts; what is cached of them already may be kept.

        Args:
            prompts: per row `[T]` int64 without padding, T of 1 or more, T may differ.

        Returns:
            `[B, V]` logits after the last token of each row. All T tokens are cached.
        """
        ...

    def step(self, tokens: Tensor, positions: Tensor, widths: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run T further tokens per row behind the cache; none of them counts as cached until `commit`, which follows.

        Args:
            tokens: `[B, T]` int64, padded on the right.
            positions: `[B, T]` int64, in the row's own text; the first is the length of its cache.
            widths: `[B]` int64, 1 to T: columns of the row that are real. Real columns see the cache and, without a
                mask, the real columns up to themselves.
            mask: `[B, T, T]` bool, which columns each column sees (itself among them); None is a chain.

        Returns:
            `[B, T, V]` logits after each column; those of padding are never read and may be anything.
        """
        ...

    def commit(self, keep: Tensor) -> None:
        """Cache some columns of the last `step`, and forget the others at once.

        Args:
            keep: `[B, A]` int64, per row the columns to keep, ascending, padded on the right with -1; A of 0
                keeps nothing.
        """
        ...

    def crop(self, lengths: Tensor) -> None:
        """Shorten the caches: `[B]` int64, tokens that stay; never more than are cached."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep some rows only: `[R]` int64, ascending; row `rows[i]` becomes row i."""
        ...

    def nbytes(self) -> int:
        """Bytes that the cache holds now, columns of the last `step` among them until `commit`."""
        ...


@runtime_checkable
class LazyTarget(Target, Protocol):
    """A target that can leave its output head until it is known which columns are wanted."""

    def defer(self) -> None:
        """Make sure of that, before anything is read; from then on `prefill` too makes only the logits it returns.

        Raises:
            ConfigError: the head of this model cannot be run apart from the rest; says why.
        """
        ...

    def step_lazy(
        self, tokens: Tensor, positions: Tensor, widths: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Head]:
        """`step`, but for the head: arguments as there, after `defer`.

        Returns:
            `[B, V]` logits after the first column of each row, and what makes those of other columns.
        """
        ...


def deferred(target: Target) -> LazyTarget:
    """A target that has been told to leave its head.

    Raises:
        ConfigError: it cannot; says why.
    """
    if not isinstance(target, LazyTarget):
        raise ConfigError(
            f"lazy logits from a {type(target).__name__}, whose step computes those of every drafted token",
            accepted="a target with step_lazy",
            do="leave lazy_logits out, and plan without it",
        )
    target.defer()
    return target
