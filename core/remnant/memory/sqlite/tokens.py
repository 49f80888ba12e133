"""Text to words exactly as the word index of a file splits and stems it: by the same tokenizer, in memory."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence

from remnant.memory.sqlite.schema import TOKENIZER

_MOST_KNOWN = 4096


class Tokens:
    """A tokenizer of its own connection; not to be used by two threads at once."""

    def __init__(self) -> None:
        """See the class."""
        self._c = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._c.execute(f"CREATE VIRTUAL TABLE t USING fts5(words, content='', tokenize='{TOKENIZER}')")
        self._c.execute("CREATE VIRTUAL TABLE v USING fts5vocab(t, instance)")
        self._known: dict[str, tuple[str, ...]] = {}

    def count(self, texts: Sequence[str]) -> list[Counter[str]]:
        """How often each text holds each word.

        Example: Tokens().count(["Teas and tea"]) -> [Counter({"tea": 2, "and": 1})]
        """
        self._c.executemany("INSERT INTO t (rowid, words) VALUES (?, ?)", list(enumerate(texts)))
        rows: list[tuple[int, str]] = self._c.execute("SELECT doc, term FROM v").fetchall()
        self._c.execute("INSERT INTO t (t) VALUES ('delete-all')")
        counts = [Counter[str]() for _ in texts]
        for place, word in rows:
            counts[place][word] += 1
        return counts

    def of(self, terms: Sequence[str]) -> list[str]:
        """The words of a query's terms, once each; a term such as `a_b` is two of them."""
        new = [term for term in dict.fromkeys(terms) if term not in self._known]
        if len(self._known) + len(new) > _MOST_KNOWN:
            self._known.clear()
            new = list(dict.fromkeys(terms))
        for term, counts in zip(new, self.count(new) if new else [], strict=True):
            self._known[term] = tuple(sorted(counts))
        return list(dict.fromkeys(word for term in terms for word in self._known[term]))

    def close(self) -> None:
        """Close the connection."""
        self._c.close()
