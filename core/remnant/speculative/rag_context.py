"""A drafter's short prompt out of a target's long one: the same beginning and end, and between them what was found.

Everything happens on the long prompt's own tokens, so that both prompts end in the same ones and every passage is
tokenised as the target reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.speculative._lists import ints
from remnant.speculative.rag_chunks import split
from remnant.speculative.rag_search import asked_of, distinct, in_order, scores

__all__ = ["RagContext", "RagPrompt", "Tokens", "check_ending"]

Source = Literal["passages", "truncated", "whole"]


@runtime_checkable
class Tokens(Protocol):
    """What is asked of a tokenizer; those of transformers have it."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, special ones included."""
        ...


@dataclass(frozen=True)
class RagPrompt:
    """What the drafter reads.

    Attributes:
        ids: `[R]` int64.
        source: `passages`; `truncated` when nothing was found, so that it holds both ends of the document; or `whole`
            when it would not be shorter than the long prompt, so that drafting by it is pointless.
        scores: similarity of the passages in it, in document order.
        tail: tokens at the end that are those of the long prompt.
    """

    ids: Tensor
    source: Source
    scores: tuple[float, ...] = ()
    tail: int = 0


@dataclass(frozen=True)
class RagContext:
    """Makes short prompts: cut the document into chunks, find the best, put them back in order, keep both ends.

    Call it with a long prompt. The document is what lies between the first `head` tokens and the tail; the question is
    the text of the tail.

    Args:
        tokenizer: has `encode` and `decode`; None searches among the token ids themselves and cuts anywhere.
        tail: last tokens of the prompt, the question and what a chat template puts behind it; they stay.
        marker: a text instead, such as `"Question:"`; the tail begins where it occurs last.
        head: first tokens, such as a system prompt; they stay.
        chunk: tokens of one chunk at most.
        k: chunks at most.
        floor: least similarity, as `rag_search.scores` counts it.
        index: see there.
        embedder: see there.
        retriever: asked instead of an index: one of LangChain or LlamaIndex, or a function; see `asked_of`. Needs a
            tokenizer. `floor` holds for passages that come with a score.
        joiner: text between chunks.

    Raises:
        ConfigError: a number is out of range, or a tokenizer is missing.

    Source: Chen et al. 2025 (RAPID), arXiv 2502.20330: 512 tokens, 16 chunks, a floor of 0.3 on the cosine, document
        order. Differs: works on the prompt itself unless a retriever is given.
    """

    tokenizer: Any = None
    tail: int = 64
    marker: str | None = None
    head: int = 0
    chunk: int = 512
    k: int = 16
    floor: float = 0.3
    index: str | None = None
    embedder: Any = field(default=None, compare=False)
    retriever: Any = field(default=None, compare=False)
    joiner: str = "\n\n"

    def __post_init__(self) -> None:
        """Check what would else show only with the first prompt."""
        if self.tail < 1 or self.head < 0 or self.chunk < 1 or self.k < 1:
            given = f"tail={self.tail}, head={self.head}, chunk={self.chunk}, k={self.k}"
            raise ConfigError(given, accepted="head 0 or more, the others 1 or more")
        if self.tokenizer is None and (self.marker is not None or self.retriever is not None):
            raise ConfigError("marker and retriever are about text", do="give tokenizer=")
        if self.retriever is None:
            scores("", [], self.index, self.embedder)  # an index that cannot work is refused here
        else:
            asked_of(self.retriever)

    def __call__(self, ids: Tensor) -> RagPrompt:
        """The short prompt for a long one.

        Args:
            ids: `[L]` int64 without padding.

        Raises:
            ConfigError: the marker does not occur, or head and tail leave no document.
        """
        long = ints(ids)
        start, end = self._document(long)
        if end <= start:
            return RagPrompt(ids, "whole", tail=len(long))
        found = self._retrieved(long, start, end) if self.retriever is not None else self._searched(long, start, end)
        source: Source = "passages" if found else "truncated"
        middle = [token for _, piece in found for token in piece] if found else self._ends(long[start:end])
        short = [*long[:start], *middle, *long[end:]]
        if len(short) >= len(long):
            return RagPrompt(ids, "whole", tail=len(long))
        told = tuple(score for score, _ in found if score is not None)
        return RagPrompt(torch.tensor(short, dtype=torch.int64, device=ids.device), source, told, len(long) - end)

    def _document(self, long: list[int]) -> tuple[int, int]:
        """Where the document lies in the prompt; empty when head and tail are all."""
        if self.marker is None:
            return self.head, len(long) - self.tail
        atoms = self._atoms(long)
        at = "".join(atoms).rfind(self.marker)
        if at < 0:
            raise ConfigError(f"marker {self.marker!r} does not occur in the prompt", do="give tail= in tokens")
        seen = 0
        for i, atom in enumerate(atoms):
            seen += len(atom)
            if seen > at:
                return self.head, i
        return self.head, len(long)

    def _searched(self, long: list[int], start: int, end: int) -> list[tuple[float | None, list[int]]]:
        document = long[start:end]
        spans = split(self._atoms(document), self.chunk)
        texts = [self._text(document[a:b]) for a, b in spans]
        alike = scores(self._text(long[end:]), texts, self.index, self.embedder)
        able = [i for i in distinct(texts) if alike[i] >= self.floor and alike[i] > 0]
        best = sorted(sorted(able, key=lambda i: (-alike[i], i))[: self.k])
        return self._joined([(alike[i], document[spans[i][0] : spans[i][1]]) for i in best])

    def _retrieved(self, long: list[int], start: int, end: int) -> list[tuple[float | None, list[int]]]:
        found = asked_of(self.retriever)(self._text(long[end:]))
        able = [p for p in found if p.text.strip() and (p.score is None or p.score >= self.floor)]
        best = [able[i] for i in distinct([p.text for p in able])][: self.k]
        ordered = in_order(best, self._text(long[start:end]))
        return self._joined([(p.score, _encode(self.tokenizer, p.text)) for p in ordered])

    def _joined(self, pieces: list[tuple[float | None, list[int]]]) -> list[tuple[float | None, list[int]]]:
        """Blank lines behind every piece, so that none runs into the next or into the question."""
        if self.tokenizer is None or not self.joiner:
            return pieces
        between = _encode(self.tokenizer, self.joiner)
        return [(score, [*piece, *between]) for score, piece in pieces]

    def _ends(self, document: list[int]) -> list[int]:
        """Both ends of a document in which nothing was found, as many tokens as the chunks would have had."""
        room = min(self.chunk * self.k, len(document))
        if room == len(document):
            return document
        first = (room + 1) // 2
        return document[:first] + document[len(document) - (room - first) :]

    def _text(self, ids: list[int]) -> str:
        return " ".join(map(str, ids)) if self.tokenizer is None else self.tokenizer.decode(ids)

    def _atoms(self, ids: list[int]) -> list[str]:
        """The text of each token by itself; good enough to see where a sentence ends."""
        if self.tokenizer is None:
            return [""] * len(ids)
        known = {token: self._atom(token) for token in set(ids)}
        return [known[token] for token in ids]

    def _atom(self, token: int) -> str:
        text: str = self.tokenizer.decode([token])
        spelled = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        blank = callable(spelled) and str(spelled(token)).startswith("\u2581")  # decoding alone drops this blank
        return f" {text.lstrip()}" if blank else text


def check_ending(long: Tensor, short: Tensor, least: int) -> int:
    """How many last tokens two prompts share.

    Args:
        long: `[L]` int64, the target's.
        short: `[R]` int64, the drafter's.
        least: fewer are refused; of a short prompt of fewer tokens, all.

    Raises:
        ConfigError: they share fewer: the drafter would go on from another place than the target.
    """
    n = min(len(long), len(short))
    same = (long[len(long) - n :] == short[len(short) - n :]).flip(0).long().cumprod(0)
    shared = int(same.sum())
    if shared < min(least, n):
        raise ConfigError(
            f"the drafter's prompt and the target's share their last {shared} tokens",
            accepted=f"at least {min(least, n)}",
            do="end both with the same question and the same chat template",
        )
    return shared


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
