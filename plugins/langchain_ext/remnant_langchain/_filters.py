"""Conditions on stored values and on namespaces, as LangGraph's stores understand them."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from langgraph.store.base import MatchCondition

from remnant.errors import ConfigError

_KEY = re.compile(r"[\w .:/@+-]+")
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
OPERATORS = ("$eq", "$ne", *_ORDER)


def check_filter(wanted: Mapping[str, Any] | None) -> None:
    """Refuse filters that no store of LangGraph can answer.

    Raises:
        ConfigError: a key holds quotes, brackets or control characters, or there is no such operator.
    """
    for key, condition in (wanted or {}).items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            accepted = "letters, digits, blanks and _ - . : / @ +, as in 'user.name'"
            raise ConfigError(f"Invalid filter key: {key!r}", accepted=accepted)
        _check(condition)


def _check(condition: Any) -> None:
    if isinstance(condition, (list, tuple)):
        for part in cast("Sequence[Any]", condition):
            _check(part)
    if not isinstance(condition, Mapping):
        return
    named = cast("Mapping[str, Any]", condition)
    operators = any(name.startswith("$") for name in named)
    for name, value in named.items():
        if operators and name not in OPERATORS:
            raise ConfigError(f"Unsupported operator: {name}", accepted=OPERATORS)
        if not operators:
            _check(value)


def matches(value: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    """Whether a stored value meets every condition of a filter.

    Args:
        value: what was stored.
        wanted: key -> a value to equal, or operators such as `{"$gte": 3}`. A key with dots that the value does
            not have as it stands is a path into it.

    Example: matches({"user": {"age": 3}}, {"user.age": {"$lt": 4}}) -> True
    """
    return all(_meets(_at(value, key), condition) for key, condition in (wanted or {}).items())


def _at(value: Mapping[str, Any], key: str) -> Any:
    if key in value or "." not in key:
        return value.get(key)
    found: Any = value
    for part in key.split("."):
        if not isinstance(found, Mapping):
            return None
        found = cast("Mapping[str, Any]", found).get(part)
    return found


def _meets(value: Any, condition: Any) -> bool:
    """Mappings and lists are compared part by part, so that operators may stand deeper as well."""
    if isinstance(condition, Mapping):
        named = cast("Mapping[str, Any]", condition)
        if any(name.startswith("$") for name in named):
            return all(_compared(value, name, limit) for name, limit in named.items())
        return isinstance(value, Mapping) and all(_meets(value.get(name), part) for name, part in named.items())
    if isinstance(condition, (list, tuple)):
        parts = cast("Sequence[Any]", condition)
        alike = isinstance(value, (list, tuple)) and len(value) == len(parts)
        return alike and all(_meets(item, part) for item, part in zip(value, parts, strict=True))
    return value == condition


def _compared(value: Any, name: str, limit: Any) -> bool:
    """Numbers, and texts that are numbers, by size; other texts by alphabet; nothing else has an order."""
    if name in ("$eq", "$ne"):
        return (value == limit) is (name == "$eq")
    try:
        return _ORDER[name](float(value), float(limit))
    except (TypeError, ValueError, OverflowError):
        both = isinstance(value, str) and isinstance(limit, str)
        return both and _ORDER[name](value, limit)


def meets_all(namespace: tuple[str, ...], conditions: Sequence[MatchCondition] | None) -> bool:
    """Whether a namespace begins or ends as asked; `*` is any one label.

    Raises:
        ConfigError: a condition is neither of prefix nor of suffix.
    """
    return all(_begins_or_ends(namespace, condition) for condition in conditions or ())


def _begins_or_ends(namespace: tuple[str, ...], condition: MatchCondition) -> bool:
    kind, path = condition.match_type, tuple(condition.path)
    if kind not in ("prefix", "suffix"):
        raise ConfigError(f"Unsupported match type: {kind}", accepted=("prefix", "suffix"))
    if len(path) > len(namespace):
        return False
    part = namespace[: len(path)] if kind == "prefix" else namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", label) for wanted, label in zip(path, part, strict=True))
