"""Runs that die where no middleware sees it: a recursion limit, a cancellation, another node's fault.

Attach it where the agent is called: `agent.invoke(input, {"callbacks": [memory_callback(middleware)]})`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langgraph.config import get_config
from langgraph.errors import GraphBubbleUp, GraphRecursionError

from remnant.errors import RemnantError
from remnant.memory.memory import Memory
from remnant.memory.verdict import Verdict
from remnant_langchain._recorder import Run

if TYPE_CHECKING:
    from remnant_langchain.middleware import MemoryMiddleware


def memory_callback(memory_or_middleware: Memory | MemoryMiddleware) -> MemoryCallback:
    """A callback that closes the episodes of runs that die; for `invoke`, `ainvoke`, `stream` and `batch`.

    One object serves any number of runs at once.

    Args:
        memory_or_middleware: whose episodes; in every scope.
    """
    found = memory_or_middleware
    return MemoryCallback(found if isinstance(found, Memory) else found.memory)


class MemoryCallback(BaseCallbackHandler):
    """See `memory_callback`. Handlers of this kind run in a thread where the run is async."""

    def __init__(self, memory: Memory) -> None:
        """See `memory_callback`."""
        self._memory, self._lock = memory, threading.Lock()
        self._parents: dict[UUID, tuple[UUID | None, str]] = {}
        self._open: dict[UUID, dict[str, Run]] = {}

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **rest: Any
    ) -> None:
        """Remember who called whom."""
        place = (rest.get("metadata") or {}).get("langgraph_checkpoint_ns", "")
        with self._lock:
            self._parents[run_id] = (parent_run_id, place)

    def watch(self, node: UUID | None, run: Run) -> None:
        """Close an episode if the agent's run, which a node with this id belongs to, dies."""
        if run.memory.store is not self._memory.store:
            return
        with self._lock:
            agent = self._agent_of(node)
            if agent is not None:
                self._open.setdefault(agent, {})[run.episode] = run

    def _agent_of(self, node: UUID | None) -> UUID | None:
        """The nearest run above a node that is not in the same place of the graph: the graph itself."""
        place = self._parents.get(node, (None, ""))[1] if node else ""
        while node is not None and node in self._parents:
            parent, here = self._parents[node]
            if here != place:
                return node
            node = parent
        return None

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **rest: Any) -> None:
        """Forget a run; one that pauses for a person ends here, and its episode stays open."""
        self._left(run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **rest: Any) -> None:
        """Close what a run that dies left open; its own hooks were first where they saw the reason."""
        for run in self._left(run_id):
            if isinstance(error, GraphBubbleUp):
                continue
            try:
                run.memory.close_episode(run.episode, *_ended(error))
            except RemnantError as fault:
                run.memory.context.emit("record_failed", episode=run.episode, error=str(fault))

    def _left(self, run_id: UUID) -> list[Run]:
        with self._lock:
            self._parents.pop(run_id, None)
            return list(self._open.pop(run_id, {}).values())


def announce(run: Run) -> None:
    """Tell the callbacks of the run that this code is part of which episode it has."""
    if not run.episode:
        return
    try:
        manager: Any = get_config().get("callbacks")
    except RuntimeError:
        return
    for handler in getattr(manager, "handlers", None) or ():
        if isinstance(handler, MemoryCallback):
            handler.watch(getattr(manager, "parent_run_id", None), run)


def _ended(error: BaseException) -> Verdict:
    """A run that was called off shows nothing; one that hit its limit, or a fault, failed."""
    if not isinstance(error, Exception):
        return Verdict("unknown", "cancelled")
    return Verdict("failure", "limit" if isinstance(error, GraphRecursionError) else "exception")
