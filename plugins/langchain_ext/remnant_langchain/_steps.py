"""Messages of LangChain as steps of an episode; the keys are those of `remnant.memory.verdict`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage

Step = dict[str, Any]

SHOWN = "remnant"
"""Key of a tool result's artifact that names the memories which were shown: `{"remnant": [ids]}`."""

_LIMIT = re.compile(r"\b(?:model|tool|'[^']*') calls? limits? (?:exceeded|reached)", re.IGNORECASE)


def task_of(messages: Sequence[BaseMessage]) -> str:
    """What was asked: the text of the last message of a person."""
    found = next((message for message in reversed(messages) if isinstance(message, HumanMessage)), None)
    return str(found.text) if found else ""


def model_steps(response: Any) -> list[Step]:
    """What a model call gave: a `ModelResponse`, one with a command, or a message."""
    response = getattr(response, "model_response", response)
    messages = [response] if isinstance(response, BaseMessage) else response.result
    return [message_step(message) for message in messages]


def message_step(message: BaseMessage) -> Step:
    """One message that an agent wrote, or a tool."""
    if isinstance(message, ToolMessage):
        step: Step = {"role": "tool", "name": message.name or "", "content": str(message.text)}
        return step | {"error": True} if message.status == "error" else step
    step = {"role": "assistant", "content": str(message.text)}
    if isinstance(message, AIMessage) and message.tool_calls:
        step["tool_calls"] = [{"name": call["name"], "arguments": call["args"]} for call in message.tool_calls]
    return step


def tool_steps(call: Mapping[str, Any], result: Any) -> list[Step]:
    """What a tool call gave: a message, or a command with messages in it."""
    messages = [result] if isinstance(result, BaseMessage) else _carried(result)
    about = {"name": call["name"], "arguments": call["args"]}
    found = [message_step(message) | about for message in messages if isinstance(message, ToolMessage)]
    return found or [{"role": "tool", "content": "", **about}]


def shown_step(call: Mapping[str, Any], ids: Sequence[str]) -> Step:
    """Memories that a tool looked up: their ids, since memory is not learnt from again."""
    return {"role": "tool", "name": call["name"], "content": " ".join(ids), "injected": True}


def fault_step(role: str, error: BaseException, call: Mapping[str, Any] | None = None) -> Step:
    """A model or a tool that raised."""
    about = {"name": call["name"], "arguments": call["args"]} if call else {}
    return {"role": role, "content": f"{type(error).__name__}: {error}", "error": True, **about}


def final_step(
    messages: Sequence[AnyMessage], steps: Sequence[Mapping[str, Any]], clean: Callable[[Step], Step]
) -> Step | None:
    """The answer, where no model call gave it but a middleware that ended the run; None if it is known already."""
    last = messages[-1] if messages else None
    if not isinstance(last, AIMessage):
        return None
    told = [step for step in steps if step.get("role") == "assistant"]
    step = clean({"role": "assistant", "content": str(last.text)})
    if told and not told[-1].get("error") and told[-1].get("content") == step["content"]:
        return None
    return step | {"limit": True} if _LIMIT.search(str(last.text)) else step


def unseen_steps(
    messages: Sequence[AnyMessage], steps: Sequence[Mapping[str, Any]], clean: Callable[[Step], Step]
) -> list[Step]:
    """Refusals that no tool gave: a person who rejected a call, or a limit on calls."""
    new = [clean(message_step(message)) for message in _refused(messages)]
    known = {(step.get("name"), step.get("content")) for step in steps if step.get("role") == "tool"}
    return [step for step in new if (step["name"], step["content"]) not in known]


def has_refusals(messages: Sequence[AnyMessage]) -> bool:
    """Whether `unseen_steps` may find any."""
    return bool(_refused(messages))


def cleaned(step: Step, redact: Callable[[str], str]) -> Step:
    """A step whose texts went through a function, at any depth."""
    return {name: _clean(value, redact) for name, value in step.items()}


def _clean(value: Any, redact: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: _clean(item, redact) for key, item in value.items()}
    return [_clean(item, redact) for item in value] if isinstance(value, (list, tuple)) else value


def _refused(messages: Sequence[AnyMessage]) -> list[ToolMessage]:
    """Tool messages of an error since the last answer of the model."""
    found: list[ToolMessage] = []
    for message in reversed(messages):
        if not isinstance(message, ToolMessage):
            break
        if message.status == "error":
            found.append(message)
    return found[::-1]


def _carried(command: Any) -> list[Any]:
    update = getattr(command, "update", None)
    carried = update.get("messages", []) if isinstance(update, Mapping) else []
    return carried if isinstance(carried, list) else [carried]
