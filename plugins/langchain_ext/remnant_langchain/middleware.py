"""The main door: a middleware that recalls before a run, records it step by step, and learns from it afterwards.

Put it first in the list: it is then the outermost, sees what retries and fallbacks made of a call, and
ends last. A fault of the memory never reaches the agent; what the agent raises is recorded and raised again.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest
from langchain.agents.middleware.types import PrivateStateAttr, TracePolicy, omit_payload
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp
from langgraph.runtime import Runtime
from typing_extensions import NotRequired

from remnant.errors import ConfigError, unknown
from remnant.memory.llm import ChatModel, Embedder
from remnant.memory.memory import Memory
from remnant.memory.record import DEFAULT_SCOPE
from remnant.memory.strategy import Strategy
from remnant.memory.verdict import Wanted, judge_of
from remnant_langchain._door import Door, Settings
from remnant_langchain._options import Scope, check_count, options_of, run_options
from remnant_langchain._prompt import Position
from remnant_langchain._steps import fault_step, model_steps
from remnant_langchain.models import AgentModel, as_embedder, as_llm

PATIENT_SECONDS = 300.0
"""How long the end of a run waits where it asks a model: `write="inline"`, or a verdict that is not a rule."""


def merged(old: dict[str, Any] | None, new: dict[str, Any] | None) -> dict[str, Any]:
    """The reducer of the state key: memories stacked in one agent each have their own entry."""
    return {**(old or {}), **(new or {})}


class MemoryState(AgentState[Any]):
    """The agent's state with what this memory keeps in it: ids, never texts, for a checkpoint keeps all it sees."""

    remnant: NotRequired[Annotated[dict[str, Any], PrivateStateAttr, merged]]


class MemoryMiddleware(AgentMiddleware[MemoryState, Any]):
    """Gives an agent a memory that learns from its runs.

    Args:
        path_or_memory: a file or address, or a `Memory` that is open already; then its strategy, models and
            way of writing stand, and its scope unless `multi_tenant` or `scope` says otherwise.
        strategy: how it learns: a name or an object; `facts` if left out.
        scope: whose memory: a name, names such as `{"tenant": "a"}`, or a function of the runtime. Left out, a run
            says it: `configurable["remnant"]["namespace"]`, then `context.user_id`, then the server's user;
            where nothing says it, the scope is `default`.
        multi_tenant: raise instead of using the scope `default`.
        llm: the memory's model; None is the agent's own, from its first call on.
        embedder: None searches by words only.
        verdict: how a run ended: `rules`, `judge` (the memory's model is asked before the run is over), `manual`
            (later, by `memory.feedback`), or a function of the episode that returns a `Verdict` or an outcome.
        k: records recalled for a run at most.
        budget_tokens: tokens of all of them together at most.
        position: `system`, at the end of the system message, or `user`, before the last question.
        tools: give the agent tools that search, save, update and forget.
        write: when runs are learnt from: in the `background`, `inline` before the run is over, or `manual`, on
            `memory.flush`; `off` recalls only. Background if left out.
        recall_seconds: a recall that takes longer gives nothing.
        record_seconds: the agent waits no longer for the journal; what is late is written all the same.
        redact: applied to every text before it is searched for or recorded, for example to remove names.
        label: names this memory among several of one agent; left out, it is made of file and strategy.
        settings: further settings of `Memory.open`.

    Attributes:
        memory: the memory, for `feedback`, `flush`, `forget` and the rest.

    Raises:
        ConfigError: a setting that there is not, or that the given memory has made already.
        StoreError: the file cannot be opened.

    Example: create_agent(model, tools, middleware=[MemoryMiddleware("agent.db", strategy="reasoningbank")])
    """

    state_schema = MemoryState
    trace_policy = TracePolicy(process_inputs=omit_payload)

    def __init__(
        self,
        path_or_memory: str | Path | Memory,
        strategy: str | Strategy | None = None,
        *,
        scope: Scope | Callable[[Any], Scope] | None = None,
        multi_tenant: bool = False,
        llm: ChatModel | Runnable[Any, Any] | str | None = None,
        embedder: Embedder | Embeddings | None = None,
        verdict: Wanted = "rules",
        k: int = 8,
        budget_tokens: int | None = None,
        position: Position = "system",
        tools: bool = False,
        write: Literal["background", "inline", "manual", "off"] | None = None,
        recall_seconds: float = 2.0,
        record_seconds: float = 15.0,  # longer than SQLite waits for another writer
        redact: Callable[[str], str] | None = None,
        label: str | None = None,
        **settings: Any,
    ) -> None:
        """See the class."""
        super().__init__()
        check_count("k", k)
        check_count("budget_tokens", budget_tokens)
        if position not in ("system", "user"):
            raise unknown("position", str(position), ("system", "user"))
        own = AgentModel() if llm is None and not isinstance(path_or_memory, Memory) else None
        base = None if callable(scope) else scope
        made = {"llm": own or as_llm(llm), "embedder": as_embedder(embedder), **settings}
        mode = None if write == "off" else write
        self.memory = _opened(path_or_memory, strategy, base, mode, made)
        if scope is None and isinstance(path_or_memory, Memory) and not multi_tenant:
            scope = self.memory.scope
        known = judge_of(verdict, self.memory.context.llm)
        asks = verdict not in ("rules", "manual") or mode == "inline" or isinstance(path_or_memory, Memory)
        self._agent_model, self._label = own, _plain(label or _label(path_or_memory, self.memory))
        self._door = Door(
            self.name,
            self.memory,
            Settings(
                explicit=scope,
                multi_tenant=multi_tenant,
                verdict=known,
                k=k,
                budget_tokens=budget_tokens,
                position=position,
                record=write != "off",
                recall_seconds=recall_seconds,
                record_seconds=record_seconds,
                end_seconds=PATIENT_SECONDS if asks else record_seconds,
                redact=redact or _unchanged,
            ),
        )
        self.tools: Sequence[BaseTool] = _tools(self) if tools else []

    @property
    def name(self) -> str:
        """`Remnant[label]`: the names of an agent's middlewares differ."""
        return f"Remnant[{self._label}]"

    @property
    def door(self) -> Door:
        """What the hooks stand on; for tools and drivers of this package."""
        return self._door

    def memory_of(self, runtime: Any = None, *, config: Mapping[str, Any] | None = None) -> Memory:
        """The memory of the scope that a run reads and writes.

        Args:
            runtime: the run's, or anything with its `context`.
            config: the run's; left out, that of the run which this code is part of, if any.

        Raises:
            ConfigError: nobody says whose memory it is; see the class.
        """
        options = run_options() if config is None else options_of(config.get("configurable"))
        return self._door.memory_of(runtime, options)

    def before_agent(self, state: MemoryState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Open an episode and recall for it."""
        door, plan = self._door, self._door.plan(state, runtime)
        if plan is None:
            return {"remnant": {self.name: {}}}
        plan = door.opened(plan, door.guarded(plan.run.memory, "record", door.opening(plan)))
        hits = door.guarded(plan.run.memory, "recall", door.recalling(plan))
        return door.begun(plan, hits, runtime)

    async def abefore_agent(self, state: MemoryState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """See `before_agent`."""
        door, plan = self._door, self._door.plan(state, runtime)
        if plan is None:
            return {"remnant": {self.name: {}}}
        plan = door.opened(plan, await door.aguarded(plan.run.memory, "record", door.opening(plan)))
        return door.begun(plan, await door.arecalled(plan), runtime)

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        """Show what was recalled; record what the model answers or raises."""
        door, run = self._door, self._door.run_of(request.state, request.runtime)
        if self._agent_model is not None:
            self._agent_model.meet(request.model)
        if run is None:
            return handler(request)
        prepared = door.guarded(run.memory, "recall", door.preparing(run, request))
        try:
            response = handler(prepared or request)
        except GraphBubbleUp:
            raise
        except Exception as error:
            door.guarded(run.memory, "record", door.failing(run, fault_step("assistant", error)))
            raise
        door.guarded(run.memory, "record", door.seeing(run, model_steps(response)))
        return response

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        """See `wrap_model_call`."""
        door, run = self._door, self._door.run_of(request.state, request.runtime)
        if self._agent_model is not None:
            self._agent_model.meet(request.model)
        if run is None:
            return await handler(request)
        prepared = await door.aguarded(run.memory, "recall", door.preparing(run, request))
        try:
            response = await handler(prepared or request)
        except GraphBubbleUp:
            raise
        except Exception as error:
            await door.aguarded(run.memory, "record", door.failing(run, fault_step("assistant", error)))
            raise
        await door.aguarded(run.memory, "record", door.seeing(run, model_steps(response)))
        return response

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Record what a tool gives or raises."""
        door, run = self._door, self._door.run_of(request.state, request.runtime)
        if run is None:
            return handler(request)
        try:
            result = handler(request)
        except GraphBubbleUp:
            raise
        except Exception as error:
            door.guarded(run.memory, "record", door.failing(run, fault_step("tool", error, request.tool_call)))
            raise
        steps, kept = door.tool_result(request, result)
        door.guarded(run.memory, "record", door.seeing(run, steps, tool=True))
        return kept

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """See `wrap_tool_call`."""
        door, run = self._door, self._door.run_of(request.state, request.runtime)
        if run is None:
            return await handler(request)
        try:
            result = await handler(request)
        except GraphBubbleUp:
            raise
        except Exception as error:
            fault = door.failing(run, fault_step("tool", error, request.tool_call))
            await door.aguarded(run.memory, "record", fault)
            raise
        steps, kept = door.tool_result(request, result)
        await door.aguarded(run.memory, "record", door.seeing(run, steps, tool=True))
        return kept

    def after_agent(self, state: MemoryState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Close the episode; it is distilled later."""
        door, run = self._door, self._door.run_of(state, runtime)
        if run is not None and (end := door.finishing(run, state)):
            door.ended(run, door.guarded(run.memory, "record", end, door.settings.end_seconds), runtime)

    async def aafter_agent(self, state: MemoryState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """See `after_agent`."""
        door, run = self._door, self._door.run_of(state, runtime)
        if run is not None and (end := door.finishing(run, state)):
            door.ended(run, await door.aguarded(run.memory, "record", end, door.settings.end_seconds), runtime)


def _opened(
    path_or_memory: str | Path | Memory,
    strategy: str | Strategy | None,
    scope: Scope | None,
    write: Any,
    made: dict[str, Any],
) -> Memory:
    """The memory: as it is given, or opened with what was given for it."""
    if not isinstance(path_or_memory, Memory):
        where = {"scope": scope if scope is not None else DEFAULT_SCOPE, "write": write or "background"}
        return Memory.open(path_or_memory, strategy or "facts", **where, **made)
    for name, value in {"strategy": strategy, "write": write, **made}.items():
        if value is not None:
            raise ConfigError(f"{name}= together with a memory that is open", do="give it to Memory.open")
    return path_or_memory if scope is None else path_or_memory.scoped(scope)


def _tools(middleware: MemoryMiddleware) -> list[BaseTool]:
    from remnant_langchain.tools import memory_tools

    return memory_tools(middleware)


def _label(path_or_memory: str | Path | Memory, memory: Memory) -> str:
    if isinstance(path_or_memory, Memory):
        return memory.strategy.name
    return f"{Path(str(path_or_memory)).stem}-{memory.strategy.name}"


def _plain(label: str) -> str:
    """A label as it may stand in the name of a node."""
    return re.sub(r"[^\w-]+", "-", label).strip("-") or "memory"


def _unchanged(text: str) -> str:
    return text
