"""How a drafter's logits become the distribution that `generate` samples from: the same processors, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["HostSampler"]


class HostSampler:
    """The `Sampler` of one `generate` call.

    Args:
        processors: what `generate` prepared: temperature, filters, penalties, the user's own.
        greedy: whether the most likely token is taken.
        generator: draws; None uses torch's own.
        prefix: per row of the call, the padding before its text, which the processors of plain generation see too.
    """

    def __init__(
        self,
        processors: Callable[[Any, Any], Any] | None,
        greedy: bool,
        generator: torch.Generator | None = None,
        prefix: Sequence[Tensor] | None = None,
    ) -> None:
        """See the class."""
        self.processors, self.generator, self.prefix = processors, generator, prefix
        self._greedy = greedy

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self._greedy

    def probs(self, history: Sequence[Tensor], logits: Tensor) -> Tensor:
        """Probabilities `[B, V]` float32 of the next token; one-hot when greedy.

        Args:
            history: per row `[T]` int64, the tokens before.
            logits: `[B, V]`, raw.
        """
        scores = logits.float()
        if self.processors:
            rows = [self._row(ids, scores[i : i + 1]) for i, ids in enumerate(history)]
            scores = torch.cat(rows) if rows else scores
        if not self._greedy:
            return scores.softmax(-1)
        return torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).float()

    @property
    def reads_history(self) -> bool:
        """Whether `probs` looks at the history."""
        return bool(self.processors)

    def _row(self, ids: Tensor, scores: Tensor) -> Tensor:
        assert self.processors is not None
        pad = self._padding(ids)
        ids = ids.to(scores.device)
        if pad is not None:
            ids = torch.cat([pad.to(ids), ids])
        # Processors may write into what they are given.
        return self.processors(ids[None], scores.clone())

    def _padding(self, ids: Tensor) -> Tensor | None:
        """The padding of the row whose history this is: the engine's are views of one buffer with a line per row."""
        base = ids._base
        if not self.prefix:
            return None
        if base is None or base.dim() != 2 or base.shape[0] != len(self.prefix):
            return None  # a drafter's own history: its filters may differ, the target's decide
        return self.prefix[ids.storage_offset() // base.stride(0)]
