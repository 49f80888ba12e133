"""Turn what was typed into values: budgets and policy options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from remnant.errors import ConfigError

_BUDGETS = "tokens (128), a fraction of the length (0.1) or a percentage (10%)"


def parse_budget(text: str) -> int | Fraction:
    """Read a budget.

    Args:
        text: `"128"` is a number of tokens per KV head; `"0.1"` and `"10%"` are fractions of the
            length, exact.

    Raises:
        ConfigError: it is neither, or not between one token and the whole length.
    """
    try:
        value = _number(text.strip())
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"budget {text!r}", accepted=_BUDGETS) from None
    if value <= 0 or (isinstance(value, Fraction) and value > 1):
        raise ConfigError(f"budget {text!r} is out of range", accepted=_BUDGETS)
    return value


def _number(text: str) -> int | Fraction:
    if text.endswith("%"):
        return Fraction(text[:-1]) / 100
    return Fraction(text) if "." in text or "/" in text else int(text)


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read policy options.

    Args:
        pairs: `key=value` each; a value that is JSON is read as such, any other is text.

    Raises:
        ConfigError: a pair has no `=` or no key.

    Example: parse_options(["window=32", "pooling=avg"]) -> {"window": 32, "pooling": "avg"}
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ConfigError(f"option {pair!r}", accepted="key=value", do="e.g. window=32")
        options[key.replace("-", "_")] = _value(value)
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
