"""A chain drafter behind the interface of the assisted loop of transformers, one sequence at a time."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.stopping_criteria import MaxLengthCriteria, MaxTimeCriteria, StoppingCriteriaList

from remnant.errors import ConfigError
from remnant.speculative.drafter import Draft, Drafter, Sampler
from remnant.speculative.stats import SpecStats
from remnant_hf._checked import checked

__all__ = ["Candidates", "room", "watching"]

_FOREVER = 2**31 - 1


class Candidates(CandidateGenerator):
    """A `Drafter` as the stock loop wants it.

    Nothing is drafted before the first token is out: a cache that compresses the prompt must see the prompt alone.
    Later drafts end before the next eviction, before the length limit, and before a token at which generation would
    stop, because the stock loop looks at stopping criteria once per block only.

    Args:
        drafter: proposes for one row.
        prompt: `[T]` int64, without padding.
        num_draft: most tokens per draft.
        end: length of the whole text, padding included, at which generation stops.
        cache: asked before every draft how far the next eviction is.
        sampler: as for `Drafter.propose`.
        criteria: what may stop generation, asked about drafted text too.
        vocab_size: of the target.
        stats: filled.
    """

    def __init__(
        self,
        drafter: Drafter,
        prompt: Tensor,
        num_draft: int,
        end: int,
        cache: Any,
        sampler: Sampler,
        criteria: StoppingCriteriaList,
        vocab_size: int,
        stats: SpecStats,
    ) -> None:
        """See the class."""
        self.drafter, self.prompt, self.num_draft, self.end, self.cache = drafter, prompt, num_draft, end, cache
        self.sampler, self.vocab_size, self.stats = sampler, vocab_size, stats
        self.criteria = watching(criteria)
        self.length = 0
        self.draft: Tensor | None = None

    def get_candidates(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """The text with a draft behind it, and the draft's log-probabilities `[1, n, V]` where it was drawn."""
        first, self.length = self.length == 0, input_ids.shape[1]
        if first:
            self.drafter.reset([self.prompt])
            return input_ids, None
        draft = self._propose(input_ids)
        self.draft = draft.ids
        if not len(draft):
            return input_ids, None
        ids = torch.cat([input_ids, draft.ids.to(input_ids.device)[None]], 1)
        # A draft that was not drawn is compared with a sample of the target, which is exact as it stands.
        if draft.q is None or self.sampler.greedy:
            return ids, None
        return ids, torch.nn.functional.pad(draft.q, (0, self.vocab_size - draft.q.shape[1])).log()[None]

    def _propose(self, input_ids: Tensor) -> Draft:
        limit = max(min(self.num_draft, self.end - self.length - 1, room(self.cache)), 0)
        start = time.perf_counter()
        drafts = self.drafter.propose([limit], self.sampler)
        self.stats.draft_seconds += time.perf_counter() - start
        draft = checked(drafts, 1, self.drafter.name, self.vocab_size)[0]
        self._check(draft, limit)
        return draft.first(self._before_stop(input_ids, draft.ids))

    def _check(self, draft: Draft, limit: int) -> None:
        name = self.drafter.name
        if draft.tree is not None:
            raise ConfigError(f"a tree from drafter {name!r}", accepted="chains", do="speculate(..., tree=True)")
        if len(draft) > limit:
            raise ConfigError(f"{len(draft)} tokens from drafter {name!r}", accepted=f"at most {limit}")

    def _before_stop(self, input_ids: Tensor, draft: Tensor) -> int:
        """How many drafted tokens come before the first at which generation would stop."""
        if not len(draft) or not self.criteria:
            return len(draft)
        text: Any = torch.cat([input_ids, draft.to(input_ids.device)[None]], 1)
        for n in range(len(draft)):
            if bool(self.criteria(text[:, : self.length + n + 1], None).any()):  # pyright: ignore[reportArgumentType]
                return n
        return len(draft)

    def update_candidate_strategy(self, input_ids: Any, scores: Any, num_matches: Any) -> None:
        """Tell the drafter what was emitted, and count."""
        emitted = input_ids[0, self.length :]
        if self.draft is not None:
            same = emitted[: len(self.draft)].cpu() == self.draft[: len(emitted)].cpu()
            self.stats.block(len(self.draft), int(same.long().cumprod(0).sum()), len(emitted))
        self.drafter.observe([emitted])


def room(cache: Any) -> int:
    """Tokens that may be drafted: the verifying pass holds one more, and only its last may be the one that evicts."""
    until = getattr(cache, "tokens_until_eviction", None)
    return _FOREVER if until is None else int(until())


def watching(criteria: StoppingCriteriaList) -> StoppingCriteriaList:
    """The criteria that depend on the text; length and time are seen to elsewhere."""
    return StoppingCriteriaList(each for each in criteria if not isinstance(each, MaxLengthCriteria | MaxTimeCriteria))
