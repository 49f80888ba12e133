"""What text can be foreseen without a network: unigram and trigram language models over the testbed's tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NGram"]

Ids = NDArray[np.int64]
Probs = NDArray[np.float64]


@dataclass(frozen=True)
class _Level:
    """Counts of one order: what follows a context.

    Attributes:
        keys: sorted codes of the n-grams seen.
        counts: how often, or after how many different tokens, each occurs.
        contexts: sorted codes of the contexts seen.
        totals: sum of the counts after each context.
        kinds: different tokens after each context.
        discount: taken from every count and given to the lower order.
    """

    keys: Ids
    counts: Ids
    contexts: Ids
    totals: Ids
    kinds: Ids
    discount: float


class NGram:
    """Interpolated Kneser-Ney with absolute discounting up to trigrams; the last resort is uniform.

    Example: NGram.fit(ids, vocab).trigram(history, tokens) -> probabilities
    """

    def __init__(self, vocab: int, unigrams: Ids, levels: tuple[_Level, _Level, _Level]) -> None:
        """Use `fit`."""
        self.vocab, self._unigrams, self._levels = vocab, unigrams, levels

    @classmethod
    def fit(cls, ids: Ids, vocab: int) -> NGram:
        """Count a stream `[N]` of token ids below `vocab`."""
        tri, counts = np.unique((ids[:-2] * vocab + ids[1:-1]) * vocab + ids[2:], return_counts=True)
        # Lower orders count in how many different places a token was seen, not how often.
        bi, bi_counts = np.unique(tri % vocab**2, return_counts=True)
        every_bi = np.unique(ids[:-1] * vocab + ids[1:])
        uni, uni_counts = np.unique(every_bi % vocab, return_counts=True)
        levels = (_level(uni, uni_counts, vocab), _level(bi, bi_counts, vocab), _level(tri, counts, vocab))
        return cls(vocab, np.bincount(ids, minlength=vocab), levels)

    def unigram(self, tokens: Ids) -> Probs:
        """Probability of each token by its frequency alone, one added to every count."""
        return (self._unigrams[tokens] + 1.0) / (self._unigrams.sum() + self.vocab)

    def trigram(self, history: Ids, tokens: Ids) -> Probs:
        """Probability of tokens.

        Args:
            history: `[N, 2]` the two tokens before each, oldest first.
            tokens: `[N]`.
        """
        codes = (np.zeros(len(tokens), dtype=np.int64), history[:, 1], history[:, 0] * self.vocab + history[:, 1])
        p = np.full(len(tokens), 1.0 / self.vocab)
        for level, context in zip(self._levels, codes, strict=True):
            p = self._interpolate(level, context, tokens, p)
        return p

    def _interpolate(self, level: _Level, context: Ids, tokens: Ids, lower: Probs) -> Probs:
        count = _lookup(level.keys, level.counts, context * self.vocab + tokens)
        total = _lookup(level.contexts, level.totals, context)
        kinds = _lookup(level.contexts, level.kinds, context)
        seen = total > 0
        own = np.maximum(count - level.discount, 0.0) / np.where(seen, total, 1)
        rest = np.where(seen, level.discount * kinds / np.where(seen, total, 1), 1.0)
        return own + rest * lower


def _level(keys: Ids, counts: Ids, vocab: int) -> _Level:
    contexts, first = np.unique(keys // vocab, return_index=True)
    totals = np.add.reduceat(counts, first)
    kinds = np.diff(np.append(first, len(keys)))
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    return _Level(keys, counts, contexts, totals, kinds, discount)


def _lookup(keys: Ids, values: Ids, wanted: Ids) -> Ids:
    """Values of the wanted keys, 0 for those that are not there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
