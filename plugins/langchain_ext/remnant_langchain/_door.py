"""What stands behind the hooks of the middleware: whose memory, what to recall, and how faults are kept away."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from langchain.agents.middleware import ModelRequest

from remnant.memory.memory import Memory
from remnant.memory.record import Hit, new_id
from remnant.memory.verdict import Judge
from remnant_langchain import _recorder as recorder
from remnant_langchain._options import Options, Scope, can_resume, options_of, run_options, scope_of
from remnant_langchain._prompt import Position, hidden, looked_up, shown_ids, with_block
from remnant_langchain._recorder import Run
from remnant_langchain._steps import Step, cleaned, has_refusals, shown_step, task_of, tool_steps
from remnant_langchain._timebox import Timebox
from remnant_langchain.callback import announce

T = TypeVar("T")

MOST_SCOPES = 1024
"""Scopes whose memory is kept ready; the one used longest ago goes first. They share one store and worker."""


@dataclass(frozen=True)
class Settings:
    """What a middleware was given; see `MemoryMiddleware`."""

    explicit: Scope | Callable[[Any], Scope] | None
    multi_tenant: bool
    verdict: Judge
    k: int
    budget_tokens: int | None
    position: Position
    record: bool
    recall_seconds: float
    record_seconds: float
    end_seconds: float
    redact: Callable[[str], str]


@dataclass(frozen=True)
class Plan:
    """A run that is about to begin."""

    run: Run
    task: str
    options: Options
    stale: str
    metadata: Mapping[str, Any]


class Door:
    """One memory of one agent. Holds nothing of a run: many run at once."""

    def __init__(self, name: str, memory: Memory, settings: Settings) -> None:
        """Of a middleware with that name."""
        self.name, self.memory, self.settings = name, memory, settings
        self._box, self._lock = Timebox(), threading.Lock()
        self._scopes: OrderedDict[str, Memory] = OrderedDict({memory.scope: memory})

    def memory_of(self, runtime: Any, options: Options | None) -> Memory:
        """The memory of a run's scope; see `scope_of`."""
        scope = scope_of(self.settings.explicit, options, runtime, self.settings.multi_tenant)
        with self._lock:
            if found := self._scopes.get(scope):
                self._scopes.move_to_end(scope)
                return found
        made = self.memory.scoped(scope)
        with self._lock:
            self._scopes[scope] = made
            while len(self._scopes) > MOST_SCOPES:
                self._scopes.popitem(last=False)
        return made

    def guarded(self, memory: Memory, what: str, job: Callable[[], T] | None, seconds: float = 0.0) -> Any:
        """A job's result, or None and an event such as `recall_failed`.

        Args:
            memory: where it happens.
            what: `recall`, or `record` for what writes.
            job: None does nothing.
            seconds: how long it may take; 0 is the setting for `what`.
        """
        if job is None:
            return None
        try:
            return self._box.run(job, seconds or self._seconds(what))
        except Exception as error:  # whatever memory does, the agent goes on
            _report(memory, what, error)

    async def aguarded(self, memory: Memory, what: str, job: Callable[[], T] | None, seconds: float = 0.0) -> Any:
        """`guarded` without blocking the event loop."""
        if job is None:
            return None
        try:
            return await self._box.arun(job, seconds or self._seconds(what))
        except Exception as error:
            _report(memory, what, error)

    def _seconds(self, what: str) -> float:
        return self.settings.recall_seconds if what == "recall" else self.settings.record_seconds

    def plan(self, state: Mapping[str, Any], runtime: Any) -> Plan | None:
        """What a new run is about; None if it wants no memory.

        Raises:
            ConfigError: the run's options are wrong, or do not say whose memory it is.
        """
        options = run_options()
        memory = self.memory_of(runtime, options)
        options = options or Options()
        if options.off:
            return None
        info = getattr(runtime, "execution_info", None)
        thread, nested = getattr(info, "thread_id", None), "|" in (getattr(info, "checkpoint_ns", "") or "")
        metadata: dict[str, Any] = {"host": "langchain", "memory": self.name}
        metadata |= {"thread": thread} if thread else {}
        metadata |= {"rollout": options.rollout} if options.rollout is not None and not nested else {}
        recorded = self.settings.record and options.write != "off"
        run = Run(memory, new_id() if recorded else "", resumable=can_resume(thread))
        stale = _entry(state, self.name).get("episode") or ""
        return Plan(run, self.settings.redact(task_of(state["messages"])), options, stale, metadata)

    def opening(self, plan: Plan) -> Callable[[], bool] | None:
        """The job that begins to journal a run; None for one that is not recorded."""
        run, options = plan.run, plan.options
        if not run.episode:
            return None
        group = options.group or (run.episode if options.write == "deferred" else "")

        def job() -> bool:
            if plan.stale:
                recorder.leave_behind(run.memory, plan.stale)
            recorder.open_run(run.memory, plan.task, run.episode, group, plan.metadata, run.resumable)
            return True

        return job

    def opened(self, plan: Plan, done: bool | None) -> Plan:
        """The plan as it is after opening: what could not be opened is not recorded."""
        return plan if done else replace(plan, run=replace(plan.run, episode=""))

    def recalling(self, plan: Plan) -> Callable[[], list[Hit]]:
        """The job that recalls for a run."""
        return partial(plan.run.memory.recall, plan.task, **self._limits(plan))

    async def arecalled(self, plan: Plan) -> list[Hit] | None:
        """What `recalling` gives, with the embedder's own async half if there is an embedder."""
        memory = plan.run.memory
        if memory.context.embedder is None:
            return await self.aguarded(memory, "recall", self.recalling(plan))
        try:
            recall = memory.arecall(plan.task, **self._limits(plan))
            return await asyncio.wait_for(recall, self.settings.recall_seconds)
        except Exception as error:
            _report(memory, "recall", error)
            return None

    def _limits(self, plan: Plan) -> dict[str, Any]:
        options, given = plan.options, self.settings
        return {
            "k": options.k or given.k,
            "budget_tokens": options.budget_tokens or given.budget_tokens,
            "as_of": options.as_of,
            "episode": plan.run.episode or None,
        }

    def begun(self, plan: Plan, hits: Sequence[Hit] | None, runtime: Any) -> dict[str, Any]:
        """Tell of a run that has begun; what the state keeps of it."""
        run = replace(plan.run, ids=tuple(hit.id for hit in hits or ()))
        announce(run)
        self._tell(runtime, "retrieved", run, run.ids)
        return {"remnant": {self.name: {"episode": run.episode, "ids": list(run.ids)}}}

    def run_of(self, state: Any, runtime: Any) -> Run | None:
        """The run that a state belongs to; None where this memory takes no part in it.

        A state may come from an older checkpoint that knows no memory, or from one of another scope: the store
        finds nothing under such an id.
        """
        entry = _entry(state, self.name)
        if not entry:
            return None
        options = run_options()
        if options is not None and options.off:
            return None
        memory = self.memory_of(runtime, options)
        thread = getattr(getattr(runtime, "execution_info", None), "thread_id", None)
        run = Run(memory, str(entry.get("episode") or ""), tuple(entry.get("ids") or ()), can_resume(thread))
        announce(run)
        return run

    def preparing(self, run: Run, request: ModelRequest[Any]) -> Callable[[], ModelRequest[Any]] | None:
        """The job that puts memories into a request; None if there are none to put."""
        refused = bool(run.episode) and has_refusals(request.messages)
        if not run.ids and not refused and not any(shown_ids(message) for message in request.messages):
            return None

        def job() -> ModelRequest[Any]:
            if refused:
                recorder.observe_unseen(run, request.messages, self._clean)
            found = looked_up(request.messages, partial(recorder.rendered, run.memory))
            filled = request if found is None else request.override(messages=found)
            return with_block(filled, recorder.rendered(run.memory, run.ids), self.settings.position)

        return job

    def seeing(self, run: Run, steps: Sequence[Step], *, tool: bool = False) -> Callable[[], None] | None:
        """The job that records steps; None for a run that is not recorded."""
        clean = [self._clean(step) for step in steps]
        return partial(recorder.observe_tool if tool else recorder.observe, run, clean) if run.episode else None

    def failing(self, run: Run, step: Step) -> Callable[[], None] | None:
        """The job that closes a run that raised; None for one that is not recorded."""
        return partial(recorder.fail, run, self._clean(step)) if run.episode else None

    def tool_result(self, request: Any, result: Any) -> tuple[list[Step], Any]:
        """Steps for a tool's result, and the result as the state may keep it: without texts of memory."""
        if ids := shown_ids(result):
            return [shown_step(request.tool_call, ids)], hidden(result)
        return tool_steps(request.tool_call, result), result

    def finishing(self, run: Run, state: Mapping[str, Any]) -> Callable[[], list[str]] | None:
        """The job that closes a run at its end; None for one that is not recorded."""
        if not run.episode:
            return None
        return partial(recorder.finish, run, state["messages"], self.settings.verdict, self._clean)

    def ended(self, run: Run, learnt: list[str] | None, runtime: Any) -> None:
        """Tell of a run that has ended; `learnt` is None if it could not be closed."""
        if learnt is not None:
            self._tell(runtime, "queued", run, ())
        if learnt:
            self._tell(runtime, "stored", run, learnt)

    def bound(self, runtime: Any) -> tuple[Memory, str, Options]:
        """For a tool: the memory of its run, the run's episode or "", and its options."""
        config = getattr(runtime, "config", None) or {}
        options = options_of(config.get("configurable"))
        episode = _entry(getattr(runtime, "state", None), self.name).get("episode") or ""
        return self.memory_of(runtime, options), episode, options

    def _clean(self, step: Step) -> Step:
        return cleaned(step, self.settings.redact)

    def _tell(self, runtime: Any, event: str, run: Run, ids: Sequence[str]) -> None:
        told = {"event": event, "memory": self.name, "episode": run.episode, "ids": list(ids)}
        runtime.stream_writer({"remnant": told})


def _entry(state: Any, name: str) -> Mapping[str, Any]:
    """What a state keeps for a memory; empty if it keeps nothing of it."""
    kept = state.get("remnant") if isinstance(state, Mapping) else getattr(state, "remnant", None)
    entry = kept.get(name) if isinstance(kept, Mapping) else None
    return entry if isinstance(entry, Mapping) else {}


def _report(memory: Memory, what: str, error: Exception) -> None:
    memory.context.emit(f"{what}_failed", error=f"{type(error).__name__}: {error}"[:500])
