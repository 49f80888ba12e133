"""How a person sees what became of a record: field by field, word by word."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from remnant.text import Piece, compare, visible, when

FIELDS = ("content", "trigger", "kind", "status", "trust", "outcome", "confidence", "keywords", "payload", "parents")
"""The writer's fields that people read first, in that order."""

_TIMES = ("valid_from", "valid_to")


def field_text(name: str, value: Any) -> str:
    """A field's value as visible text; empty for what was not given.

    Example: field_text("keywords", ["a"]) -> '["a"]'
    """
    if value is None or value in ("", [], {}):
        return ""
    if name in _TIMES:
        return when(value)
    if isinstance(value, str):
        return visible(value)
    return visible(json.dumps(value, ensure_ascii=False, sort_keys=True, default=str))


def field_changes(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[tuple[str, list[Piece]]]:
    """The fields that differ between two versions, as (name, pieces).

    Args:
        before: a record's `to_dict`; None if there was none.
        after: the same; None if it is gone.
    """
    found: list[tuple[str, list[Piece]]] = []
    for name in (*FIELDS, *_TIMES, "provenance"):
        old, new = (field_text(name, side[name]) if side else "" for side in (before, after))
        if old != new:
            found.append((name, compare(old, new)))
    return found
