"""One conversation's way into the journal: episodes are opened, grown and closed, and no fault reaches the agent.

What the store does not take is kept, in order, and offered again with the next write. What takes it too long goes on by
itself.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remnant.errors import ConfigError
from remnant.memory import Episode, Judge, Memory, Verdict
from remnant_llamaindex._steps import Step

MOST_UNSAVED = 1000
"""Steps of one episode that wait for the store at most; later ones are lost, and an event says so."""

MOST_UNCLOSED = 32
"""Episodes that wait to be closed at most; the oldest go first, and are closed by the next start of the process."""

LOOKS_BACK = 200
"""Episodes among which a conversation that goes on in a new process looks for its last one."""


@dataclass
class Turn:
    """One user turn and the episode it is kept as.

    Args:
        id: the episode's.
        task: what the user asked.
        group: the group of rollouts it belongs to; empty if none.
        metadata: the episode's.
        by_events: its steps come from a tracked run's events, so messages add none.
        opened: the store has the episode.
        closed: nothing more is to come.
        unsaved: steps that the store does not have yet.
    """

    id: str
    task: str
    group: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    by_events: bool = False
    opened: bool = False
    closed: bool = False
    unsaved: deque[Step] = field(default_factory=deque[Step])
    lock: threading.Lock = field(default_factory=threading.Lock)


class Journal:
    """Writes turns; every method returns normally, whatever the store does.

    Args:
        memory: where the episodes go.
        judge: asked how an episode ended where nothing else says so.
        timeout: seconds that a write may hold up the agent; None waits for ever.
    """

    def __init__(self, memory: Memory, judge: Judge, timeout: float | None = None) -> None:
        """See the class."""
        self.judge, self._memory, self._timeout = judge, memory, timeout
        self._unclosed: deque[tuple[Turn, Verdict | None]] = deque(maxlen=MOST_UNCLOSED)
        self._lock = threading.Lock()
        self._busy = 0

    async def open(self, turn: Turn) -> None:
        """Begin an episode, after whatever still waits."""
        await self._again()
        await self._write(turn)

    async def add(self, turn: Turn, *steps: Step) -> None:
        """Append steps."""
        self._queue(turn, steps)
        if not turn.lock.locked():  # a write that is late takes them along
            await self._write(turn)

    async def close(self, turn: Turn, verdict: Verdict | None = None, steps: Sequence[Step] = ()) -> None:
        """End an episode after its last steps; without a verdict the judge is asked."""
        self._queue(turn, steps)
        turn.closed = True
        await self._write(turn, True, verdict)

    async def settle(self, timeout: float) -> bool:
        """Offer what waits once more; False if the store has not taken all within the time (seconds)."""
        end = time.monotonic() + timeout
        await self._again()
        while self._busy and time.monotonic() < end:
            await asyncio.sleep(0.01)
        return not self._busy and not self._unclosed

    async def last(self, session: str) -> Turn | None:
        """The turn that a conversation was in when its process ended, taken up again; None if it had ended."""
        try:
            found = await asyncio.to_thread(self._taken_up, session)
        except Exception as error:  # then a new episode begins
            self._failed("", error)
            return None
        return Turn(found.id, found.task, found.group, found.metadata, opened=True) if found else None

    def write(self, turn: Turn, *steps: Step) -> None:
        """A whole episode at once, judged; for threads, not for the event loop."""
        self._queue(turn, steps)
        turn.closed = True
        self._saved(turn, True, None)

    def _queue(self, turn: Turn, steps: Sequence[Step]) -> None:
        room = max(0, MOST_UNSAVED - len(turn.unsaved))
        turn.unsaved.extend(steps[:room])
        if lost := len(steps[room:]):
            self._memory.context.emit("journal_failed", episode=turn.id, error=f"{lost} steps lost: too many wait")

    async def _again(self) -> None:
        for turn, verdict in [self._unclosed.popleft() for _ in range(len(self._unclosed))]:
            await self._write(turn, True, verdict)

    async def _write(self, turn: Turn, close: bool = False, verdict: Verdict | None = None) -> None:
        timeout = 0.0 if turn.lock.locked() else self._timeout
        with self._lock:
            self._busy += 1
        writing = asyncio.ensure_future(asyncio.to_thread(self._counted, turn, close, verdict))
        try:
            await asyncio.wait_for(asyncio.shield(writing), timeout)
        except asyncio.TimeoutError:
            self._memory.context.emit("journal_late", episode=turn.id)

    def _counted(self, turn: Turn, close: bool, verdict: Verdict | None) -> None:
        try:
            self._saved(turn, close, verdict)
        finally:
            with self._lock:
                self._busy -= 1

    def _saved(self, turn: Turn, close: bool, verdict: Verdict | None) -> None:
        """Save and perhaps close. Runs in a thread."""
        try:
            with turn.lock:
                self._save(turn)
                if close:
                    ended = verdict or self._verdict(turn)
                    self._memory.close_episode(turn.id, ended.outcome, ended.source)
        except ConfigError as error:  # forgotten meanwhile, or closed by somebody else: trying again changes nothing
            self._failed(turn.id, error)
        except Exception as error:  # the store's, or a clock's of the user: never the agent's
            self._failed(turn.id, error)
            if close:
                self._unclosed.append((turn, verdict))

    def _save(self, turn: Turn) -> None:
        if not turn.opened:
            self._memory.open_episode(turn.task, id=turn.id, group=turn.group, metadata=turn.metadata)
            turn.opened = True
        while turn.unsaved:
            self._memory.observe(turn.id, turn.unsaved[0])
            turn.unsaved.popleft()

    def _verdict(self, turn: Turn) -> Verdict:
        """The judge's word; one that fails knows nothing."""
        episode = self._memory.store.episode(self._memory.scope, turn.id)
        try:
            return self.judge(episode) if episode else Verdict("unknown")
        except Exception as error:  # a model's, or a judge's of the user
            self._memory.context.emit("verdict_failed", episode=turn.id, error=f"{type(error).__name__}: {error}")
            return Verdict("unknown")

    def _taken_up(self, session: str) -> Episode | None:
        episodes = self._memory.store.episodes(self._memory.scope, limit=LOOKS_BACK)
        last = next((episode for episode in episodes if episode.metadata.get("session") == session), None)
        if last is None or last.erased or (last.closed_at is not None and last.source != "recovery"):
            return None
        self._memory.reopen_episode(last.id)
        return last

    def _failed(self, episode: str, error: Exception) -> None:
        self._memory.context.emit("journal_failed", episode=episode, error=f"{type(error).__name__}: {error}")
