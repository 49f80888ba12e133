"""A document in pieces of bounded size, cut where the text itself pauses."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from remnant.errors import ConfigError

__all__ = ["SEPARATORS", "split"]

SEPARATORS = (
    r"\n[ \t]*\n\s*",
    r"\n",
    r"[.!?][\"')\]]*\s+|[\u3002\uff01\uff1f]",
    r"[,;:]\s+|[\u3001\uff0c\uff1b]",
    r"\s+",
)
"""Where a document may be cut, best first, as regular expressions: paragraphs, lines, sentences, clauses, words."""


def split(atoms: Sequence[str], size: int, separators: Sequence[str] = SEPARATORS) -> list[tuple[int, int]]:
    r"""Cut a document into chunks without overlap, never inside a token.

    A piece that is too large is cut at the first kind of separator that occurs in it, and its parts are put together
    again as long as they fit; parts that are still too large are cut at the next kind, in the end anywhere.

    Args:
        atoms: the texts of the tokens; joined they are the document.
        size: tokens of one chunk at most.
        separators: regular expressions, best first.

    Returns:
        `(start, end)` of each chunk in tokens, in order, none empty; together they are the document.

    Raises:
        ConfigError: size is below 1.

    Example: split(["a ", "b\n\n", "c ", "d"], 3) -> [(0, 2), (2, 4)]
    """
    if size < 1:
        raise ConfigError(f"chunks of {size} tokens", accepted="1 or more")
    cuts = _cuts(atoms, separators)
    out: list[tuple[int, int]] = []
    todo = [(0, len(atoms), 0)] if atoms else []
    while todo:
        start, end, level = todo.pop()
        if end - start <= size:
            out.append((start, end))
            continue
        if level == len(cuts):
            parts = [(at, min(at + size, end)) for at in range(start, end, size)]
        else:
            parts = _packed(_parts(start, end, cuts[level]), size)
        todo += [(a, b, level + 1) for a, b in reversed(parts)]
    return out


def _cuts(atoms: Sequence[str], separators: Sequence[str]) -> list[list[int]]:
    """For each kind of separator, the atoms before which a chunk may end, ascending."""
    text = "".join(atoms)
    ends = list(accumulate(map(len, atoms)))
    return [sorted({_cut(found, ends) for found in re.finditer(kind, text)}) for kind in separators]


def _cut(found: re.Match[str], ends: Sequence[int]) -> int:
    """Behind the separator, or before its last blanks: in most tokenizers these begin the next word's token."""
    before = bisect_right(ends, found.end()) - 1
    if before >= 0 and ends[before] >= found.start() + len(found.group().rstrip()):
        return before + 1
    return bisect_left(ends, found.end()) + 1


def _parts(start: int, end: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    inside = cuts[bisect_left(cuts, start + 1) : bisect_left(cuts, end)]
    return list(pairwise([start, *inside, end]))


def _packed(parts: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Neighbours put together as long as they fit."""
    out = [parts[0]]
    for start, end in parts[1:]:
        if end - out[-1][0] <= size:
            out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out
