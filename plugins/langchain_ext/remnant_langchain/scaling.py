"""MaTTS for a LangChain agent: several runs at one task, the best answer, one lesson from comparing them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.messages.utils import convert_to_messages
from langgraph.pregel import Pregel

from remnant.errors import ConfigError
from remnant.memory import scaling as core
from remnant.memory.llm import Usage
from remnant.memory.memory import Memory
from remnant.memory.rollouts import Rollout, Scaled, Selector
from remnant_langchain._steps import task_of
from remnant_langchain.middleware import MemoryMiddleware

State = dict[str, Any]


def matts(
    agent: Pregel[Any, Any, Any, Any],
    input: Mapping[str, Any],
    n: int = 4,
    *,
    mode: core.Mode = "parallel",
    selector: Selector[State] | None = None,
    config: Mapping[str, Any] | None = None,
    context: Any = None,
    memory: Memory | None = None,
) -> Scaled[State]:
    """Run an agent with memory several times on one input and keep the best answer.

    Parallel runs have threads of their own, read one state of memory and write nothing until all have ended; then one
    distillation compares them. In a sequential group each run is asked to check and mend the one before.

    Args:
        agent: made by `create_agent` with one `MemoryMiddleware`.
        input: as for `agent.invoke`.
        n: runs, 1 to 64.
        mode: `parallel` or `sequential`.
        selector: see `remnant.memory.matts`.
        config: as for `agent.invoke`.
        context: as for `agent.invoke`.
        memory: the memory that learns from the group; left out, that of the agent's middleware.

    Raises:
        ConfigError: n or mode is not possible, or the agent does not have exactly one memory.
        RolloutsFailed: every run raised; it keeps the attempts.

    Example: matts(agent, {"messages": [("user", "book a table")]}, n=4).result["messages"][-1].text
    """
    group = _Group(agent, input, config, context)

    def run(rollout: Rollout) -> State:
        given, how = group.call(rollout, mode)
        return group.kept(agent.invoke(given, how, context=context))

    found = memory or group.memory()
    return core.matts(found, group.task, run, n, mode=mode, selector=selector, text=_answer, usage=group.usage)


async def amatts(
    agent: Pregel[Any, Any, Any, Any],
    input: Mapping[str, Any],
    n: int = 4,
    *,
    mode: core.Mode = "parallel",
    selector: Selector[State] | None = None,
    config: Mapping[str, Any] | None = None,
    context: Any = None,
    memory: Memory | None = None,
) -> Scaled[State]:
    """`matts` without blocking; runs of a parallel group are side by side on the event loop."""
    group = _Group(agent, input, config, context)

    async def run(rollout: Rollout) -> State:
        given, how = group.call(rollout, mode)
        return group.kept(await agent.ainvoke(given, how, context=context))

    found = memory or group.memory()
    return await core.amatts(found, group.task, run, n, mode=mode, selector=selector, text=_answer, usage=group.usage)


@dataclass
class _Group:
    """How the runs of one group are called."""

    agent: Any
    input: Mapping[str, Any]
    config: Mapping[str, Any] | None
    context: Any
    last: State | None = None

    def __post_init__(self) -> None:
        self.messages = convert_to_messages(self.input["messages"])
        self.task = task_of(self.messages)
        self.thread = uuid.uuid4().hex
        self.counted = {message.id for message in self.messages if message.id}

    def call(self, rollout: Rollout, mode: str) -> tuple[State, Any]:
        """Input and configuration of one run."""
        given = {**self.input, "messages": self._messages(rollout, mode)}
        asked = (self.config or {}).get("configurable") or {}
        shared = rollout.number if mode == "parallel" else 0
        options = {"group": rollout.group, "rollout": rollout.number, "write": "deferred", "as_of": rollout.as_of}
        configurable = {
            **asked,
            "thread_id": f"{self.thread}-{shared}",
            "remnant": {**(asked.get("remnant") or {}), **options},
        }
        return given, {**(self.config or {}), "configurable": configurable}

    def _messages(self, rollout: Rollout, mode: str) -> Sequence[Any]:
        if mode == "parallel" or rollout.number == 0:
            return self.messages
        asked = HumanMessage(content=rollout.prompt)
        if getattr(self.agent, "checkpointer", None):
            return [asked]
        return [*(self.last["messages"] if self.last else self.messages), asked]

    def usage(self, state: State) -> Usage:
        """What the messages of a run say of its cost; those of the run before it are counted already."""
        answers = [message for message in state.get("messages", ()) if isinstance(message, AIMessage)]
        new = [message for message in answers if message.id not in self.counted]
        self.counted.update(message.id for message in new if message.id)
        return sum((_cost(message) for message in new), Usage())

    def kept(self, result: State) -> State:
        """The result; the next run of a sequential group goes on from it."""
        self.last = result
        return result

    def memory(self) -> Memory:
        """The memory that the agent's runs read and write."""
        found = {id(item): item for item in _middlewares(self.agent)}
        if len(found) != 1:
            raise ConfigError(
                f"an agent with {len(found)} memories", accepted="one MemoryMiddleware", do="pass memory="
            )
        (middleware,) = found.values()
        return middleware.memory_of(SimpleNamespace(context=self.context), config=self.config or {})


def _middlewares(agent: Any) -> list[MemoryMiddleware]:
    """The memories among an agent's middlewares: their hooks are nodes of its graph."""
    bound = [getattr(getattr(node, "bound", None), "func", None) for node in agent.nodes.values()]
    owners = [getattr(function, "__self__", None) for function in bound]
    return [owner for owner in owners if isinstance(owner, MemoryMiddleware)]


def _answer(state: State) -> str:
    return str(state["messages"][-1].text) if state.get("messages") else ""


def _cost(message: AIMessage) -> Usage:
    used: Any = message.usage_metadata or {}
    return Usage(1, used.get("input_tokens", 0), used.get("output_tokens", 0))
