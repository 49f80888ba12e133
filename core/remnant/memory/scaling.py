"""MaTTS: spend more rollouts on one task, answer with the best, and learn once from comparing them.

A driver above every strategy and host. Parallel rollouts read one state of memory and write nothing
until the group closes; then one distillation sees all of them. In a sequential group each turn is
asked to check and mend the one before. A rollout that raises is data: its episode is a failure.

Source: memory-aware test-time scaling in ReasoningBank (Ouyang et al. 2025, arXiv 2509.25140; section 3.3).
Differs: labels and episodes come from the journal, never from a folder; verdicts decide before a model does.

Example:
    scaled = matts(memory, "book a table", lambda rollout: agent(rollout.prompt, rollout), n=4)
    scaled.result, scaled.reason, scaled.cost
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal, TypeVar

from remnant.errors import ConfigError, unknown
from remnant.memory.context import Context
from remnant.memory.episode import Episode
from remnant.memory.errors import RolloutsFailed
from remnant.memory.llm import Usage
from remnant.memory.memory import Memory
from remnant.memory.rollouts import Attempt, Choice, Rollout, Scaled, Selector, by_model, by_rules

R = TypeVar("R")

Mode = Literal["parallel", "sequential"]

MOST = 64
"""Rollouts of a group at most."""

_FIRST_CHECK = """Go through everything you did for this task once more before it counts. Was each step aimed at the
right thing, does what you saw support your answer, and does the answer give all that was asked for? Mend what is wrong,
by acting again where needed, and then give the whole answer in its final form. The task was:
{task}"""

_NEXT_CHECK = """Check your last answer again, with fresh eyes, against the task and against what your steps showed.
Mend what is still wrong; if nothing is, give the same answer again, in its final form. The task was:
{task}"""


def matts(
    memory: Memory,
    task: str,
    run: Callable[[Rollout], R],
    n: int = 4,
    *,
    mode: Mode = "parallel",
    selector: Selector[R] | None = None,
    text: Callable[[R], str] = str,
    usage: Callable[[R], Usage] = lambda _: Usage(),
) -> Scaled[R]:
    """Run a task several times and keep the best answer.

    Args:
        memory: learns from the group. `run`, or the host's plugin for it, opens the rollout's episode with
            `open_episode(task, group=rollout.group, metadata={"rollout": rollout.number})`; one that is
            still open when all have ended is closed.
        task: what is asked.
        run: runs the agent once; called from threads of its own in a parallel group.
        n: rollouts, 1 to 64.
        mode: `parallel`, or `sequential` for one rollout and n - 1 turns that check and mend it.
        selector: chooses among the attempts that did not raise, by place; None goes by verdict,
            then by agreement, then by the memory's model (the last turn in a sequential group).
        text: the answer in what `run` returns.
        usage: what its model calls cost.

    Raises:
        ConfigError: n, mode or the selector's choice is not possible.
        RolloutsFailed: every rollout raised; it keeps the attempts. What they taught is still queued.
    """
    group, attempts = _Group(memory, task, n, mode, selector), list[Attempt[R]]()
    try:
        if mode == "sequential":
            attempts = [_attempt(rollout, run, text, usage) for rollout in group.rollouts]
        else:
            with ThreadPoolExecutor(n, thread_name_prefix="remnant-rollout") as pool:
                jobs = [
                    pool.submit(contextvars.copy_context().run, _attempt, rollout, run, text, usage)
                    for rollout in group.rollouts
                ]
                attempts = [job.result() for job in jobs]
    finally:
        group.close(attempts)
    return group.choose(attempts)


async def amatts(
    memory: Memory,
    task: str,
    run: Callable[[Rollout], Awaitable[R]],
    n: int = 4,
    *,
    mode: Mode = "parallel",
    selector: Selector[R] | None = None,
    text: Callable[[R], str] = str,
    usage: Callable[[R], Usage] = lambda _: Usage(),
) -> Scaled[R]:
    """`matts` without blocking; a parallel group's rollouts run side by side on the event loop."""
    group, attempts = await asyncio.to_thread(_Group, memory, task, n, mode, selector), list[Attempt[R]]()
    try:
        if mode == "sequential":
            attempts = [await _aattempt(rollout, run, text, usage) for rollout in group.rollouts]
        else:
            waiting = [_aattempt(rollout, run, text, usage) for rollout in group.rollouts]
            attempts = list(await asyncio.gather(*waiting))
    finally:
        await asyncio.to_thread(group.close, attempts)
    return await asyncio.to_thread(group.choose, attempts)


class _Group:
    """One group: its id, what its rollouts read, and how the best is found."""

    def __init__(self, memory: Memory, task: str, n: int, mode: Mode, selector: Selector[Any] | None) -> None:
        if not 1 <= n <= MOST:
            raise ConfigError(f"{n} rollouts", accepted=f"1 to {MOST}")
        if mode not in ("parallel", "sequential"):
            raise unknown("mode", str(mode), ("parallel", "sequential"))
        self._memory = memory
        self._c: Context = memory.context
        self._task, self._mode, self._selector = task, mode, selector
        self.id = self._c.new_id()
        as_of = self._c.store.latest(self._c.scope)
        self.rollouts = [Rollout(self.id, number, as_of, self._prompt(number)) for number in range(n)]

    def _prompt(self, number: int) -> str:
        if number == 0 or self._mode == "parallel":
            return self._task
        return (_FIRST_CHECK if number == 1 else _NEXT_CHECK).format(task=self._task)

    def close(self, attempts: Sequence[Attempt[R]]) -> None:
        """Close what the rollouts left open, and queue one distillation of all that they did."""
        raised = {attempt.rollout.number for attempt in attempts if attempt.error is not None}
        for episode in self._episodes():
            if episode.closed_at is None:
                failed = episode.metadata.get("rollout") in raised
                verdict, source = ("failure", "exception") if failed else ("unknown", "rule")
                self._memory.close_episode(episode.id, verdict, source)
        self._memory.close_group(self.id)

    def choose(self, attempts: Sequence[Attempt[R]]) -> Scaled[R]:
        """The best of the attempts, each with its episode's verdict."""
        episodes = self._episodes()
        told = [_with_episode(attempt, episodes) for attempt in attempts]
        if all(attempt.error is not None for attempt in told):
            raise RolloutsFailed(told) from told[0].error
        choice, spent = self._choice(told, {episode.id: episode for episode in episodes})
        if not 0 <= choice.index < len(told) or told[choice.index].error is not None:
            sound = [place for place, attempt in enumerate(told) if attempt.error is None]
            raise ConfigError(f"selector chose {choice.index}", accepted=f"one of {sound}")
        self._c.emit("rollouts", group=self.id, chosen=choice.index, reason=choice.reason)
        return Scaled(told[choice.index], tuple(told), choice.reason, self.id, spent)

    def _choice(self, attempts: list[Attempt[R]], episodes: dict[str, Episode]) -> tuple[Choice, Usage]:
        if self._selector is not None:
            return Choice(self._selector(attempts), "the selector's choice"), Usage()
        found = by_rules(attempts, latest=self._mode == "sequential")
        return (found, Usage()) if found else by_model(self._c, self._task, attempts, episodes)

    def _episodes(self) -> list[Episode]:
        """The group's episodes with their steps, in the order in which they were opened."""
        stubs = [episode for episode in self._c.store.episodes(self._c.scope) if episode.group == self.id]
        found = [self._c.store.episode(self._c.scope, episode.id) for episode in reversed(stubs)]
        return [episode for episode in found if episode is not None]


def _with_episode(attempt: Attempt[R], episodes: Sequence[Episode]) -> Attempt[R]:
    """The attempt with what the journal knows of it, by the number in an episode's metadata."""
    number = attempt.rollout.number
    named = [episode for episode in episodes if episode.metadata.get("rollout") == number]
    if not named:
        return replace(attempt, verdict="failure") if attempt.error is not None else attempt
    verdict = "failure" if attempt.error is not None else named[-1].verdict
    return replace(attempt, verdict=verdict, episode=named[-1].id)


def _attempt(
    rollout: Rollout, run: Callable[[Rollout], R], text: Callable[[R], str], usage: Callable[[R], Usage]
) -> Attempt[R]:
    begun = time.monotonic()
    try:
        result = run(rollout)
        return Attempt(rollout, result, text(result), usage=usage(result), seconds=time.monotonic() - begun)
    except Exception as error:
        return Attempt(rollout, None, error=error, seconds=time.monotonic() - begun)


async def _aattempt(
    rollout: Rollout, run: Callable[[Rollout], Awaitable[R]], text: Callable[[R], str], usage: Callable[[R], Usage]
) -> Attempt[R]:
    begun = time.monotonic()
    try:
        result = await run(rollout)
        return Attempt(rollout, result, text(result), usage=usage(result), seconds=time.monotonic() - begun)
    except Exception as error:
        return Attempt(rollout, None, error=error, seconds=time.monotonic() - begun)
