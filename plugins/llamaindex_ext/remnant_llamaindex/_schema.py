"""A JSON Schema of `remnant.memory` as a pydantic model, which LlamaIndex's structured output wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, create_model

_PLAIN: Mapping[str, type[Any]] = {"string": str, "integer": int, "number": float, "boolean": bool, "null": type(None)}


class _Answer(BaseModel):
    """What every model here is: strict, and silent about fields that were left out."""

    model_config = ConfigDict(extra="forbid")

    def model_dump_json(self, **options: Any) -> str:
        """As JSON; LlamaIndex makes the answer's text by it."""
        return super().model_dump_json(**{"exclude_unset": True, **options})


def model_of(schema: Mapping[str, Any]) -> type[Any] | None:
    """The model; None for a schema with parts that we do not know, such as references.

    Args:
        schema: as `remnant.memory.shapes.json_schema` makes it from a dataclass.
    """
    try:
        return _object(schema, "Answer") if schema.get("type") == "object" else None
    except KeyError:
        return None


def _object(schema: Mapping[str, Any], name: str) -> type[Any]:
    required = set(schema.get("required", ()))
    fields: dict[str, Any] = {}
    for key, part in schema["properties"].items():
        kind = _type(part, f"{name}_{key}")
        told = {"description": part.get("description"), "max_length": part.get("maxItems")}
        default: Any = ... if key in required else None
        fields[key] = (kind if key in required else Union[kind, None], Field(default, **told))  # noqa: UP007
    return create_model(name, __base__=_Answer, **fields)


def _type(part: Mapping[str, Any], name: str) -> Any:
    if "enum" in part:
        return Literal[tuple(part["enum"])]
    if "anyOf" in part:
        return Union[tuple(_type(option, name) for option in part["anyOf"])]  # noqa: UP007
    if part["type"] == "array":
        return list[_type(part["items"], name)]
    return _object(part, name) if part["type"] == "object" else _PLAIN[part["type"]]
