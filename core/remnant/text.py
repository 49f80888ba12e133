"""Text that others wrote, shown to people: nothing in it moves the cursor, hides, or turns the line around."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from datetime import datetime, timezone
from difflib import SequenceMatcher
from typing import Literal

Piece = tuple[Literal["same", "cut", "new"], str]
"""A part of a text that two versions share, that only the first has, or that only the second has."""

_JOINERS = "\u200c\u200d"  # part of the spelling of Persian, of Indic scripts and of emoji
_PARTS = re.compile(r"\s+|\w+|[^\w\s]")
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_MOST_PARTS = 2000


def visible(text: str, *, lines: bool = True) -> str:
    r"""The text with every character that is not seen written out, such as `\x1b` or `\u202e`.

    Args:
        text: anything, lone surrogates included.
        lines: leave line ends and tabs as they are.

    Example: visible("a\x1b[31mb") -> "a\\x1b[31mb"
    """
    if text.isprintable():
        return text
    return "".join(char if _seen(char, lines) else char.encode("unicode_escape").decode() for char in text)


def _seen(char: str, lines: bool) -> bool:
    if char in "\n\t":
        return lines
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"


def short(text: str, most: int) -> str:
    """The text on one line of at most so many characters, visible.

    Example: short("one\ntwo three", 8) -> "one two…"
    """
    line = visible(" ".join(text[: 4 * most].split()), lines=False)
    return line if len(line) <= most and len(text) <= 4 * most else line[: most - 1].rstrip() + "…"


def when(moment: float | None) -> str:
    """A time for people, in UTC to the second; empty for none.

    Example: when(0.5) -> "1970-01-01 00:00:00"
    """
    if moment is None:
        return ""
    try:
        return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # a clock that went astray is no reason to show nothing
        return f"{moment:g} s"


def compare(before: str, after: str) -> list[Piece]:
    """What differs between two texts, word by word; line by line, or as a whole, where they are long.

    Example: compare("a b", "a c") -> [("same", "a "), ("cut", "b"), ("new", "c")]
    """
    first, second = _split(before, after)
    pieces: list[Piece] = []
    for tag, a, b, c, d in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if tag == "equal":
            _put(pieces, "same", first[a:b])
        else:
            _put(pieces, "cut", first[a:b])
            _put(pieces, "new", second[c:d])
    return pieces


def _split(before: str, after: str) -> tuple[list[str], list[str]]:
    """Both texts in the finest parts that can be compared at once: comparing takes the square of their number."""
    for pattern in (_PARTS, _LINES):
        first, second = pattern.findall(before), pattern.findall(after)
        if max(len(first), len(second)) <= _MOST_PARTS:
            return first, second
    return [before], [after]


def _put(pieces: list[Piece], tag: Literal["same", "cut", "new"], parts: Sequence[str]) -> None:
    if parts:
        pieces.append((tag, "".join(parts)))
