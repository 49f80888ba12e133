"""BM25 over postings: for each word the documents that hold it, and how often.

A ranking adds up one number per posting and leaves none out, so it is exact. Where there are many, numpy adds them
up, if it is installed; else plain Python does.

Source: Robertson and Zaragoza 2009, with the constants of FTS5 and its inverse document frequency, kept above zero.
"""

from __future__ import annotations

import math
import sys
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from remnant.index.words import K1, B

MANY, MORE = 500, 5000
"""Postings of one ranking from which numpy is faster, and from which it is worth its import."""


Scored = tuple[int, float]


@dataclass(frozen=True)
class Postings:
    """The documents of one word.

    Args:
        docs: their numbers, ascending, `I`.
        counts: how often each holds the word, `H`; 65,535 at most.
    """

    docs: array[int]
    counts: array[int]

    @classmethod
    def of(cls, occurrences: Iterable[int]) -> Postings:
        """From the document of each occurrence, ascending.

        Example: Postings.of([3, 3, 8]).counts -> array("H", [2, 1])
        """
        counted = Counter(occurrences)
        try:
            return cls(array("I", counted), array("H", counted.values()))
        except OverflowError:
            return cls(array("I", counted), array("H", [min(count, 65535) for count in counted.values()]))

    @classmethod
    def read(cls, text: str) -> Postings:
        """From the document of each occurrence as decimal numbers with commas between, ascending.

        Example: Postings.read("3,3,8").docs -> array("I", [3, 8])
        """
        np = _numpy(len(text) // 6)
        if np is None:
            return cls.of(map(int, text.split(",")) if text else ())
        docs = np.fromstring(text, dtype=np.uint32, sep=",")
        first = np.flatnonzero(np.diff(docs, prepend=docs[:1] - 1))
        counts = np.minimum(np.diff(first, append=len(docs)), 65535).astype(np.uint16)
        return cls(array("I", docs[first].tobytes()), array("H", counts.tobytes()))

    @property
    def nbytes(self) -> int:
        """Bytes in memory, about."""
        return 6 * len(self.docs) + 300


class Part:
    """The documents that are ranked together, such as those of one scope.

    Args:
        lengths: number of a document -> how many words it has, 1 or more.
    """

    def __init__(self, lengths: dict[int, int]) -> None:
        """See the class."""
        self.lengths = lengths
        self.total, self._last = sum(lengths.values()), max(lengths, default=0)
        self._arrays: tuple[Any, Any, Any] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in memory, about; the arrays for numpy count whether there are any yet or not."""
        return 130 * len(self.lengths) + 8 * self._last + 500

    def set(self, number: int, length: int | None) -> None:
        """A document has another length, is new, or with None no longer belongs here; it counts as fresh from now."""
        self.total -= self.lengths.pop(number, 0)
        if length is not None:
            self.lengths[number] = length
            self.total += length
            self._last = max(self._last, number)

    def renew(self) -> None:
        """Nothing is fresh any longer: the postings are read anew."""
        self._arrays = None

    def arrays(self, np: Any) -> tuple[Any, Any, Any]:
        """Row of each number, -1 for those not here; number and length of each row. Fresh ones may be wrong."""
        if self._arrays is None:
            pairs = np.array(sorted(self.lengths.items()), dtype=np.int64).reshape(-1, 2)
            row = np.full(int(pairs[-1, 0]) + 1, -1, dtype=np.intp)
            row[pairs[:, 0]] = np.arange(len(pairs))
            self._arrays = row, pairs[:, 0].copy(), pairs[:, 1].astype(np.float64)
        return self._arrays


def _no_counts() -> Mapping[int, Mapping[str, int]]:
    return {}


@dataclass(frozen=True)
class Fresh:
    """Documents that changed after the postings were read, which are therefore wrong about them.

    Args:
        touched: their numbers, whether they are still there or not.
        counts: number -> word -> how often it holds it, of those that are in the part.
    """

    touched: Collection[int] = frozenset()
    counts: Mapping[int, Mapping[str, int]] = field(default_factory=_no_counts)


NOTHING_FRESH = Fresh()


def ranked(part: Part, words: Mapping[str, Postings], limit: int, fresh: Fresh = NOTHING_FRESH) -> list[Scored]:
    """The documents of a part that hold one of the words, best first, ties by number.

    Args:
        part: what is ranked; how rare a word is and how long documents are counts within it.
        words: the words of the query with their postings, of this part or of more.
        limit: documents at most.
        fresh: what the postings do not know yet.

    Returns:
        (number, BM25); greater is better.
    """
    if not part.lengths or not words or limit < 1:
        return []
    formula = _Formula(part, words, fresh)
    np = _numpy(sum(len(found.docs) for found in words.values()))
    scores = _by_python(formula, words) if np is None else _by_numpy(np, formula, words, limit)
    for number, counts in fresh.counts.items():
        held = [(word, counts[word]) for word in words if word in counts]
        if held:
            scores[number] = sum(formula.score(word, count, part.lengths[number]) for word, count in held)
    return sorted(scores.items(), key=_best_first)[:limit]


class _Formula:
    """BM25 within one part; how much a word weighs is known once its documents in the part are counted."""

    def __init__(self, part: Part, words: Iterable[str], fresh: Fresh) -> None:
        self.part, self.touched = part, fresh.touched
        self.flat, self.slope = K1 * (1 - B), K1 * B * len(part.lengths) / part.total
        self._more = {word: sum(word in counts for counts in fresh.counts.values()) for word in words}
        self._weights: dict[str, float] = {}

    def weigh(self, word: str, documents: int) -> float:
        """The weight of a word that so many documents hold besides the fresh ones."""
        held = documents + self._more[word]
        idf = max(1e-6, math.log((len(self.part.lengths) - held + 0.5) / (held + 0.5)))
        self._weights[word] = idf * (K1 + 1)
        return self._weights[word]

    def score(self, word: str, count: int, length: int) -> float:
        return self._weights[word] * count / (count + self.flat + self.slope * length)


def _by_python(formula: _Formula, words: Mapping[str, Postings]) -> dict[int, float]:
    scores: dict[int, float] = {}
    for word, postings in words.items():
        hits = _hits(formula, postings)
        weight, flat, slope = formula.weigh(word, len(hits)), formula.flat, formula.slope
        for number, count, length in hits:
            scores[number] = scores.get(number, 0.0) + weight * count / (count + flat + slope * length)
    return scores


def _hits(formula: _Formula, postings: Postings) -> list[tuple[int, int, int]]:
    """(number, count, length) of the documents of the part that hold a word, the fresh ones left out."""
    lengths, touched, docs = formula.part.lengths, formula.touched, postings.docs
    if 8 * len(lengths) < len(docs):
        places = ((number, bisect_left(docs, number)) for number in lengths)
        pairs = [(n, postings.counts[at]) for n, at in places if at < len(docs) and docs[at] == n]
    else:
        pairs = [(n, count) for n, count in zip(docs, postings.counts, strict=True) if n in lengths]
    return [(n, count, lengths[n]) for n, count in pairs if n not in touched]


def _by_numpy(np: Any, formula: _Formula, words: Mapping[str, Postings], limit: int) -> dict[int, float]:
    """The same; only the best ones, the lowest numbers of those that tie for the last place."""
    row, numbers, lengths = formula.part.arrays(np)
    if formula.touched:
        row = row.copy()
        row[[number for number in formula.touched if number < len(row)]] = -1
    norm = formula.flat + formula.slope * lengths
    places: list[Any] = []
    parts: list[Any] = []
    for word, postings in words.items():
        docs = np.frombuffer(postings.docs, dtype=np.uint32)
        docs = docs[: np.searchsorted(docs, len(row))]
        rows, counts = row.take(docs, mode="clip"), np.frombuffer(postings.counts, dtype=np.uint16)[: len(docs)]
        if len(rows) and rows.min() < 0:
            here = rows >= 0
            rows, counts = rows[here], counts[here]
        weight, often = formula.weigh(word, len(rows)), counts.astype(np.float64)
        places.append(rows)
        parts.append(weight * often / (often + norm.take(rows, mode="clip")))
    scores = np.bincount(np.concatenate(places), weights=np.concatenate(parts), minlength=len(numbers))
    rows = scores.nonzero()[0]
    found = scores[rows]
    if len(rows) > limit:
        last = np.partition(found, len(rows) - limit)[len(rows) - limit]
        rows = np.concatenate((rows[found > last], rows[found == last][: limit - int((found > last).sum())]))
    return dict(zip(numbers[rows].tolist(), scores[rows].tolist(), strict=True))


def _best_first(scored: Scored) -> tuple[float, int]:
    return -scored[1], scored[0]


def _numpy(postings: int) -> Any:
    """numpy, where it is worth using."""
    if postings <= (MANY if "numpy" in sys.modules else MORE):
        return None
    try:
        import numpy
    except ImportError:
        return None
    return numpy
