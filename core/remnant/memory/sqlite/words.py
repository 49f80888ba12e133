"""Search by words in SQLite: FTS5 says which documents hold a word, and BM25 is added up here.

FTS5 ranks a match by looking its document up, which costs tens of times what finding it costs. So the postings of
each word that is asked for are read once, kept within a number of bytes, and added up over whole lists: the ranking
is that of `bm25()` over all documents, not an estimate. How rare a word is and how long documents are counts within
the scope, or the place that is searched: what others wrote into the file changes nothing. What is kept follows the
file: documents that changed are counted one by one until there are many, then everything is read anew.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from remnant.index.cache import ByteCache
from remnant.index.postings import Fresh, Part, Postings, ranked
from remnant.memory.sqlite.tokens import Tokens

MOST_BYTES = 128 << 20
"""Memory that the postings of one file may take, and its scopes as much again; the ones used longest ago go first."""

MOST_FRESH = 1000
"""Changed documents that are counted one by one."""

_STAMP = "SELECT (SELECT coalesce(sum(epoch), 0) FROM epochs), (SELECT coalesce(max(number), 0) FROM changes)"
_CHANGED = """SELECT DISTINCT r.number, r.id, r.scope, r.place, r.status, r.tenant, r.words FROM changes c
              JOIN versions v ON v.scope = c.scope AND v.change = c.number
              JOIN records r ON r.scope = v.scope AND r.id = v.id WHERE c.number > ? LIMIT ?"""
_LENGTHS = """SELECT r.number, r.id, d.sz FROM records r JOIN word_index_docsize d ON d.id = r.number
              WHERE r.scope = ?1 AND r.status = 'active'
              AND (?2 = '' OR (r.place <> '' AND (r.place = ?2 OR (r.place > ?2 || '/' AND r.place < ?2 || '0'))))"""

Row = tuple[str, float]


@dataclass(frozen=True)
class _Document:
    """A document that changed, as it is now; without counts it is gone."""

    id: str
    scope: str
    place: str
    counts: Counter[str] | None
    length: int

    def lies_in(self, scope: str, place: str) -> bool:
        inside = not place or self.place == place or self.place.startswith(f"{place}/")
        return self.counts is not None and self.scope == scope and inside


class _Part(Part):
    """The documents of a scope, or of a place in it, with their ids."""

    def __init__(self, rows: Sequence[tuple[int, str, bytes]]) -> None:
        super().__init__({number: _length(sizes) for number, _, sizes in rows})
        self.ids = {number: id for number, id, _ in rows}

    @property
    def nbytes(self) -> int:
        return super().nbytes + 150 * len(self.ids)


class WordSearch:
    """Search in the word index of one file, by any number of threads.

    Args:
        most_bytes: see `MOST_BYTES`.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        """Know nothing yet."""
        self._lock = threading.Lock()
        self._tokens: Tokens | None = None
        self._stamp = (-1, -1)
        self._postings: ByteCache[str, Postings] = ByteCache(most_bytes)
        self._parts: ByteCache[tuple[str, str], _Part] = ByteCache(most_bytes)
        self._fresh: dict[int, _Document] = {}

    def found(self, c: sqlite3.Connection, scope: str, terms: Sequence[str], limit: int, place: str = "") -> list[Row]:
        """The best matches with their BM25, best first.

        Args:
            c: in a transaction that has read nothing yet, so that it sees no older state than the one before it.
            scope: whose records.
            terms: as `remnant.index.words.terms` gives them.
            limit: matches at most.
            place: only records at this place of the scope and below.
        """
        with self._lock:
            if self._tokens is None:
                self._tokens = Tokens()
            self._follow(c, self._tokens)
            part = self._part(c, scope, place)
            words = {word: self._of(c, word) for word in self._tokens.of(terms)}
            inside = {n: d.counts for n, d in self._fresh.items() if d.counts is not None and d.lies_in(scope, place)}
            best = ranked(part, words, limit, Fresh(self._fresh, inside))
            rows = [(part.ids[number], score) for number, score in best]
        return sorted(rows, key=lambda row: (-row[1], row[0]))

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._clear((-1, -1))
            if self._tokens is not None:
                self._tokens.close()
            self._tokens = None

    def _follow(self, c: sqlite3.Connection, tokens: Tokens) -> None:
        """Take in what changed since the last search."""
        stamp: tuple[int, int] = c.execute(_STAMP).fetchone()
        if stamp == self._stamp:
            return
        if stamp[0] != self._stamp[0]:
            self._clear(stamp)
            return
        rows = c.execute(_CHANGED, (self._stamp[1], MOST_FRESH + 1)).fetchall()
        if len(rows) > MOST_FRESH:
            self._clear(stamp)
            return
        counted = tokens.count([words if status == "active" else "" for *_, status, _, words in rows])
        for (number, id, scope, place, status, tenant, _), counts in zip(rows, counted, strict=True):
            length = sum(counts.values()) + tenant.count(" ") + 1
            self._set(number, _Document(id, scope, place, counts if status == "active" else None, length))
        self._stamp = stamp
        if len(self._fresh) > MOST_FRESH:
            self._fresh.clear()
            self._postings.clear()
            for _, part in self._parts:
                part.renew()

    def _set(self, number: int, document: _Document) -> None:
        self._fresh[number] = document
        for (scope, place), part in self._parts:
            if document.lies_in(scope, place) or number in part.lengths:
                part.set(number, document.length if document.lies_in(scope, place) else None)
                part.ids[number] = document.id

    def _clear(self, stamp: tuple[int, int]) -> None:
        self._postings.clear()
        self._parts.clear()
        self._fresh.clear()
        self._stamp = stamp

    def _part(self, c: sqlite3.Connection, scope: str, place: str) -> _Part:
        held = self._parts.get((scope, place))
        if held is None:
            held = _Part(c.execute(_LENGTHS, (scope, place)).fetchall())
        return self._parts.put((scope, place), held)

    def _of(self, c: sqlite3.Connection, word: str) -> Postings:
        """The postings of a word. A scope's own word, in the other column, finds nothing that is not in the scope."""
        held = self._postings.get(word)
        if held is None:
            sql = "SELECT group_concat(doc) FROM temp.word_occurrences WHERE term = ?"
            text: str | None = c.execute(sql, (word,)).fetchone()[0]
            held = self._postings.put(word, Postings.read(text or ""))
        return held


@cache
def _length(sizes: bytes) -> int:
    """The words of a document: the sum of the numbers of its columns, as FTS5 writes them down.

    Source: SQLite's documentation of FTS5, appendix on the tables behind it: big-endian groups of seven bits.
    """
    total = number = 0
    for byte in sizes:
        number = number << 7 | byte & 127
        if byte < 128:
            total, number = total + number, 0
    return total
