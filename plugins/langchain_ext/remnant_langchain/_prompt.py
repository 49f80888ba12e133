"""How memories stand in a request: never in the state, so that no checkpoint keeps what memory forgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from langchain.agents.middleware import ModelRequest
from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage, ToolMessage

from remnant_langchain._steps import SHOWN

Position = Literal["system", "user"]

HIDDEN = "(memories; their texts are looked up when they are read)"
"""What the state holds in place of memories that a tool looked up."""


def with_block(request: ModelRequest[Any], block: str, position: Position) -> ModelRequest[Any]:
    """The request with a block of memories; unchanged if there is none."""
    if not block:
        return request
    place = _last_person(request.messages) if position == "user" else None
    if place is None:
        return request.override(system_message=_below(request.system_message, block))
    messages = list(request.messages)
    messages[place] = _above(messages[place], block)
    return request.override(messages=messages)


def shown_ids(message: object) -> list[str]:
    """Ids of the memories that a tool's result shows; none for any other message."""
    artifact = message.artifact if isinstance(message, ToolMessage) else None
    ids = artifact.get(SHOWN) if isinstance(artifact, dict) else None
    return [str(id) for id in ids] if isinstance(ids, list) else []


def looked_up(messages: Sequence[AnyMessage], render: Callable[[Sequence[str]], str]) -> list[AnyMessage] | None:
    """The messages with the memories of tool results in their places; None if no result holds any."""
    if not any(shown_ids(message) for message in messages):
        return None
    return [_filled(message, render) for message in messages]


def hidden(message: ToolMessage) -> ToolMessage:
    """A tool result without the texts of the memories that it shows."""
    return message.model_copy(update={"content": HIDDEN})


def _filled(message: AnyMessage, render: Callable[[Sequence[str]], str]) -> AnyMessage:
    ids = shown_ids(message)
    return message.model_copy(update={"content": render(ids) or "(forgotten)"}) if ids else message


def _last_person(messages: Sequence[AnyMessage]) -> int | None:
    places = [place for place, message in enumerate(messages) if isinstance(message, HumanMessage)]
    return places[-1] if places else None


def _below(old: SystemMessage | None, block: str) -> SystemMessage:
    """At the end, so that a cached prefix holds. Parts are joined without a separator, hence the empty line."""
    if old is None:
        return SystemMessage(content=block)
    parts: list[Any] = [*old.content_blocks, {"type": "text", "text": f"\n\n{block}"}]
    return old.model_copy(update={"content": parts})


def _above(message: AnyMessage, block: str) -> AnyMessage:
    parts: list[Any] = [{"type": "text", "text": f"{block}\n\n"}, *message.content_blocks]
    return message.model_copy(update={"content": parts})
