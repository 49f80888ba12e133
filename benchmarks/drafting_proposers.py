"""The proposers that `drafting_lookup` compares, behind one call: what a step added, and the texts, in; drafts out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch

from remnant.speculative.drafters.lookup import Lookup
from remnant.speculative.output_store import OutputStore
from remnant.speculative.suffix import MatchOptions, SuffixIndex

__all__ = ["PROPOSERS", "SINGLE", "Proposer"]

NGRAMS = ((5, 5), (3, 5), (2, 4))
"""Least and most tokens of vLLM's ngram: its default, and two that users set."""
HF_NGRAM = 2
"""`max_matching_ngram_size`, the default of transformers."""


class Proposer(Protocol):
    """One proposer and its state for one batch."""

    def start(self, prompts: Sequence[np.ndarray], tenants: Sequence[str]) -> None:
        """Begin: per row `[T]` int32."""
        ...

    def step(self, new: list[list[int]], lengths: np.ndarray, texts: np.ndarray) -> list[list[int]]:
        """Drafts per row.

        Args:
            new: per row the tokens that were just emitted; none where the row has ended.
            lengths: `[rows]` int32, of the texts with these tokens.
            texts: `[rows, most]` int32.
        """
        ...

    def finish(self) -> None:
        """The batch has ended."""
        ...


class _Base:
    def __init__(self, num_draft: int, rows: int, most: int) -> None:
        self.num_draft, self.rows, self.most = num_draft, rows, most

    def start(self, prompts: Sequence[np.ndarray], tenants: Sequence[str]) -> None:
        """Nothing is prepared."""

    def finish(self) -> None:
        """Nothing is kept."""


class _Core(_Base):
    """The index alone, as a host calls it."""

    options = MatchOptions()

    def start(self, prompts: Sequence[np.ndarray], tenants: Sequence[str]) -> None:
        self.indexes = [SuffixIndex(prompt, self.options) for prompt in prompts]

    def step(self, new: list[list[int]], lengths: np.ndarray, texts: np.ndarray) -> list[list[int]]:
        drafts = list[list[int]]()
        for index, tokens in zip(self.indexes, new, strict=True):
            index.extend(tokens)
            drafts.append(index.propose(self.num_draft) if tokens else [])
        return drafts


class _CoreAlways(_Core):
    options = MatchOptions(min_share=0)


class _CoreThree(_Core):
    options = MatchOptions(min_match=3, min_share=0)


class _CoreFive(_Core):
    options = MatchOptions(min_match=5, min_share=0)


class _Drafter(_Base):
    """The drafter through its torch interface, with a store that lasts for the whole run or without."""

    def __init__(self, num_draft: int, rows: int, most: int, store: OutputStore | None = None) -> None:
        super().__init__(num_draft, rows, most)
        self.store = store

    def start(self, prompts: Sequence[np.ndarray], tenants: Sequence[str]) -> None:
        self.drafter = Lookup(store=self.store, scope=None if self.store is None else list(tenants))
        self.drafter.reset([torch.from_numpy(prompt.astype(np.int64)) for prompt in prompts])

    def step(self, new: list[list[int]], lengths: np.ndarray, texts: np.ndarray) -> list[list[int]]:
        self.drafter.observe([torch.tensor(tokens, dtype=torch.int64) for tokens in new])
        drafts = self.drafter.propose([self.num_draft if tokens else 0 for tokens in new])
        return [draft.ids.tolist() for draft in drafts]

    def finish(self) -> None:
        self.drafter.finish()


def _stored(num_draft: int, rows: int, most: int) -> Proposer:
    return _Drafter(num_draft, rows, most, OutputStore())


def _config(num_draft: int, rows: int, most: int, least: int = 2, longest: int = 4) -> Any:
    return SimpleNamespace(
        speculative_config=SimpleNamespace(
            prompt_lookup_min=least, prompt_lookup_max=longest, num_speculative_tokens=num_draft
        ),
        model_config=SimpleNamespace(max_model_len=most, get_vocab_size=lambda: 1 << 20),
        scheduler_config=SimpleNamespace(max_num_seqs=rows),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        additional_config={},
    )


class _Plugin(_Base):
    """What vLLM calls for `remnant_vllm.LookupDrafter`: rows found again by their texts."""

    def start(self, prompts: Sequence[np.ndarray], tenants: Sequence[str]) -> None:
        from remnant_vllm.drafter import LookupDrafter

        self.drafter = LookupDrafter(_config(self.num_draft, self.rows, self.most))

    def step(self, new: list[list[int]], lengths: np.ndarray, texts: np.ndarray) -> list[list[int]]:
        return self.drafter.propose(new, lengths, texts)


class _Ngram(_Base):
    """vLLM's own, compiled by numba."""

    def __init__(self, num_draft: int, rows: int, most: int, least: int, longest: int) -> None:
        super().__init__(num_draft, rows, most)
        from vllm.v1.spec_decode import ngram_proposer  # pyright: ignore[reportMissingImports]

        self.proposer = ngram_proposer.NgramProposer(_config(num_draft, rows, most, least, longest))

    def step(self, new: list[list[int]], lengths: np.ndarray, texts: np.ndarray) -> list[list[int]]:
        return self.proposer.propose(self.num_draft, new, lengths, texts)


class _Transformers(_Base):
    """Prompt lookup of transformers, one row at a time as there."""

    def start(self, prompts: Sequence[np.ndarray], tenants: Sequence[str]) -> None:
        from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

        self.generator = PromptLookupCandidateGenerator(
            num_output_tokens=self.num_draft, max_matching_ngram_size=HF_NGRAM, max_length=self.most
        )

    def step(self, new: list[list[int]], lengths: np.ndarray, texts: np.ndarray) -> list[list[int]]:
        drafts = list[list[int]]()
        for row, tokens in enumerate(new):
            length = int(lengths[row])
            given: Any = torch.from_numpy(texts[row : row + 1, :length].astype(np.int64))
            found = self.generator.get_candidates(given)[0] if tokens else given
            drafts.append(found[0, length:].tolist())
        return drafts


def _ngram(least: int, longest: int) -> Callable[[int, int, int], Proposer]:
    return lambda num_draft, rows, most: _Ngram(num_draft, rows, most, least, longest)


PROPOSERS: dict[str, Callable[[int, int, int], Proposer]] = {
    "lookup": _Core,
    "lookup 2, always": _CoreAlways,
    "lookup 3, always": _CoreThree,
    "lookup 5, always": _CoreFive,
    "lookup in vllm": _Plugin,
    "lookup drafter": _Drafter,
    "lookup with store": _stored,
    **{f"vllm ngram {least}-{longest}": _ngram(least, longest) for least, longest in NGRAMS},
    "hf prompt lookup": _Transformers,
}
"""Made with the draft length, the rows of a batch, and the most tokens of a text. The number is the least match, and
`always` drafts at every match, as ngram does: 2 is to be compared with 2-4, 3 with 3-5, and 5 with 5-5."""

SINGLE = ("lookup drafter", "lookup with store", "hf prompt lookup")
"""Measured with one row at a time only: the store fills between requests, and transformers knows no batches here."""
