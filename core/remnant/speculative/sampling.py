"""From logits to the distribution that is sampled from: the same steps for the target and for a drafter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remnant.errors import ConfigError, ShapeError

__all__ = ["Processor", "Sampler"]

Processor = Callable[[Tensor, Tensor], Tensor]
"""History `[1, T]` int64 and logits `[1, V]` to logits `[1, V]`: the call of a transformers `LogitsProcessor`."""


@dataclass
class Sampler:
    """Processors, then temperature, then top-k, then top-p.

    Args:
        temperature: divides the logits; 0 always takes the most likely token.
        top_k: tokens that may be drawn, ties with the last one included; 0 is all.
        top_p: the likeliest tokens that together hold this mass may be drawn; 1 is all.
        processors: change logits by what was written before. Each is called once per position with that position's
            own history, drafted tokens included, so that a penalty sees in a block what it would see in plain decoding.
        generator: source of every draw; None is torch's global one.

    Raises:
        ConfigError: a number outside its range.

    Example: Sampler(0.7, top_p=0.9, generator=torch.Generator().manual_seed(0))
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    processors: Sequence[Processor] = ()
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature {self.temperature}", accepted="0 (greedy) or more")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(f"top_k {self.top_k}, top_p {self.top_p}", accepted="top_k of 0 or more, top_p in (0, 1]")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0

    @property
    def reads_history(self) -> bool:
        """Whether `probs` looks at the history; without processors it may be left empty."""
        return bool(self.processors)

    def probs(self, history: Sequence[Tensor], logits: Tensor) -> Tensor:
        """Probabilities `[B, V]` of the next token, float32, or float64 for float64 logits.

        Args:
            history: per row `[T]` int64, the tokens before; ignored without processors.
            logits: `[B, V]`, raw; -inf bars a token.

        Raises:
            ShapeError: the logits are no `[B, V]`, a row has no history, every token of a row is barred, or a logit
                is NaN.
        """
        scores = self._processed(history, logits)
        if self.greedy:
            return torch.zeros_like(scores).scatter_(-1, _best(scores).unsqueeze(-1), 1.0)
        _check(scores.amax(-1))
        scores = scores / self.temperature
        if 0 < self.top_k < scores.shape[-1]:
            least = scores.topk(self.top_k, dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < least, float("-inf"))
        probs = scores.softmax(-1)
        return probs if self.top_p == 1 else _nucleus(probs, self.top_p)

    def best(self, history: Sequence[Tensor], logits: Tensor) -> Tensor:
        """The most likely token of each row, `[B]` int64: what a greedy `probs` marks; arguments as there."""
        return _best(self._processed(history, logits))

    def _processed(self, history: Sequence[Tensor], logits: Tensor) -> Tensor:
        if logits.dim() != 2:
            raise ShapeError(f"logits of {tuple(logits.shape)}", accepted="[B, V]")
        scores = logits if logits.dtype == torch.float64 else logits.float()
        if not self.processors:
            return scores
        if len(history) != scores.shape[0]:
            raise ShapeError(f"{len(history)} histories", accepted=f"one per row, {scores.shape[0]}")
        return torch.cat([self._row(before.unsqueeze(0), scores[i : i + 1]) for i, before in enumerate(history)])

    def _row(self, before: Tensor, row: Tensor) -> Tensor:
        row = row.clone()  # a processor may write into its argument
        for processor in self.processors:
            row = processor(before, row)
        return row


def _best(scores: Tensor) -> Tensor:
    at = scores.argmax(-1, keepdim=True)  # NaN counts as the largest
    _check(scores.gather(-1, at))
    return at.squeeze(-1)


def _check(best: Tensor) -> None:
    if not bool(torch.isfinite(best).all()):
        raise ShapeError("a row whose best logit is not finite", accepted="a finite logit per row, and no NaN")


def _nucleus(probs: Tensor, mass: float) -> Tensor:
    """Zero what lies behind the likeliest tokens that hold `mass`; of equal tokens the smaller id stays."""
    falling, order = probs.sort(dim=-1, descending=True, stable=True)
    before = falling.cumsum(-1) - falling
    falling = falling.masked_fill(before >= mass, 0.0)
    kept = torch.empty_like(probs).scatter_(-1, order, falling)
    return kept / kept.sum(-1, keepdim=True)
