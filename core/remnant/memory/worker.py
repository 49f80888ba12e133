"""Distillation in the background: take a job, ask the strategy, apply its operations exactly once.

The queue lies in the store, so it outlives the process; a worker takes one job at a time. The
operations and the mark "done" are one transaction, hence a job that is begun twice counts once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from remnant.errors import RemnantError
from remnant.memory.change import apply_steps
from remnant.memory.context import Context, drive
from remnant.memory.episode import Episode
from remnant.memory.errors import JobLost
from remnant.memory.llm import Metered
from remnant.memory.ops import Add, Merge, Op, Update
from remnant.memory.owner import owner
from remnant.memory.recall import plain_hits, vectors_of
from remnant.memory.record import Hit, Provenance, Record
from remnant.memory.rounds import taken_back
from remnant.memory.strategy import DistilContext

LEASE = 600.0
"""Seconds after which a distillation counts as abandoned, where we cannot see whether its process lives."""

MOST_FAILURES = 4
"""Rounds that may fail before a distillation is given up; they wait 0.1, 0.4 and 1.6 s."""

POLL = 1.0
"""Seconds between looks for what other processes left."""


def distil_next(c: Context) -> bool:
    """Do one distillation; False if none is ready. A fault is recorded and tried again later."""
    if c.llm is not None and not getattr(c.llm, "ready", True):
        return False  # the queue waits for a model that is on its way
    job = c.store.claim(c.scope, owner(), LEASE)
    if job is None:
        return False
    try:
        found = [c.store.episode(c.scope, id) for id in job.episodes]
        episodes = [episode for episode in found if episode is not None and not episode.erased]
        ops = _distilled(c, episodes, taken_back(c, job))
        verified = bool(episodes) and all(episode.verdict == "success" for episode in episodes)
        reason = f"distilled from {job.key}"
        done = drive(apply_steps(c, ops, reason, c.strategy.name, job=job, verified=verified), c.embedder)
    except JobLost:
        return True
    except Exception as error:  # a strategy's, a model's or the store's: none may stop the worker
        last = job.attempts + 1 >= MOST_FAILURES
        message = str(error) if isinstance(error, RemnantError) else f"{type(error).__name__}: {error}"
        c.store.fail(c.scope, job, message[:500], retry_in=None if last else 0.1 * 4**job.attempts)
        c.emit("distil_failed", key=job.key, error=message[:500], final=last)
    except BaseException:
        c.store.release(c.scope, job)
        raise
    else:
        c.emit("distilled", key=job.key, number=done.number, ids=list(done.ids))
    return True


def _distilled(c: Context, episodes: list[Episode], restored: Mapping[str, Record]) -> list[Op]:
    if not episodes:
        return []
    model = Metered(c.llm, c.costs, "distil") if c.llm else None
    quiet = replace(c, strict=True)

    def recall(text: str, k: int, by: Context = quiet) -> list[Hit]:
        hits = drive(plain_hits(by, text, k), by.embedder)
        seen = [replace(hit, record=now, text=now.content) for hit in hits if (now := as_restored(hit.record))]
        return [hit for hit in seen if hit.record.status == "active"]

    def counted(episode: str) -> list[Record]:
        uses = c.store.uses(c.scope, episode)
        ids = [id for id, declared in uses if declared] or [id for id, _ in uses]
        return [now for r in c.store.get(c.scope, ids).values() if (now := as_restored(r)).status == "active"]

    def as_restored(record: Record) -> Record:
        old = restored.get(record.id)
        return replace(old, utility=record.utility) if old else record

    def embed(texts: Sequence[str]) -> list[Sequence[float]]:
        return drive(vectors_of(texts), c.embedder)

    words = partial(recall, by=replace(quiet, embedder=None))
    embed_or_not = embed if c.embedder else None
    context = DistilContext(c.scope, model, recall, c.clock(), counted, embed_or_not, restored, words)
    return [_sourced(c, op, episodes, restored) for op in c.strategy.distil(episodes, context)]


def _sourced(c: Context, op: Op, episodes: list[Episode], restored: Mapping[str, Record]) -> Op:
    """The operation, its record naming the episodes it came from and how they ended."""
    if isinstance(op, Add):
        return replace(op, record=_with_source(c, op.record, episodes))
    if isinstance(op, Merge):
        return replace(op, into=_with_source(c, op.into, episodes))
    if isinstance(op, Update) and (old := restored.get(op.id) or c.store.get(c.scope, [op.id]).get(op.id)):
        return replace(op, changes={"provenance": _with_source(c, old, episodes).provenance, **op.changes})
    return op


def _with_source(c: Context, record: Record, episodes: list[Episode]) -> Record:
    named = {source.source_id for source in record.provenance}
    new = tuple(
        Provenance("episode", episode.id, author=c.strategy.name, time=c.clock())
        for episode in episodes
        if episode.id not in named
    )
    outcomes = {episode.verdict for episode in episodes}
    outcome = outcomes.pop() if record.outcome == "unknown" and len(outcomes) == 1 else record.outcome
    return replace(record, provenance=record.provenance + new, outcome=outcome)


class Worker:
    """One thread that distils for some scopes; it starts when there is something to do.

    Args:
        poll: seconds between looks for what other processes left.
    """

    def __init__(self, poll: float = POLL) -> None:
        """See the class."""
        self._poll = poll
        self._lock = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._contexts: dict[str, Context] = {}
        self._thread: threading.Thread | None = None

    def kick(self, c: Context) -> None:
        """Look at a scope now, and from now on."""
        with self._lock:
            self._contexts[c.scope] = c
            if (self._thread is None or not self._thread.is_alive()) and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="remnant-distil", daemon=True)
                self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            for c in list(self._contexts.values()):
                self._drain(c)
            self._wake.wait(self._poll)

    def _drain(self, c: Context) -> None:
        try:
            while not self._stop.is_set() and distil_next(c):
                pass
        except Exception as error:  # the store is away; the job stays in it
            c.emit("distil_failed", key="", error=str(error), final=False)

    def close(self, timeout: float) -> None:
        """Finish the distillation at hand and stop; what is queued stays in the store."""
        with self._lock:
            self._stop.set()
            thread = self._thread
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)


def wait_until(done: Callable[[], bool], timeout: float) -> bool:
    """Look until something is so, for some seconds at most."""
    end = time.monotonic() + timeout
    while not done():
        if time.monotonic() >= end:
            return False
        time.sleep(0.01)
    return True
