"""Answers of a model as data: JSON Schema of a dataclass, and a strict reading of JSON into it.

Small on purpose: flat frozen dataclasses of text, numbers, truth values, `Literal`, `X | None`,
lists or tuples of these, and other such dataclasses. A pydantic model works in the same places.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from remnant.errors import ConfigError

T = TypeVar("T")

_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_PLAIN: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


def json_schema(shape: type[Any]) -> dict[str, Any]:
    """The JSON Schema of a dataclass or of a pydantic model.

    A field's `metadata` may hold `max_items` for lists and `description`.

    Raises:
        ConfigError: a field has a type that is not in the list above.
    """
    if hasattr(shape, "model_json_schema"):
        return shape.model_json_schema()
    if not dataclasses.is_dataclass(shape):
        raise ConfigError(f"shape {shape!r}", accepted="a dataclass or a pydantic model")
    hints = get_type_hints(shape)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for item in dataclasses.fields(shape):
        properties[item.name] = _schema(hints[item.name]) | _limits(item)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            required.append(item.name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def parse(shape: type[T], text: str) -> T:
    """Read a model's answer: the raw text, then fenced blocks, then the outermost braces.

    Raises:
        ValueError: none of these is valid; says what is wrong with the last one.
    """
    first, last = text.find("{"), text.rfind("}")
    candidates = [text, *_FENCE.findall(text), *([text[first : last + 1]] if 0 <= first < last else [])]
    error: ValueError = ValueError("no JSON")
    for candidate in candidates:
        try:
            return _read(shape, candidate.strip())
        except ValueError as found:  # pydantic's ValidationError is one as well
            error = found
        except RecursionError:
            error = ValueError("nested too deeply")
    raise error


def _read(shape: type[T], text: str) -> T:
    if hasattr(shape, "model_validate_json"):
        return cast(Any, shape).model_validate_json(text)
    return cast("T", _value(shape, json.loads(text), "answer"))


def _limits(item: dataclasses.Field[Any]) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if "max_items" in item.metadata:
        limits["maxItems"] = item.metadata["max_items"]
    if "description" in item.metadata:
        limits["description"] = item.metadata["description"]
    return limits


def _schema(hint: Any) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(argument) for argument in arguments]}
    if hint is type(None):
        return {"type": "null"}
    if origin in (list, tuple):
        return {"type": "array", "items": _schema(arguments[0])}
    return json_schema(hint)


def _value(hint: Any, value: Any, place: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in _PLAIN or hint is type(None):
        good = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
        return value if good else _wrong(place, value, _PLAIN.get(hint, "null"))
    if origin is Literal:
        return value if value in arguments else _wrong(place, value, f"one of {', '.join(map(str, arguments))}")
    if origin in (Union, types.UnionType):
        return _any_of(arguments, value, place)
    if origin in (list, tuple):
        if not isinstance(value, list):
            return _wrong(place, value, "a list")
        items = [_value(arguments[0], item, f"{place}[{i}]") for i, item in enumerate(cast("list[Any]", value))]
        return tuple(items) if origin is tuple else items
    return _object(hint, value, place)


def _any_of(hints: tuple[Any, ...], value: Any, place: str) -> Any:
    for hint in hints:
        try:
            return _value(hint, value, place)
        except ValueError:
            continue
    return _wrong(place, value, "one of its alternatives")


def _object(shape: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        return _wrong(place, value, "an object")
    given, hints = cast("dict[str, Any]", value), get_type_hints(shape)
    if extra := given.keys() - hints.keys():
        raise ValueError(f"{place}: unknown field {sorted(extra)[0]!r}; accepted: {', '.join(hints)}")
    made: dict[str, Any] = {}
    for item in dataclasses.fields(shape):
        if item.name in given:
            made[item.name] = _value(hints[item.name], given[item.name], f"{place}.{item.name}")
            most: int | None = item.metadata.get("max_items")
            if most is not None and len(made[item.name]) > most:
                raise ValueError(f"{place}.{item.name}: {len(made[item.name])} items; accepted: {most} at most")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ValueError(f"{place}: the field {item.name!r} is missing")
    make = cast("Callable[..., Any]", shape)
    return make(**made)


def _wrong(place: str, value: Any, accepted: str) -> Any:
    raise ValueError(f"{place}: {json.dumps(value, default=str)[:80]}; accepted: {accepted}")
