"""What a question finds in memory as it is, and as it was: one ranking, which can be asked about any record."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from remnant.index.hybrid import Scored, mix
from remnant.index.words import rank, terms
from remnant.memory.context import Context
from remnant.memory.record import Hit, Record

Where = Callable[[Record], bool]
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Limits:
    """What a recall may show besides being within the scope."""

    moment: float
    kinds: Collection[str] | None
    place: str
    where: Where | None = None

    def show(self, record: Record) -> bool:
        """Whether a record may be shown."""
        if record.status != "active" or (self.kinds is not None and record.kind not in self.kinds):
            return False
        shown = record.valid_at(self.moment) and record.lies_in(self.place)
        return shown and (self.where is None or self.where(record))


class Present:
    """Memory as it is, ranked by its indexes.

    Args:
        c: the memory.
        text: the question.
        limits: what may be shown.
        vector: the question's; None ranks by words only.
    """

    def __init__(self, c: Context, text: str, limits: Limits, vector: bytes | None) -> None:
        """See the class."""
        self._c, self._terms, self._limits, self._vector = c, terms(text), limits, vector
        self._words: dict[str, float] = {}
        self._cosines: dict[str, float] = {}
        self._range = 0.0, 0.0

    def best(self, count: int) -> list[Hit]:
        """See `Ranking`; looks further while too few of what it finds may be shown."""
        wanted, most = count, max(200, 4 * count)
        while True:
            ranked = self._ranked(wanted, most)
            hits = self._shown(ranked, count)
            if len(hits) >= count or len(ranked) < wanted or wanted > 64 * count:
                return hits
            wanted *= 4
            most = 4 * wanted

    def of(self, ids: Collection[str]) -> list[Hit]:
        """See `Ranking`."""
        if not ids:
            return []
        c, cosines = self._c, self._cosines
        if self._vector is not None and cosines:
            found = c.scans.search(c, self._vector, 1, list(ids))
            cosines = {**cosines, **found.of} if found else cosines
        scored = {item.id: item for item in mix(cosines, self._words, self._weight(), *self._range)}
        return self._shown([scored.get(id, Scored(id, 0.0, {})) for id in sorted(ids)], len(ids))

    def beside(self, id: str) -> list[Record]:
        """See `Ranking`."""
        c = self._c
        return [r for newest in (True, False) for r in c.store.page(c.scope, after=id, limit=1, newest=newest)]

    def holders(self, word: str, most: int) -> list[tuple[str, float]]:
        """See `Ranking`."""
        found = self._c.store.words(self._c.scope, [word], most + 1, self._limits.place)
        return found if len(found) <= most else []

    def _weight(self) -> float:
        return self._c.weight if self._cosines else 0.0

    def _ranked(self, count: int, most: int) -> list[Scored]:
        c, place = self._c, self._limits.place
        self._words = dict(c.store.words(c.scope, self._terms, most, place))
        if self._vector is not None:
            also = c.store.placed(c.scope, place) if place else list(self._words)
            found = c.scans.search(c, self._vector, count, also)
            if found is not None and place:
                # The whole place is ranked, and by itself: what is nearest elsewhere says nothing about it.
                self._cosines, cosines = dict(found.of), list(found.of.values()) or [0.0]
                self._range = min(cosines), max(cosines)
            elif found is not None:
                self._cosines, self._range = {**found.best, **found.of}, (found.low, found.high)
        return mix(self._cosines, self._words, self._weight(), *self._range)

    def _shown(self, ranked: Sequence[Scored], count: int) -> list[Hit]:
        hits: list[Hit] = []
        for start in range(0, len(ranked), max(1, count)):
            part = ranked[start : start + count]
            records = self._c.store.get(self._c.scope, [item.id for item in part])
            hits += _hits(part, {id: record for id, record in records.items() if self._limits.show(record)})
            if len(hits) >= count:
                break
        return hits[:count]


class Past:
    """Memory as it was after a change, ranked by words only: the indexes hold the present.

    Args:
        c: the memory.
        text: the question.
        limits: what may be shown.
        records: all of that time.
    """

    def __init__(self, c: Context, text: str, limits: Limits, records: Iterable[Record]) -> None:
        """See the class."""
        active = sorted((record for record in records if record.status == "active"), key=lambda record: record.id)
        self._active, self._at = active, {record.id: at for at, record in enumerate(active)}
        self._records = {record.id: record for record in active if limits.show(record)}
        self._texts = {id: c.strategy.index_text(record).words for id, record in self._records.items()}
        scored = mix({}, dict(rank(terms(text), self._texts)), 0.0, 0.0, 0.0)
        self._scored = {item.id: item for item in scored}
        self._found: dict[str, list[str]] | None = None

    def best(self, count: int) -> list[Hit]:
        """See `Ranking`."""
        return _hits(list(self._scored.values())[:count], self._records)

    def of(self, ids: Collection[str]) -> list[Hit]:
        """See `Ranking`."""
        return _hits([self._scored.get(id, Scored(id, 0.0, {})) for id in sorted(ids)], self._records)

    def beside(self, id: str) -> list[Record]:
        """See `Ranking`."""
        at = self._at[id]
        return [self._active[near] for near in (at - 1, at + 1) if 0 <= near < len(self._active)]

    def holders(self, word: str, most: int) -> list[tuple[str, float]]:
        """See `Ranking`; each record weighs the same."""
        if self._found is None:
            self._found = {}
            for id, text in self._texts.items():
                for found in dict.fromkeys(_WORD.findall(text.lower())):
                    self._found.setdefault(found, []).append(id)
        ids = self._found.get(word, [])
        return [(id, math.log(1 + len(self._texts) / len(ids))) for id in ids] if len(ids) <= most else []


def _hits(ranked: Iterable[Scored], records: Mapping[str, Record]) -> list[Hit]:
    return [Hit(i.id, records[i.id].content, i.score, records[i.id], i.parts) for i in ranked if i.id in records]
