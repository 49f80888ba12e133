"""Search by words on a server: a GIN index finds the documents, BM25 is counted over few of them.

PostgreSQL's own ranks know neither how rare a word is nor how long documents are on average, so BM25 is
counted from the `tsvector` of each document, with the constants of FTS5, within the scope or the place that is
searched. In a scope of more than `MOST_RANKED` records a document must hold one of the rare words of a query to
be ranked, and words that half of the documents hold have no weight. What else differs from the SQLite store:
words are stemmed by Snowball's English stemmer instead of Porter's; a word counts at most 256 times per document;
of one record the first 256 KiB of words are searched; the parts of `snake_case` need not stand together.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from remnant.index.words import K1, B, rare_words, spread
from remnant.memory.postgres.schema import Server
from remnant.memory.rows import tenant_word

MOST_RANKED = 1000
"""Documents that hold a rare word of a query, at most; what is rare follows from it."""

LONGEST: Final = 1 << 18
"""Characters of one document's words that are indexed: a `tsvector` holds no more than 1 MiB."""

_MOST_KNOWN: Final = 4096
_WORD: Final = re.compile(r"[^\W_]+")
_STEMS: Final = """SELECT array(SELECT lexeme FROM unnest(to_tsvector('words', q.word)))
                   FROM unnest(%s::text[]) WITH ORDINALITY AS q(word, place) ORDER BY place"""
# The scope is compared in a way that no other index answers: the word index has found it by the scope's word.
_COUNTS: Final = """SELECT (SELECT count(*) FROM (SELECT FROM records r
  WHERE r.terms @@ q.match::tsquery AND r.scope IS NOT DISTINCT FROM %(scope)s LIMIT %(most)s) found)
  FROM unnest(%(matches)s::text[]) WITH ORDINALITY AS q(match, place) ORDER BY place"""
_BEST: Final = """WITH hits AS MATERIALIZED (SELECT r.id, r.length, r.terms FROM records r
    WHERE r.terms @@ %(match)s::text::tsquery AND r.scope IS NOT DISTINCT FROM %(scope)s
    ORDER BY r.number DESC LIMIT %(most)s),
  found AS (SELECT h.id, h.length, unnest(h.terms) AS word FROM hits h),
  counts AS (SELECT id, length, (word).lexeme AS stem, cardinality((word).positions) AS often FROM found)
  SELECT f.id, sum(q.weight * f.often / (f.often + %(flat)s + %(slope)s * f.length)) AS score
  FROM counts f JOIN unnest(%(stems)s::text[], %(weights)s::float8[]) AS q(stem, weight) ON q.stem = f.stem
  GROUP BY f.id ORDER BY score DESC, f.id LIMIT %(limit)s"""

Found = tuple[str, float]


def indexed(words: str) -> tuple[str, int]:
    """A text as the index takes it, words and blanks only; and how many words it has."""
    found = _WORD.findall(_bare(spread(words[:LONGEST])))
    text = " ".join(found)[:LONGEST]
    return text, len(found)


class WordSearch:
    """Search in the records of one schema; remembers stems, and how common the common words are."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._stems: dict[str, tuple[str, ...]] = {}
        self._common: dict[tuple[str, str], tuple[int, int]] = {}

    def found(self, c: Server, scope: str, terms: Sequence[str], limit: int, place: str = "") -> list[Found]:
        """The best matches with their BM25, best first; see the module for which documents are ranked."""
        row = c.execute("SELECT records, words FROM scopes WHERE scope = %s", (scope,)).fetchone()
        stems = self._stemmed(c, terms)
        if row is None or not row[0] or not stems:
            return []
        within, most = f"'{tenant_word(scope, place)}'", max(MOST_RANKED, 4 * limit)
        rows: int = _counted(c, scope, [within], row[0])[0] if place else row[0]
        counts = self._counts(c, scope, within, stems, rows, most)
        weights = {stem: _weight(rows, counts[stem]) for stem in stems}
        flat, slope = K1 * (1 - B), K1 * B * rows / max(1, row[1])

        def best(match: Sequence[str], among: int | None) -> dict[str, float]:
            values = {
                "scope": scope, "match": _any(within, match), "most": among, "flat": flat, "slope": slope,
                "stems": stems, "weights": [weights[stem] for stem in stems], "limit": limit,
            }  # fmt: skip
            return dict(c.execute(_BEST, values).fetchall())

        if rows <= most:  # what holds nothing but words that are everywhere is last, and often not needed
            scores = best(heavy, None) if (heavy := [stem for stem in stems if 2 * counts[stem] < rows]) else {}
            return _sorted(scores if len(scores) >= limit else best(stems, None))
        rare = rare_words(counts, most)
        common = sorted((stem for stem in stems if stem not in rare), key=counts.__getitem__)
        if not rare:
            heavy = [stem for stem in common if 2 * counts[stem] < rows]
            return _sorted(best(heavy, None) if heavy else best(common, most))
        scores = best(rare, None)
        if common and len(scores) < limit:
            scores = best(common[:1], most) | scores
        return _sorted(scores)[:limit]

    def _stemmed(self, c: Server, terms: Sequence[str]) -> list[str]:
        words = [word for term in terms for word in _WORD.findall(_bare(term))]
        new = [word for word in dict.fromkeys(words) if word not in self._stems]
        if new:
            if len(self._stems) + len(new) > _MOST_KNOWN:
                self._stems.clear()
                new = list(dict.fromkeys(words))
            rows = c.execute(_STEMS, (new,)).fetchall()
            self._stems |= {word: tuple(row[0]) for word, row in zip(new, rows, strict=True)}
        return list(dict.fromkeys(stem for word in words for stem in self._stems.get(word, ())))

    def _counts(self, c: Server, scope: str, within: str, stems: Sequence[str], rows: int, most: int) -> dict[str, int]:
        """Documents per stem; those of common ones are counted anew when the scope grew by a tenth."""
        counts: dict[str, int] = {}
        for stem in stems:
            known = self._common.get((within, stem))
            if known is not None and known[0] <= rows <= 1.1 * known[0]:
                counts[stem] = known[1]
        new = [stem for stem in stems if stem not in counts]
        counts |= zip(new, _counted(c, scope, [_any(within, [stem]) for stem in new], most + 1), strict=True)
        many = [stem for stem in new if counts[stem] > most]
        for stem, count in zip(
            many, _counted(c, scope, [_any(within, [stem]) for stem in many], rows // 2 + 1), strict=True
        ):
            counts[stem] = count
            if len(self._common) >= _MOST_KNOWN:
                self._common.clear()
            self._common[within, stem] = rows, count
        return counts


def _counted(c: Server, scope: str, matches: Sequence[str], most: int) -> list[int]:
    """How many documents match each of these, counted up to `most`."""
    values = {"scope": scope, "most": most, "matches": list(matches)}
    return [count for (count,) in c.execute(_COUNTS, values).fetchall()] if matches else []


def _weight(rows: int, count: int) -> float:
    return (K1 + 1) * max(1e-6, math.log((rows - count + 0.5) / (count + 0.5)))


def _bare(text: str) -> str:
    """Lower case without accents, as FTS5 has it."""
    parts = unicodedata.normalize("NFD", text.lower())
    return unicodedata.normalize("NFC", "".join(c for c in parts if not unicodedata.combining(c)))


def _any(within: str, stems: Sequence[str]) -> str:
    """A `tsquery`: the word that all documents of a scope or a place hold, and one of the stems."""
    return f"{within} & ({' | '.join(_quoted(stem) for stem in stems)})"


def _quoted(stem: str) -> str:
    return "'" + stem.replace("\\", "\\\\").replace("'", "''") + "'"


def _sorted(scores: dict[str, float]) -> list[Found]:
    return sorted(scores.items(), key=lambda row: (-row[1], row[0]))
