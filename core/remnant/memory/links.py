"""What ties a record to others and to a question: its sources, who said it, and the names in it. All pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from remnant.index.words import terms
from remnant.memory.record import Hit, Record

_WORD = re.compile(r"\w+")
_SPEAKER = re.compile(r"(?:.{0,40}?[|,\]-]\s*)?([^\W\d_][\w.'-]*(?: [^\W\d_][\w.'-]*){0,2}):\s")
_ENDS = ".!?:"
_SHORTEST, _BEST_OF_A_SOURCE = 3, 3


def sources(record: Record) -> frozenset[tuple[str, str]]:
    """What the record came from, as far as it has a name: an episode, a session, a document."""
    return frozenset((source.source_type, source.source_id) for source in record.provenance if source.source_id)


def said_by(record: Record, question: Collection[str]) -> bool:
    """Whether the question names who said what the record holds.

    Args:
        record: its sources' authors count, and a name with a colon that its text begins with.
        question: the question's terms.

    Example: said_by(Record("8 May | Ann Lee: I moved."), terms("Where did Ann move?")) -> True
    """
    found = _SPEAKER.match(record.content)
    authors = [source.author for source in record.provenance] + ([found[1]] if found else [])
    return any(first[0] in question for author in authors if (first := _WORD.findall(author.lower())))


def names(record: Record) -> list[str]:
    """The words of a record that are names by their looks: its keywords, and words with a capital inside a sentence.

    Example: names(Record("We met Ada Byron. She smiled.")) -> ["ada", "byron"]
    """
    found = [word for keyword in record.keywords for word in _WORD.findall(keyword)]
    for match in _WORD.finditer(record.content):
        before = record.content[: match.start()].rstrip()
        if match[0][0].isupper() and before and before[-1] not in _ENDS:
            found.append(match[0])
    return terms(" ".join(word for word in found if len(word) >= _SHORTEST)) if found else []


def source_gains(hits: Sequence[Hit]) -> dict[str, float]:
    """What each hit has from its source: the source's best scores, over three; of several sources the best.

    A source with many good hits lifts all of them, one with a single hit lifts it by a third of its score.
    """
    scores: dict[tuple[str, str], list[float]] = {}
    for hit in hits:
        for source in sources(hit.record):
            scores.setdefault(source, []).append(hit.score)
    means = {source: _mean(found) for source, found in scores.items()}
    return {hit.id: max(found) for hit in hits if (found := [means[source] for source in sources(hit.record)])}


def _mean(scores: Iterable[float]) -> float:
    return sum(sorted(scores, reverse=True)[:_BEST_OF_A_SOURCE]) / _BEST_OF_A_SOURCE
