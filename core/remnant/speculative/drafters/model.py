"""`model`: a smaller causal language model guesses token by token, with a cache of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.speculative._lists import floats, ints
from remnant.speculative._text import as_rows
from remnant.speculative.accept import draw, uniforms
from remnant.speculative.drafter import Draft, Sampler
from remnant.speculative.sampling import Sampler as Greedy
from remnant.speculative.target import Target

__all__ = ["ModelDrafter"]


class ModelDrafter:
    """Drafts chains with any model that can be stepped; drawn drafts carry the exact distribution they came from.

    A token is fed once: what was drafted and accepted stays cached, what was rejected is cropped, and a token that was
    emitted but never fed (the correction, the bonus) opens the next draft.

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
        self._model, self._confidence, self._keep, self._generated = model, confidence, logits, history == "generated"
        self._texts: list[list[int]] = []
        self._starts: list[int] = []
        self._fed: list[int] = []
        """Tokens of each row's text that are cached."""
        self._drafted: list[list[int]] = []
        """Drafted tokens that are cached behind the text."""
        self._after: Tensor = torch.zeros(0)
        """`[B, V]` logits after each row's text, right for rows whose text is cached to its end."""

    def reset(self, prompts: Sequence[Tensor]) -> None:
        """Read the prompts."""
        rows = as_rows(prompts, None)
        self._texts = [ints(row) for row in rows]
        self._starts = [len(text) for text in self._texts]
        self._fed, self._drafted = self._starts.copy(), [[] for _ in rows]
        self._after = self._model.prefill(rows)

    def propose(self, limits: Sequence[int], sampler: Sampler | None = None) -> list[Draft]:
        """Draft at most `limits[row]` tokens per row; see `Drafter.propose`."""
        if len(limits) != len(self._texts):
            raise ConfigError(f"{len(limits)} limits for {len(self._texts)} rows", accepted="one per row, after reset")
        self._crop()
        if not any(limits):
            return [Draft(torch.zeros(0, dtype=torch.int64)) for _ in limits]
        self._catch_up([limit > 0 for limit in limits])
        return self._draft(list(limits), sampler or Greedy(temperature=0.0))

    def observe(self, emitted: Sequence[Tensor]) -> None:
        """Keep what was drafted and emitted in the cache, and crop the rest."""
        for row, tokens in enumerate(map(ints, emitted)):
            text, drafted = self._texts[row], self._drafted[row]
            same = next((i for i, pair in enumerate(zip(drafted, tokens, strict=False)) if pair[0] != pair[1]), None)
            self._fed[row] += min(len(drafted), len(tokens)) if same is None else same
            text += tokens
            if tokens:  # the newest token is fed when its logits are wanted
                self._fed[row] = min(self._fed[row], len(text) - 1)
        self._crop(force=any(self._drafted))

    def rollback(self, counts: Sequence[int]) -> None:
        """Take back emitted tokens, per row."""
        for row, count in enumerate(counts):
            emitted = len(self._texts[row]) - self._starts[row]
            if not 0 <= count <= emitted:
                raise ConfigError(f"{count} tokens to take back", accepted=f"0 to {emitted}, what row {row} emitted")
        for text, count in zip(self._texts, counts, strict=True):
            del text[len(text) - count :]
        self._fed = [
            min(fed, len(text) - 1) if count else fed
            for fed, text, count in zip(self._fed, self._texts, counts, strict=True)
        ]
        self._crop(force=True)

    def nbytes(self) -> int:
        """Bytes of the cache."""
        return self._model.nbytes()

    def _draft(self, limits: list[int], rule: Sampler) -> list[Draft]:
        """Step until every row has its tokens; `raw` holds each row's logits after its newest token."""
        raw, b, most = self._after, len(limits), max(limits)
        ids = torch.zeros(b, most, dtype=torch.int64, device=raw.device)
        q = None if rule.greedy else raw.new_zeros(b, most, raw.shape[-1], dtype=torch.float32)
        kept: list[Tensor] = []
        rows = [row for row in range(b) if limits[row]]
        lengths = [0] * b
        for place in range(most + 1):
            kept += [raw] if self._keep else []
            rows = self._sure([row for row in rows if lengths[row] < limits[row]], raw)
            if not rows:
                break
            ids[rows, place], shares = self._next(rows, raw, rule, ids[:, :place])
            if q is not None:
                q[rows, place] = shares.to(q)
            for row in rows:
                lengths[row] = place + 1
            # The last token is fed only where the logits after it are wanted.
            feed = rows if self._keep else [row for row in rows if lengths[row] < limits[row]]
            if not feed:
                break
            raw = self._feed({row: [int(ids[row, place])] for row in feed})
            for row in feed:
                self._drafted[row].append(int(ids[row, place]))
        logits = torch.stack(kept, 1) if kept else None
        return [
            Draft(
                ids[row, :n], None if q is None else q[row, :n], logits=None if logits is None else logits[row, : n + 1]
            )
            for row, n in enumerate(lengths)
        ]

    def _sure(self, rows: list[int], raw: Tensor) -> list[int]:
        if not rows or not self._confidence:
            return rows
        best = raw[rows].float().softmax(-1).amax(-1)
        return [row for row, share in zip(rows, floats(best), strict=True) if share >= self._confidence]

    def _next(self, rows: list[int], raw: Tensor, rule: Sampler, drafted: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of each row, and the distributions that they come from."""
        history: list[Tensor] = []
        if getattr(rule, "reads_history", True):
            texts = [self._texts[row][self._starts[row] if self._generated else 0 :] for row in rows]
            history = [
                torch.cat([torch.tensor(text, dtype=torch.int64, device=raw.device), drafted[row]])
                for text, row in zip(texts, rows, strict=True)
            ]
        probs = rule.probs(history, raw[rows])
        if rule.greedy:
            return probs.argmax(-1), probs
        return draw(probs, uniforms((len(rows),), probs, rule.generator)), probs

    def _catch_up(self, wanted: list[bool]) -> None:
        """Feed the tokens that were emitted but never fed, for the rows that will draft."""
        waiting = {row: text[self._fed[row] :] for row, text in enumerate(self._texts) if wanted[row]}
        waiting = {row: tokens for row, tokens in waiting.items() if tokens}
        if not waiting:
            return
        raw = self._feed(waiting)
        rows = list(waiting)
        self._after = self._after.index_copy(0, torch.tensor(rows, device=raw.device), raw[rows].to(self._after))
        for row in rows:
            self._fed[row] = len(self._texts[row])

    def _feed(self, tokens: dict[int, list[int]]) -> Tensor:
        """Run tokens of some rows; `[B, V]` logits after each row's last, of no meaning for the others."""
        device, widest = self._after.device, max(map(len, tokens.values()))
        rows = [tokens.get(row, [0]) for row in range(len(self._texts))]  # a row that is not fed still needs a column
        ids = torch.tensor([row + [0] * (widest - len(row)) for row in rows], device=device)
        widths = torch.tensor([len(row) for row in rows], device=device)
        cached = [fed + len(drafted) for fed, drafted in zip(self._fed, self._drafted, strict=True)]
        steps = torch.arange(widest, device=device)
        logits = self._model.step(ids, torch.tensor(cached, device=device).unsqueeze(1) + steps, widths)
        real = torch.tensor([row in tokens for row in range(len(rows))], device=device).unsqueeze(1)
        self._model.commit(torch.where(real & (steps < widths.unsqueeze(1)), steps, -1))
        return logits[torch.arange(len(rows), device=device), widths - 1]

    def _crop(self, force: bool = False) -> None:
        """Give back drafted tokens that are still cached."""
        if force or any(self._drafted):
            self._drafted = [[] for _ in self._texts]
            self._model.crop(torch.tensor(self._fed))
