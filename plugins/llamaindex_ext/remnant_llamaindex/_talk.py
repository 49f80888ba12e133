"""One conversation as a `RemnantMemory` sees it: which turn is running, and what it asks memory for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage

from remnant.memory import Memory, Rollout, Verdict
from remnant_llamaindex._journal import Journal, Turn
from remnant_llamaindex._steps import Step, is_final, of_messages, role_of, text_of
from remnant_llamaindex.block import Ask

if TYPE_CHECKING:
    from remnant_llamaindex.tracking import Tracked


class Talk:
    """Turns of one conversation; a user's words begin one, an answer ends it.

    Args:
        core: gives new ids.
        journal: where turns are written.
        session: names the conversation.
        history: the messages so far.
    """

    def __init__(
        self, core: Memory, journal: Journal, session: str, history: Callable[[], Awaitable[list[ChatMessage]]]
    ) -> None:
        """See the class."""
        self.ask: Ask | None = None
        self.rollout: tuple[str, Rollout] | None = None
        self.tracked: Tracked | None = None
        self.turn: Turn | None = None
        self._core, self._journal, self._session, self._history = core, journal, session, history
        self._said = self._waiting = ""
        self._before: ChatMessage | None = None
        self._finding: asyncio.Future[None] | None = None

    async def saw(self, messages: Sequence[ChatMessage]) -> None:
        """Messages that were kept."""
        run: list[ChatMessage] = []
        begun = self._before
        for message in messages:
            role = role_of(message, self._before)
            if role == "user":
                await self._grow(run, begun)
                await self._begin(text_of(message))
                run, begun = [], message
            elif role != "system":
                run.append(message)
            self._before = message
        await self._grow(run, begun)

    def replaced(self, messages: Sequence[ChatMessage]) -> None:
        """Another history; one that ends with the user's words begins a turn when it is read."""
        self._before = messages[-1] if messages else None
        last = messages[-2] if len(messages) > 1 else None
        asked = self._before is not None and role_of(self._before, last) == "user"
        self._waiting = text_of(messages[-1]) if asked else ""

    async def asked(self, text: str | None) -> Ask | None:
        """What memory is asked while the history is read.

        Args:
            text: what the reader asks about, where it says so; None is the running turn.
        """
        if self._waiting:
            await self._begin(self._waiting)
        if not text or (self.ask is not None and text in (self._said, self.ask.question)):
            return self.ask
        return Ask(text, f"{self._session}:{text}")

    async def reset(self) -> None:
        """Begin anew, as if nothing had been said."""
        await self.abandon("reset")
        self.ask, self._said, self._waiting, self._before = None, "", "", None

    async def abandon(self, source: str) -> None:
        """End a turn that nobody answered."""
        turn, self.turn = self.turn, None
        if turn is not None and not turn.closed:
            await self._journal.close(turn, Verdict("unknown", source))

    async def observe(self, turn: Turn | None, step: Step) -> Turn:
        """A step that a tracked run's event tells; the turn it went to."""
        turn = turn or await self._running()
        turn.by_events = True
        if not turn.closed:  # one that another user turn has superseded takes no more
            await self._journal.add(turn, step)
        return turn

    async def end(self, tracked: Tracked, verdict: Verdict | None, steps: Sequence[Step]) -> None:
        """The end of a tracked run; without a verdict the judge is asked."""
        self.tracked = None if self.tracked is tracked else self.tracked
        turn = tracked.turn
        if turn is not None and not turn.closed:
            self.turn = None if self.turn is turn else self.turn
            await self._journal.close(turn, verdict, steps)

    async def _grow(self, messages: Sequence[ChatMessage], before: ChatMessage | None) -> None:
        """What an agent hands over: steps of the running turn, its last word among them or not."""
        if not messages:
            return
        turn = await self._running()
        if turn.by_events:
            return
        steps = of_messages(messages, before)
        if is_final(messages[-1]):
            self.turn = None
            await self._journal.close(turn, None, steps)
        else:
            await self._journal.add(turn, *steps)

    async def _running(self) -> Turn:
        """The running turn, found once: a tracked run's events and messages may ask for it side by side."""
        if self.turn is None:
            self._finding = finding = self._finding or asyncio.ensure_future(self._found())
            try:
                await asyncio.shield(finding)
            finally:
                self._finding = None if self._finding is finding else self._finding
        assert self.turn is not None
        return self.turn

    async def _found(self) -> None:
        """A run that goes on in a new process goes on with its episode, or begins one."""
        if self.ask is None and (left := await self._journal.last(self._session)):
            self.turn, self._said, self.ask = left, left.task, Ask(left.task, left.id, left.id)
            self._follow(left)
            return
        history = await self._history()
        pairs = zip(history, [None, *history], strict=False)
        said = [text_of(message) for message, before in pairs if role_of(message, before) == "user"]
        await self._begin(said[-1] if said else "")

    async def _begin(self, said: str) -> None:
        await self.abandon("superseded")
        task, rollout = self.rollout or (said, None)
        metadata: dict[str, Any] = {"host": "llamaindex", "session": self._session}
        metadata |= {"rollout": rollout.number} if rollout else {}
        group, as_of = (rollout.group, rollout.as_of) if rollout else ("", None)
        turn = Turn(self._core.context.new_id(), task or "(no text)", group, metadata)
        self.turn, self._said, self._waiting = turn, said, ""
        self.ask = Ask(task, turn.id, turn.id, as_of)
        self._follow(turn)
        if said and said == task:  # a strategy of facts learns from what the user says, not from what was asked alone
            turn.unsaved.append({"role": "user", "content": said})
        await self._journal.open(turn)

    def _follow(self, turn: Turn) -> None:
        """Let the tracked run, if there is one without a turn, be this turn's."""
        if self.tracked is not None and (self.tracked.turn is None or self.tracked.turn.closed):
            self.tracked.turn, turn.by_events = turn, self.tracked.streams
