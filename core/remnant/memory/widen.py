"""Widening: what a question finds lends part of its score to what it is linked with, one way for every kind of link.

A record that answers a question in part is seldom alone: the answer follows in the next turn, the same session
goes on about it, or another record tells more of a name in it. Each link passes on a share of a hit's score; what
is then ranked high enough is recalled, within the same number of hits and tokens. Nothing is drawn at random and no
model is asked, unless for the parts of a question.

Source: the wish is the reference's ("retrieve turns, then widen to neighbours when the budget allows"); the way is
ours, a single step of spreading activation (Collins and Loftus 1975). Shares were set on tuning splits of
`benchmarks/retrieval.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

from remnant.errors import ConfigError
from remnant.index.words import terms
from remnant.memory.links import names, said_by, source_gains, sources
from remnant.memory.record import Hit, Record

NEAR_OF = 10
"""Best hits whose neighbours are looked at."""

SEEDS = 3
"""Best hits whose names are followed."""

RARE = 20
"""Records that may hold a name for it to link them."""

MOST_NAMES, MOST_ASKED = 8, 32
"""Names followed from one hit, the rarest first, and names whose rarity is looked up."""


@dataclass(frozen=True)
class Widen:
    """Shares of a score that links pass on; 0 turns a link off. A score of the plain ranking is at most 1.

    `author` and `source` only order what was found; the others bring in records besides.

    Args:
        author: for a record said by somebody whom the question names.
        source: of the best three hits of the same source, such as a session, to each hit of it.
        near: of a hit to the records right before and after it, of the same source.
        names: of the best hits to records that share rare names with them: the second hop.
        parts: of what a part of the question finds; the parts are told by the memory's model, or by rules.

    Raises:
        ConfigError: a share below 0.
    """

    author: float = 0.15
    source: float = 0.3
    near: float = 0.0
    names: float = 0.0
    parts: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what would rank the best last."""
        for item in fields(self):
            if not getattr(self, item.name) >= 0.0:
                raise ConfigError(f"widen {item.name} {getattr(self, item.name)}", accepted="0 or more")


NARROW = Widen()
"""What recall does unless asked: orders what it found by who said it and where."""

PLAIN = Widen(author=0.0, source=0.0)
"""Words and meaning alone."""

WIDE = Widen(near=0.3, names=0.3)
"""What `widen=True` means."""


class Ranking(Protocol):
    """One question to one state of memory."""

    def best(self, count: int) -> list[Hit]:
        """The best records, best first."""
        ...

    def of(self, ids: Collection[str]) -> list[Hit]:
        """These records with the scores they have, even 0; those that may not be shown are left out."""
        ...

    def beside(self, id: str) -> list[Record]:
        """The active records right before and after a record, in order of id."""
        ...

    def holders(self, word: str, most: int) -> list[tuple[str, float]]:
        """(id, weight) of the records with a word; nothing if they are more than `most`."""
        ...


def widening(given: bool | Widen | None, usual: Widen) -> Widen:
    """What is meant by `widen=`: None is the memory's own setting."""
    if isinstance(given, Widen):
        return given
    return usual if given is None else WIDE if given else NARROW


def widened(ranking: Ranking, question: str, count: int, w: Widen, parts: Sequence[Ranking] = ()) -> list[Hit]:
    """The best for a question and what they are linked with, best first, ties by id.

    Args:
        ranking: for the question.
        question: its text.
        count: hits at most.
        w: the shares.
        parts: rankings for the parts of the question.
    """
    if w == PLAIN:
        return ranking.best(count)
    asked = frozenset(terms(question))
    pool = {hit.id: hit for hit in _said(ranking.best(count), asked, w.author)}
    top = sorted(pool.values(), key=_order)
    gains = _sum(
        _near(ranking, top[:NEAR_OF], w.near) if w.near else {},
        _named(ranking, top[:SEEDS], asked, w.names) if w.names else {},
        _best_of(parts, count, w.parts) if w.parts else {},
    )
    for hit in _said(ranking.of(gains.keys() - pool.keys()), asked, w.author):
        pool[hit.id] = hit
    gains = _sum(gains, {id: w.source * gain for id, gain in source_gains(list(pool.values())).items()})
    return sorted((_lifted(hit, gains.get(hit.id, 0.0)) for hit in pool.values()), key=_order)[:count]


def _said(hits: Sequence[Hit], asked: Collection[str], share: float) -> list[Hit]:
    return [_lifted(hit, share) if share and said_by(hit.record, asked) else hit for hit in hits]


def _near(ranking: Ranking, hits: Sequence[Hit], share: float) -> dict[str, float]:
    gains: dict[str, float] = {}
    for hit in hits:
        own = sources(hit.record)
        for record in ranking.beside(hit.id) if own else ():
            if own & sources(record):
                gains[record.id] = gains.get(record.id, 0.0) + share * hit.score
    return gains


def _named(ranking: Ranking, seeds: Sequence[Hit], asked: Collection[str], share: float) -> dict[str, float]:
    gains: dict[str, float] = {}
    for seed in seeds:
        links = _links(ranking, seed, asked)
        strongest = max(links.values(), default=0.0) or 1.0
        for id, strength in links.items():
            gains[id] = max(gains.get(id, 0.0), share * (strength / strongest) * seed.score / (seeds[0].score or 1.0))
    return gains


def _links(ranking: Ranking, seed: Hit, asked: Collection[str]) -> dict[str, float]:
    """How strongly other records share rare names with one; names that the question has count no more."""
    known = [name for name in names(seed.record) if name not in asked][:MOST_ASKED]
    found = [holders for name in known if len(holders := ranking.holders(name, RARE)) > 1]
    links = _sum(*(dict(holders) for holders in sorted(found, key=len)[:MOST_NAMES]))
    links.pop(seed.id, None)
    return links


def _best_of(parts: Sequence[Ranking], count: int, share: float) -> dict[str, float]:
    gains: dict[str, float] = {}
    for part in parts:
        for hit in part.best(count):
            gains[hit.id] = max(gains.get(hit.id, 0.0), share * hit.score)
    return gains


def _lifted(hit: Hit, gain: float) -> Hit:
    if not gain:
        return hit
    parts = {**hit.parts, "links": hit.parts.get("links", 0.0) + gain}
    return replace(hit, score=hit.score + gain, parts=parts)


def _sum(*gains: Mapping[str, float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for some in gains:
        for id, gain in some.items():
            total[id] = total.get(id, 0.0) + gain
    return total


def _order(hit: Hit) -> tuple[float, str]:
    return -hit.score, hit.id
