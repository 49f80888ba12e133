"""Search by words in SQLite: few rows are ranked, because ranking a row costs far more than matching it.

`bm25` as an expression under SQLite's own sorter takes a fraction of the time of FTS5's `rank`. A document
must hold one of the rare words of a query to be ranked; it is then ranked by all of them. FTS5 gives words
that half of all documents hold no weight, so these are not even looked at.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from remnant.index.words import match_expression, rare_words
from remnant.memory.rows import tenant_word

MOST_RANKED = 1000
"""Documents that hold a rare word of a query, at most; what is rare follows from it."""

_MOST_KNOWN = 4096
_BEST = """SELECT r.id, -w.score FROM (SELECT rowid, bm25(word_index, 0.0, 1.0) AS score FROM word_index
           WHERE word_index MATCH ? ORDER BY score LIMIT ?) w JOIN records r ON r.number = w.rowid WHERE r.scope = ?"""
_NEWEST = """SELECT r.id, -w.score FROM (SELECT rowid, bm25(word_index, 0.0, 1.0) AS score FROM word_index
             WHERE word_index MATCH ? ORDER BY rowid DESC LIMIT ?) w JOIN records r ON r.number = w.rowid
             WHERE r.scope = ? ORDER BY 2 DESC LIMIT ?"""

Row = tuple[str, float]


class WordSearch:
    """Search in the word index of one file; remembers which words are everywhere in it."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._everywhere: dict[str, tuple[int, bool]] = {}

    def found(self, c: sqlite3.Connection, scope: str, terms: Sequence[str], limit: int, place: str = "") -> list[Row]:
        """The best matches with their BM25, best first.

        A file of at most `MOST_RANKED` records is ranked whole. In a larger one every document that holds
        one of the rare words is ranked; if these are fewer than `limit`, the newest documents with the next
        word follow. Without rare words all documents are ranked, which takes its time.
        """
        most = max(MOST_RANKED, 4 * limit)
        rows: int = c.execute("SELECT coalesce(max(number), 0) FROM records").fetchone()[0]
        within = _within(c, scope, place)
        if rows <= most:
            return _sorted(dict(c.execute(_BEST, (within + _any(terms), limit, scope)).fetchall()))
        counts = {word: _count(c, within + _any([word]), most + 1) for word in terms}
        rare = rare_words(counts, most)
        common = [word for word in terms if word not in rare]
        heavy = [word for word in common if not self._weightless(c, word, rows)]
        if not rare:
            match = within + _any(heavy or terms)
            return _sorted(dict(c.execute(_BEST, (match, limit, scope)).fetchall()))
        scores: dict[str, float] = dict(c.execute(_BEST, (within + _any(rare), limit, scope)).fetchall())
        if heavy:
            match = f"{within}{_any(rare)} AND {_any(heavy)}"
            scores |= dict(c.execute(_BEST, (match, limit, scope)).fetchall())
        if common and len(scores) < limit:
            word = min(common, key=counts.__getitem__)
            more = c.execute(_NEWEST, (within + _any([word]), most, scope, limit)).fetchall()
            scores = dict(more) | scores
        return _sorted(scores)[:limit]

    def _weightless(self, c: sqlite3.Connection, word: str, rows: int) -> bool:
        """Whether half of the file's documents hold a word; counted anew when the file grew by a tenth."""
        known = self._everywhere.get(word)
        if known is None or not known[0] <= rows <= 1.1 * known[0]:
            if len(self._everywhere) >= _MOST_KNOWN:
                self._everywhere.clear()
            half = rows // 2 + 1
            known = self._everywhere[word] = rows, _count(c, _any([word]), half) == half
        return known[1]


def _within(c: sqlite3.Connection, scope: str, place: str) -> str:
    """The word of the place or the scope, which all its documents hold; a file of one scope needs none, faster."""
    if place:
        return f'tenant : "{tenant_word(scope, place)}" AND '
    sql = "SELECT EXISTS (SELECT 1 FROM records WHERE scope < ?1) OR EXISTS (SELECT 1 FROM records WHERE scope > ?1)"
    return f'tenant : "{tenant_word(scope)}" AND ' if c.execute(sql, (scope,)).fetchone()[0] else ""


def _any(words: Sequence[str]) -> str:
    return f"words : ({match_expression(words)})"


def _count(c: sqlite3.Connection, match: str, most: int) -> int:
    """Matches, counted up to `most`; costs a fraction of ranking them."""
    sql = "SELECT count(*) FROM (SELECT 1 FROM word_index WHERE word_index MATCH ? LIMIT ?)"
    return c.execute(sql, (match, most)).fetchone()[0]


def _sorted(scores: dict[str, float]) -> list[Row]:
    return sorted(scores.items(), key=lambda row: (-row[1], row[0]))
