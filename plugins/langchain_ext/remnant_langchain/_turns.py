"""A chat history as turns that may be left out whole, and as conversations of a size that the router knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage

from remnant.routing import Unit, count_tokens


@dataclass(frozen=True)
class History:
    """The messages of a request, cut.

    Args:
        pinned: indices of messages that are always kept: the system's, and summaries.
        turns: indices of the messages of each earlier turn, oldest first; a call and its result share a turn.
        current: indices from the last question on.
        question: the last question.
        units: the earlier turns as units, in the same order; ids are their places.
        fixed_tokens: tokens of what is always kept, estimated.
    """

    pinned: tuple[int, ...]
    turns: tuple[tuple[int, ...], ...]
    current: tuple[int, ...]
    question: str
    units: tuple[Unit, ...]
    fixed_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens of the earlier turns, estimated."""
        return sum(count_tokens(unit.text) for unit in self.units)

    @property
    def conversations(self) -> int:
        """How many conversations the earlier turns make."""
        return len({unit.conversation for unit in self.units})

    def newest(self, tokens: int) -> set[str]:
        """Ids of the last turns, of so many tokens at most: what "it" and "the second one" refer to stands there."""
        found: set[str] = set()
        for unit in reversed(self.units):
            tokens -= count_tokens(unit.text)
            if tokens < 0:
                break
            found.add(unit.id)
        return found

    def kept(self, units: Sequence[Unit]) -> list[int]:
        """Indices of the messages to send, in order, where of the earlier turns only these are kept."""
        chosen = (index for unit in units for index in self.turns[int(unit.id)])
        return sorted({*self.pinned, *chosen, *self.current})


def cut(messages: Sequence[AnyMessage], conversation_tokens: int, question: str = "") -> History:
    """Cut a history into turns.

    Args:
        messages: of a request.
        conversation_tokens: tokens of the conversations that turns are put together to.
        question: the last question, if it is known; otherwise the text of the last message of a person.
    """
    pinned = [i for i, message in enumerate(messages) if _is_pinned(message)]
    turns = _linked(messages, _begun(messages, set(pinned)))
    *earlier, current = turns or [[]]
    units: list[Unit] = []
    conversation, tokens = 0, 0
    for place, turn in enumerate(earlier):
        text = "\n".join(as_text(messages[i]) for i in turn)
        size = count_tokens(text)
        if tokens and tokens + size > conversation_tokens:
            conversation, tokens = conversation + 1, 0
        tokens += size
        units.append(Unit(str(place), f"conversation {conversation + 1}", text))
    fixed = sum(count_tokens(as_text(messages[i])) for i in (*pinned, *current))
    asked = [str(messages[i].text) for i in current if isinstance(messages[i], HumanMessage)]
    return History(
        tuple(pinned),
        tuple(map(tuple, earlier)),
        tuple(current),
        question or (asked[-1] if asked else ""),
        tuple(units),
        fixed,
    )


def _begun(messages: Sequence[AnyMessage], pinned: set[int]) -> list[list[int]]:
    """A turn begins where a person speaks."""
    turns: list[list[int]] = []
    for i, message in enumerate(messages):
        if i in pinned:
            continue
        if not turns or isinstance(message, HumanMessage):
            turns.append([])
        turns[-1].append(i)
    return turns


def _linked(messages: Sequence[AnyMessage], turns: list[list[int]]) -> list[list[int]]:
    """Turns between a call and its result become one: no provider accepts one without the other."""
    called: dict[str, int] = {}
    whole: list[list[int]] = []
    for turn in turns:
        whole.append(turn)
        for i in turn:
            message = messages[i]
            if isinstance(message, AIMessage):
                called |= {call["id"]: i for call in message.tool_calls if call["id"]}
            start = called.get(message.tool_call_id) if isinstance(message, ToolMessage) else None
            while start is not None and start not in whole[-1]:
                last = whole.pop()
                whole[-1] += last
    return whole


def _is_pinned(message: AnyMessage) -> bool:
    return isinstance(message, SystemMessage) or message.additional_kwargs.get("lc_source") == "summarization"


def as_text(message: AnyMessage) -> str:
    """A message as a line: who said what, and what was called."""
    who = {"human": "user", "ai": "assistant"}.get(message.type, message.type)
    name = f" {message.name}" if isinstance(message, ToolMessage) and message.name else ""
    calls: list[Any] = message.tool_calls if isinstance(message, AIMessage) else []
    said = [str(message.text), *(f"{call['name']}({json.dumps(call['args'], default=str)})" for call in calls)]
    return f"{who}{name}: {' '.join(part for part in said if part)}"
