"""`model`: a smaller causal language model guesses token by token, with a cache of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.speculative._follow import Follower
from remnant.speculative._lists import floats, ints
from remnant.speculative.accept import draw, uniforms
from remnant.speculative.drafter import Draft, Sampler
from remnant.speculative.sampling import Sampler as Greedy
from remnant.speculative.target import Target

__all__ = ["ModelDrafter"]


class ModelDrafter:
    """Drafts chains with any model that can be stepped; drawn drafts carry the exact distribution they came from.

    Args:
        model: the stepper; a host wraps its model as a `Target`.
        confidence: a row stops drafting where the likeliest token has less than this probability, 0 to 1. The rule
            looks at the distribution before the draw, so that exactness holds.
        logits: keep raw logits with each draft, one step more per draft, for hosts that tilt.
        history: what processors see: the whole text, or what was generated.

    Raises:
        ConfigError: a confidence outside its range.
    """

    name: ClassVar[str] = "model"

    def __init__(
        self,
        model: Target,
        confidence: float = 0.0,
        logits: bool = False,
        history: Literal["all", "generated"] = "all",
    ) -> None:
        """See the class."""
        if not 0 <= confidence <= 1:
            raise ConfigError(f"confidence {confidence}", accepted="0 to 1")
        self.vocab_size: int | None = model.vocab_size
        self.weight_bytes = model.weight_bytes
        self._follow = Follower(model)
        self._confidence, self._keep, self._generated = confidence, logits, history == "generated"

    def reset(self, prompts: Sequence[Tensor]) -> None:
        """Read the prompts."""
        self._follow.reset(prompts)

    def propose(self, limits: Sequence[int], sampler: Sampler | None = None) -> list[Draft]:
        """Draft at most `limits[row]` tokens per row; see `Drafter.propose`."""
        if not self._follow.catch_up(limits):
            return [Draft(torch.zeros(0, dtype=torch.int64)) for _ in limits]
        return self._draft(list(limits), sampler or Greedy(temperature=0.0))

    def observe(self, emitted: Sequence[Tensor]) -> None:
        """Keep what was drafted and emitted in the cache, and crop the rest."""
        self._follow.observe(emitted)

    def rollback(self, counts: Sequence[int]) -> None:
        """Take back emitted tokens, per row."""
        self._follow.rollback(counts)

    def nbytes(self) -> int:
        """Bytes of the cache."""
        return self._follow.model.nbytes()

    def _draft(self, limits: list[int], rule: Sampler) -> list[Draft]:
        """Step until every row has its tokens; `raw` holds each row's logits after its newest token."""
        raw, b, most = self._follow.after, len(limits), max(limits)
        ids = torch.zeros(b, most, dtype=torch.int64, device=raw.device)
        q = None if rule.greedy else raw.new_zeros(b, most, raw.shape[-1], dtype=torch.float32)
        kept: list[Tensor] = []
        rows, lengths = list(range(b)), [0] * b
        for place in range(most + 1):
            kept += [raw] if self._keep else []
            rows = self._sure([row for row in rows if lengths[row] < limits[row]], raw)
            if not rows:
                break
            tokens, shares = self._next(rows, raw, rule, ids[:, :place])
            ids[rows, place] = tokens
            if q is not None:
                q[rows, place] = shares.to(q)
            for row in rows:
                lengths[row] = place + 1
            new = dict(zip(rows, ints(tokens), strict=True))
            # The last token is fed only where the logits after it are wanted.
            feed = {row: token for row, token in new.items() if self._keep or lengths[row] < limits[row]}
            if not feed:
                break
            raw = self._follow.extend(feed)
        logits = torch.stack(kept, 1) if kept else None
        return [
            Draft(
                ids[row, :n],
                None if q is None else q[row, :n],
                logits=None if logits is None else logits[row, : n + 1],
            )
            for row, n in enumerate(lengths)
        ]

    def _sure(self, rows: list[int], raw: Tensor) -> list[int]:
        if not rows or not self._confidence:
            return rows
        best = raw[rows].float().softmax(-1).amax(-1)
        return [row for row, share in zip(rows, floats(best), strict=True) if share >= self._confidence]

    def _next(self, rows: list[int], raw: Tensor, rule: Sampler, drafted: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of each row, and, unless greedy, the distributions that they come from."""
        history: list[Tensor] = []
        if getattr(rule, "reads_history", True):
            texts = [self._follow.texts[row][self._follow.starts[row] if self._generated else 0 :] for row in rows]
            history = [
                torch.cat([torch.tensor(text, dtype=torch.int64, device=raw.device), drafted[row]])
                for text, row in zip(texts, rows, strict=True)
            ]
        if rule.greedy and (best := getattr(rule, "best", None)) is not None:
            return best(history, raw[rows]), raw
        probs = rule.probs(history, raw[rows])
        if rule.greedy:
            return probs.argmax(-1), probs
        return draw(probs, uniforms((len(rows),), probs, rule.generator)), probs
