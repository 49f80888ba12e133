"""`rapid`: a model drafts from the passages that answer the question, while the target reads everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.speculative._text import as_rows
from remnant.speculative.drafter import Draft, Sampler
from remnant.speculative.drafters.model import ModelDrafter
from remnant.speculative.rag_context import RagPrompt, check_ending
from remnant.speculative.rapid import Tilt
from remnant.speculative.target import Target

__all__ = ["RagDrafter"]


class RagDrafter(ModelDrafter):
    """Drafts from a short prompt of its own, made out of each long one, at positions of its own.

    Drafting changes nothing about the output. A `tilt` does, unless its mode is `target`; give the same one to the
    loop. Processors that count tokens see only what was generated, for the two prompts differ; tell the loop the same
    with `history="generated"`.

    Args:
        model: the stepper of the drafter; of any size, also the target's own weights over another cache.
        shorten: makes the short prompt, `RagContext` or any function from `[L]` int64 ids to such ids.
        tilt: None or mode `target` drafts only. Any other keeps the logits that the tilt needs, for one step more per
            draft.
        confidence: a row stops drafting where the likeliest token has less than this probability, 0 to 1.
        ending: last tokens that both prompts must share.

    Raises:
        ConfigError: a number is out of range; when prompts are given, a short prompt that is empty or ends unlike the
            long one.

    Attributes:
        prompts: what was read, per row, after `reset`; a row whose source is `whole` has no short prompt and is not
            drafted for. Under a tilt it is, from the whole prompt, for the tilt needs the drafter's logits.

    Source: Chen et al. 2025 (RAPID), arXiv 2502.20330; 10 tokens per draft and a confidence of 0.1 there.
    Example: generate(target, RagDrafter(small, RagContext(tokenizer, tail=64)), long_ids, 200, num_draft=10)
    """

    name: ClassVar[str] = "rapid"

    def __init__(
        self,
        model: Target,
        shorten: Callable[[Tensor], RagPrompt | Tensor],
        tilt: Tilt | None = None,
        confidence: float = 0.1,
        ending: int = 1,
    ) -> None:
        """See the class."""
        if ending < 1:
            raise ConfigError(f"ending={ending}", accepted="1 or more tokens")
        self.tilted = tilt is not None and not tilt.lossless
        super().__init__(model, confidence, logits=self.tilted, history="generated")
        self._shorten, self._ending = shorten, ending
        self.prompts: list[RagPrompt] = []

    def reset(self, prompts: Sequence[Tensor]) -> None:
        """Shorten the prompts and read them."""
        self.prompts = [self._short(row) for row in as_rows(prompts, None)]
        # A row that is never drafted for still has a place in the batch; one token of it is enough.
        super().reset([p.ids if self.tilted or p.source != "whole" else p.ids[-1:] for p in self.prompts])

    def propose(self, limits: Sequence[int], sampler: Sampler | None = None) -> list[Draft]:
        """Draft for the rows that have a short prompt; see `Drafter.propose`."""
        if not self.tilted and len(limits) == len(self.prompts):
            limits = [0 if p.source == "whole" else n for p, n in zip(self.prompts, limits, strict=True)]
        return super().propose(limits, sampler)

    def _short(self, long: Tensor) -> RagPrompt:
        made = self._shorten(long)
        if not isinstance(made, RagPrompt):
            made = RagPrompt(made.to(torch.int64), "passages")
            if len(made.ids) >= len(long):
                made = RagPrompt(long, "whole")
        if made.ids.dim() != 1 or not len(made.ids):
            raise ConfigError(f"a short prompt of {tuple(made.ids.shape)}", accepted="[R] ids, R of 1 or more")
        check_ending(long, made.ids.to(long.device), self._ending)
        return made
