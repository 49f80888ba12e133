"""`Tracked`: a run of an agent whose every step and whose end are journaled, whichever way it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Generator
from typing import TYPE_CHECKING, Any

from workflows.errors import WorkflowCancelledByUser, WorkflowRuntimeError, WorkflowTimeoutError
from workflows.events import Event, InternalDispatchEvent

from remnant.memory import Memory, Verdict
from remnant_llamaindex._journal import Turn
from remnant_llamaindex._steps import Step, of_event

if TYPE_CHECKING:
    from remnant_llamaindex._talk import Talk

GRACE = 5.0
"""Seconds for which the events of a run that has ended are waited for."""


class Tracked(Awaitable[Any]):
    """A run that is tracked: awaited and streamed like the handler it stands for; made by `RemnantMemory.track`.

    Whatever else a handler has (`ctx`, `cancel_run`, ...) is the handler's.

    Args:
        talk: the conversation whose turn the run is.
        core: hears of faults.
        run: a workflow's handler, or any awaitable.
    """

    def __init__(self, talk: Talk, core: Memory, run: Any) -> None:
        """See the class; needs a running event loop, as the run itself does."""
        self.turn: Turn | None = talk.turn
        self._talk, self._core, self._run = talk, core, run
        self._told: asyncio.Queue[Event | None] = asyncio.Queue()
        self._consumed = False
        self._calling = False
        streams = hasattr(run, "stream_events")
        over = streams and self.turn is None and run.is_done()
        self._pump: asyncio.Task[None] | None = None
        if streams and not over:
            if self.turn is not None:
                self.turn.by_events = True
            self._pump = asyncio.ensure_future(self._pumped(run.stream_events(expose_internal=True)))
            run.stream_events = self.stream_events
        self._task = asyncio.ensure_future(self._finished())
        self._task.add_done_callback(_looked_at)

    @property
    def streams(self) -> bool:
        """Whether its steps come from events."""
        return self._pump is not None

    def __await__(self) -> Generator[Any, None, Any]:
        """The run's result, or its error."""
        return self._task.__await__()

    def __getattr__(self, name: str) -> Any:
        """The handler's."""
        return getattr(self._run, name)

    async def stream_events(self, expose_internal: bool = False) -> AsyncGenerator[Event, None]:
        """Every event of the run, once.

        Args:
            expose_internal: with those that workflows keep to themselves.

        Raises:
            WorkflowRuntimeError: they were streamed already.
        """
        if self._pump is None:
            async for event in self._run.stream_events(expose_internal=expose_internal):
                yield event
            return
        if self._consumed:
            raise WorkflowRuntimeError("All the streamed events have already been consumed.")
        while (event := await self._told.get()) is not None:
            if expose_internal or not isinstance(event, InternalDispatchEvent):
                yield event
        self._consumed = True

    async def _pumped(self, events: AsyncGenerator[Event, None]) -> None:
        try:
            async for event in events:
                self._told.put_nowait(event)
                if (step := of_event(event)) is not None:
                    await self._observed(self._marked(step))
        finally:
            self._told.put_nowait(None)

    async def _observed(self, step: Step) -> None:
        try:
            self.turn = await self._talk.observe(self.turn, step)
        except Exception as fault:  # a chat store's: the stream goes on
            self._failed(fault)

    def _marked(self, step: Step) -> Step:
        """A word after tools that were asked for and never called: the run was cut off by its limit."""
        cut = step["role"] == "assistant" and self._calling
        self._calling = bool(step.get("tool_calls"))
        return step | ({"limit": True} if cut else {})

    async def _finished(self) -> Any:
        try:
            result = await self._run
        except BaseException as error:
            await self._ended(_verdict(error), error)
            raise
        await self._ended(None, None)
        return result

    async def _ended(self, verdict: Verdict | None, error: BaseException | None) -> None:
        """The last events, then the end. The run's own result or error goes to the caller, whatever happens here."""
        try:
            if self._pump is not None:
                over = not isinstance(error, asyncio.CancelledError)  # else the run itself may go on
                await asyncio.wait({self._pump}, timeout=GRACE if over else 0.0)
                self._pump.cancel()
            steps: list[Step] = []
            if error is not None and verdict is not None and verdict.outcome == "failure":
                steps = [{"role": "agent", "content": f"The run ended with {type(error).__name__}: {error}"}]
            await self._talk.end(self, verdict, steps)
        except Exception as fault:
            self._failed(fault)

    def _failed(self, fault: Exception) -> None:
        self._core.context.emit("journal_failed", episode="", error=f"{type(fault).__name__}: {fault}")


def _looked_at(task: asyncio.Task[Any]) -> None:
    """A run whose result nobody awaits is none of asyncio's complaints, as with a handler."""
    if not task.cancelled():
        task.exception()


def _verdict(error: BaseException) -> Verdict:
    """What an exception says of a run: stopped on purpose says nothing, all else is a failure."""
    if isinstance(error, (WorkflowCancelledByUser, asyncio.CancelledError, KeyboardInterrupt, SystemExit)):
        return Verdict("unknown", "cancelled")
    limit = isinstance(error, WorkflowTimeoutError) or (
        isinstance(error, WorkflowRuntimeError) and "max iterations" in str(error).lower()
    )
    return Verdict("failure", "limit" if limit else "exception")
