"""How a drafter's logits become the distribution that `generate` samples from: the same processors, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation import logits_process as stock

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
        return self._apply(ids[None], scores.clone(), row)

    def _row_of(self, ids: Tensor) -> int | None:
        """The row of the call whose history this is: the engine's are views of one buffer with a line per row."""
        rows, size = len(self.prefix or ()), ids.untyped_storage().nbytes() // ids.element_size()
        if not rows or not size or size % rows:
            return None  # a drafter's own history, without padding: its filters may differ, the target's decide
        row, place = divmod(int(ids.storage_offset()), size // rows)
        return row if place + len(ids) <= size // rows else None

    def _apply(self, ids: Tensor, scores: Tensor, row: int | None) -> Tensor:
        """The processors on one row `[1, V]`. Those that may tell rows apart by their place see it in every place."""
        processors: Any = self.processors
        rows, place = len(self.prefix or ()), row or 0
        if rows < 2 or not isinstance(processors, list):
            return processors(ids, scores)
        for each in list[Any](processors):
            if _alike(each):
                scores = each(ids, scores)
            else:
                scores = each(ids.expand(rows, -1), scores.repeat(rows, 1))[place : place + 1]
        return scores


_ALIKE = {
    stock.EpsilonLogitsWarper, stock.EtaLogitsWarper, stock.ExponentialDecayLengthPenalty,
    stock.ForcedBOSTokenLogitsProcessor, stock.ForcedEOSTokenLogitsProcessor, stock.InfNanRemoveLogitsProcessor,
    stock.LogitNormalization, stock.MinLengthLogitsProcessor, stock.MinNewTokensLengthLogitsProcessor,
    stock.MinPLogitsWarper, stock.NoBadWordsLogitsProcessor, stock.NoRepeatNGramLogitsProcessor,
    stock.RepetitionPenaltyLogitsProcessor, stock.SequenceBiasLogitsProcessor,
    stock.SuppressTokensAtBeginLogitsProcessor, stock.SuppressTokensLogitsProcessor, stock.TemperatureLogitsWarper,
    stock.TopKLogitsWarper, stock.TopPLogitsWarper, stock.TypicalLogitsWarper, stock.WatermarkLogitsProcessor,
}  # fmt: skip
"""Processors that treat every row of a batch alike."""


def _alike(processor: Any) -> bool:
    # Repetition penalty holds a number per row in some versions: how much padding is ignored.
    return type(processor) in _ALIKE and not isinstance(getattr(processor, "prompt_ignore_length", None), Tensor)
