"""Hits chosen by a model: what it may look through within a token cap, and what the names in its answer mean."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from remnant.memory.llm import Aliases
from remnant.memory.record import Hit
from remnant.memory.strategies.trace import plain
from remnant.memory.strategy import Query

LIKE = 0.9
"""Likeness (difflib's ratio) from which a name that the model misspelt counts as a title."""

MOST_NAMED = 20
"""Names in one answer at most."""

_LEAST_LINE = 8
"""Tokens of the shortest line worth listing; bounds how much of a memory is read to see whether it fits."""


@dataclass(frozen=True)
class Chosen:
    """The model's choice: names of notes, the most useful first."""

    notes: tuple[str, ...] = field(metadata={"max_items": MOST_NAMED})


class Listing(NamedTuple):
    """Hits that a model is shown.

    Args:
        hits: in the order of the lines.
        aliases: their names.
        text: one entry per hit.
    """

    hits: list[Hit]
    aliases: Aliases
    text: str


def everything_or_best(query: Query, hits: Sequence[Hit], line: Callable[[Hit], str], most_tokens: int) -> list[Hit]:
    """All of a small memory, in order of id, so that the prompt of one recall begins like that of the next.

    Above the cap the retriever has chosen: its candidates, as ranked, as far as they fit.

    Args:
        query: offers what the retriever did not find.
        hits: the retriever's candidates.
        line: what the model would be shown of a hit.
        most_tokens: of all lines together.
    """
    rest = query.more(max(0, most_tokens // _LEAST_LINE - len(hits) + 1))
    left = most_tokens - sum(query.count_tokens(line(hit)) for hit in (*hits, *rest))
    if left >= 0:
        return sorted((*hits, *rest), key=lambda hit: hit.id)
    kept: list[Hit] = []
    left = most_tokens
    for hit in hits:
        cost = query.count_tokens(line(hit))
        if cost <= left:  # one too long is passed over
            kept.append(hit)
            left -= cost
    return kept


def listing(hits: Sequence[Hit], line: Callable[[Hit], str], prefix: str = "m") -> Listing:
    """Hits as lines, each begun with its name."""
    aliases = Aliases([hit.id for hit in hits], prefix)
    text = "\n".join(f"[{aliases.name(hit.id)}] {' '.join(line(hit).split())}" for hit in hits)
    return Listing(list(hits), aliases, text)


def named(listed: Listing, notes: Sequence[str], title: Callable[[Hit], str]) -> list[Hit]:
    """The hits that an answer names, once each: by alias, by title, or by a title much like it; others are dropped."""
    by_id = {hit.id: hit for hit in listed.hits}
    by_title = {plain(title(hit)): hit.id for hit in reversed(listed.hits)}
    found: dict[str, Hit] = {}
    for note in notes:
        id = listed.aliases.id(note) or by_title.get(plain(note)) or _nearest(plain(note), by_title)
        if id is not None:
            found.setdefault(id, by_id[id])
    return list(found.values())


def _nearest(note: str, by_title: dict[str, str]) -> str | None:
    near = difflib.get_close_matches(note, list(by_title), 1, LIKE)
    return by_title[near[0]] if near else None
