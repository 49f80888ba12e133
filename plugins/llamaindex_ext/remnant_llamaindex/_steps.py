"""Messages and events of LlamaIndex as steps of an episode; see `remnant.memory.verdict` for their keys."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.agent.workflow.workflow_events import AgentOutput, ToolCallResult
from llama_index.core.base.llms.types import CachePoint, ChatMessage, TextBlock, ThinkingBlock, ToolCallBlock

from remnant_llamaindex._injected import cleaned

Step = dict[str, Any]

_ROLES = {"user": "user", "tool": "tool", "function": "tool", "system": "system", "developer": "system"}
_SILENT = (TextBlock, ToolCallBlock, ThinkingBlock, CachePoint)
_CODE = re.compile(r"<execute>.*?</execute>", re.DOTALL)
_OBSERVED = re.compile(r"^Observation: ", re.MULTILINE)
_THOUGHT = "\nThought: "


def text_of(message: ChatMessage) -> str:
    """What a message says, without what memory put into it."""
    return cleaned("\n".join(block.text for block in message.blocks if isinstance(block, TextBlock)))


def role_of(message: ChatMessage, before: ChatMessage | None) -> str:
    """`user`, `assistant`, `tool` or `system`; what a CodeActAgent's code gave is a tool's words in the user's role.

    Args:
        message: the message.
        before: the message before it, if known.
    """
    role = _ROLES.get(message.role.value, "assistant")
    ran = before is not None and before.role.value == "assistant" and _CODE.search(before.content or "")
    return "tool" if role == "user" and ran else role


def is_final(message: ChatMessage) -> bool:
    """Whether a run's last word was said: an assistant that asks for no tool."""
    final = role_of(message, None) == "assistant" and not _calls(message)
    return final and not _CODE.search(message.content or "")


def of_messages(messages: Sequence[ChatMessage], before: ChatMessage | None) -> list[Step]:
    """Messages of one run as steps.

    Args:
        messages: in order.
        before: the message before the first one, if known.
    """
    called: dict[str, Step] = {}
    steps: list[Step] = []
    for message in messages:
        calls = _calls(message)
        called |= {call["id"]: {"name": call["name"], "arguments": call["arguments"]} for call in calls}
        steps += _of_message(message, role_of(message, before), calls, called)
        before = message
    return steps


def of_event(event: object) -> Step | None:
    """An event of a running agent as a step; None for one that adds nothing."""
    if isinstance(event, AgentOutput):
        step: Step = {"role": "assistant", "content": text_of(event.response)}
        asked = [call for call in event.tool_calls if not isinstance(call, ToolCallResult)]  # results join at the end
        calls = [{"name": call.tool_name, "arguments": _plain(call.tool_kwargs)} for call in asked]
        return step | ({"tool_calls": calls} if calls else {}) | _named(event.current_agent_name)
    if isinstance(event, ToolCallResult):
        output = event.tool_output
        about = {"name": event.tool_name, "arguments": _plain(event.tool_kwargs)}
        step = {"role": "tool", "content": cleaned(str(output.content)), **about}
        return step | ({"error": True} if output.is_error else {})
    return None


def _of_message(message: ChatMessage, role: str, calls: list[Step], called: Mapping[str, Step]) -> list[Step]:
    text = text_of(message)
    if role == "assistant" and (told := _reasoning(text)):
        return told
    step: Step = {"role": role, "content": text}
    if calls:
        step["tool_calls"] = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
    if role == "tool":
        step |= called.get(str(message.additional_kwargs.get("tool_call_id", "")), {})
    if other := sorted({block.block_type for block in message.blocks if not isinstance(block, _SILENT)}):
        step["attachments"] = other
    return [step]


def _reasoning(text: str) -> list[Step]:
    """A ReActAgent hands over one text of thoughts and observations. Observations are a tool's words, not its own.

    All from the first observation to the last thought counts as the tool's: words of a tool may look like thoughts.
    """
    seen = _OBSERVED.search(text)
    if seen is None or "\nAction: " not in text[: seen.start()]:
        return []
    end = text.rfind(_THOUGHT, seen.start())
    head, observed, tail = text[: seen.start()], text[seen.start() :], ""
    if end > 0:
        observed, tail = text[seen.start() : end], text[end + 1 :]
    parts = (("assistant", head), ("tool", observed), ("assistant", tail))
    return [{"role": role, "content": part.strip()} for role, part in parts if part.strip()]


def _calls(message: ChatMessage) -> list[Step]:
    """The tools an assistant asks for: as blocks, or as older integrations of models leave them."""
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    calls = [{"id": str(b.tool_call_id), "name": b.tool_name, "arguments": _plain(b.tool_kwargs)} for b in blocks]
    older: Any = [] if calls else message.additional_kwargs.get("tool_calls") or []
    return calls or [_older(call) for call in older]


def _older(call: Any) -> Step:
    data: Any = call if isinstance(call, Mapping) else getattr(call, "__dict__", {})
    function: Any = data.get("function") or {}
    function = function if isinstance(function, Mapping) else getattr(function, "__dict__", {})
    name = str(function.get("name", ""))
    return {"id": str(data.get("id", "")), "name": name, "arguments": _plain(function.get("arguments"))}


def _named(agent: str) -> Step:
    return {"agent": agent} if agent and agent != "Agent" else {}


def _plain(value: Any) -> Any:
    """Any value as JSON data."""
    return json.loads(json.dumps(value, default=str))
