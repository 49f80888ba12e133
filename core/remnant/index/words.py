"""Words: from free text to the terms of a word index, and BM25 where there is no index."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

K1, B = 1.2, 0.75
"""Saturation and length normalisation of BM25, as in FTS5."""

MOST_TERMS = 64
"""Terms of one query; what comes after these is cut."""

_WORD = re.compile(r"\w+")
_WIDE = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
_HALF = re.compile(r"[\ud800-\udfff]")
_STOP = frozenset(
    _WORD.findall("""
    a about after all also am an and any are as at be because been before being but by can could did do does doing
    for from had has have having he her here hers him his how i if in into is it its just me more most my no nor not of
    off on once only or other our out over own s same she should so some such t than that the their them then there
    these they this those through to too under until up very was we were what when where which while who whom why will
    with would you your yours""")
)


def spread(text: str) -> str:
    """Put blanks around the characters of scripts that write none, so that each is a word.

    Half a surrogate pair, which no index can hold, becomes a blank.
    """
    return _WIDE.sub(r" \1 ", _HALF.sub(" ", text))


def terms(text: str) -> list[str]:
    """The words that a query asks for: lower case, once each, stop words dropped unless nothing else is left.

    Example: terms("What is the C++ of it?") -> ["c"]
    """
    words = list(dict.fromkeys(word.lower() for word in _WORD.findall(spread(text)) if word.strip("_")))
    return ([word for word in words if word not in _STOP] or words)[:MOST_TERMS]


def match_expression(words: Iterable[str]) -> str:
    """The terms as an FTS5 expression: each quoted, joined with OR; text never reaches MATCH bare.

    Example: match_expression(["tea", "milk"]) -> '"tea" OR "milk"'
    """
    return " OR ".join('"' + word.replace('"', '""') + '"' for word in words)


def rank(query: Sequence[str], documents: Mapping[str, str]) -> list[tuple[str, float]]:
    """BM25 of documents that hold one of the terms, best first, ties by id.

    Args:
        query: terms, as `terms` gives them.
        documents: id -> text.

    Source: Robertson and Zaragoza 2009, with the inverse document frequency kept above zero as
    FTS5 does. Differs: words are not stemmed.
    """
    counts = {id: Counter(word.lower() for word in _WORD.findall(spread(text))) for id, text in documents.items()}
    mean = sum(sum(words.values()) for words in counts.values()) / max(1, len(counts))
    scores: dict[str, float] = {}
    for word in dict.fromkeys(query):
        holders = [id for id, words in counts.items() if word in words]
        idf = max(1e-6, math.log((len(counts) - len(holders) + 0.5) / (len(holders) + 0.5)))
        for id in holders:
            often, length = counts[id][word], sum(counts[id].values())
            scores[id] = scores.get(id, 0.0) + idf * often * (K1 + 1) / (often + K1 * (1 - B + B * length / mean))
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def rare_words(counts: dict[str, int], most: int) -> list[str]:
    """The rarest words, while their documents are `most` at most; none if no document holds one of these."""
    rare: list[str] = []
    total = 0
    for word in sorted(counts, key=counts.__getitem__):
        total += counts[word]
        if total > most:
            break
        rare.append(word)
    return rare if any(counts[word] for word in rare) else []
