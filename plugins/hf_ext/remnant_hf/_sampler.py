"""How a drafter's logits become the distribution that `generate` samples from: the same processors, row by row."""

from __future__ import annotations

import copy
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
        self._by_row: dict[int | None, Any] = {}

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
        scores = self._processed(history, logits)
        if not self._greedy:
            return scores.softmax(-1)
        return torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).float()

    def best(self, history: Sequence[Tensor], logits: Tensor) -> Tensor:
        """The most likely token of each row, `[B]` int64: what a greedy `probs` marks; arguments as there."""
        return self._processed(history, logits).argmax(-1)

    def _processed(self, history: Sequence[Tensor], logits: Tensor) -> Tensor:
        scores = logits.float()
        if not self.processors or not history:
            return scores
        return torch.cat([self._row(ids, scores[i : i + 1]) for i, ids in enumerate(history)])

    @property
    def reads_history(self) -> bool:
        """Whether `probs` looks at the history."""
        return bool(self.processors)

    def _row(self, ids: Tensor, scores: Tensor) -> Tensor:
        row = self._row_of(ids)
        ids = ids.to(scores.device)
        if self.prefix and row is not None:
            ids = torch.cat([self.prefix[row].to(ids), ids])
        # Processors may write into what they are given.
        return self._alone(row)(ids[None], scores.clone())

    def _row_of(self, ids: Tensor) -> int | None:
        """The row of the call whose history this is: the engine's are views of one buffer with a line per row."""
        base = ids._base
        if not self.prefix or base is None or base.dim() != 2 or base.shape[0] != len(self.prefix):
            return None  # a drafter's own history, without padding: its filters may differ, the target's decide
        return ids.storage_offset() // base.stride(0)

    def _alone(self, row: int | None) -> Any:
        """The processors as one row sees them: some hold a number per row of the call, how much padding is ignored."""
        whole: Any = self.processors
        each: list[Any] = list(whole) if isinstance(whole, list) else []
        if not any(_per_row(one) for one in each):
            return whole
        if row not in self._by_row:
            kind: Any = type(whole)
            self._by_row[row] = kind([_of_row(one, row) for one in each])
        return self._by_row[row]


def _per_row(processor: Any) -> bool:
    return isinstance(getattr(processor, "prompt_ignore_length", None), Tensor)


def _of_row(processor: Any, row: int | None) -> Any:
    if not _per_row(processor):
        return processor
    lengths, mine = processor.prompt_ignore_length, copy.copy(processor)
    if row is None or row >= lengths.shape[0]:
        mine.prompt_ignore_length = lengths.new_zeros(1)
    else:
        mine.prompt_ignore_length = lengths[row : row + 1]
    return mine
