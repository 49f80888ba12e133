"""What the hooks do with a memory: plain functions on the store, the same for sync and async hooks.

Each may raise; the middleware calls them in a time box and goes on without memory if they do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from remnant.errors import ConfigError
from remnant.memory.episode import Episode
from remnant.memory.memory import Memory
from remnant.memory.record import Hit
from remnant.memory.verdict import Judge, Verdict
from remnant_langchain._steps import Step, final_step, unseen_steps


@dataclass(frozen=True)
class Run:
    """One run, as one memory sees it; its hooks find it again in the state.

    Args:
        memory: of the run's scope.
        episode: its episode, or "" if it is not recorded.
        ids: the records recalled for it.
        resumable: another process may go on with it.
    """

    memory: Memory
    episode: str = ""
    ids: tuple[str, ...] = ()
    resumable: bool = False


def open_run(memory: Memory, task: str, id: str, group: str, metadata: Mapping[str, Any], resumable: bool) -> None:
    """Begin to journal a run."""
    memory.open_episode(task, id=id, group=group, metadata=metadata, resumable=resumable)


def leave_behind(memory: Memory, episode: str) -> None:
    """Close the thread's earlier run, if it never ended: a new question takes its place."""
    with suppress(ConfigError):  # it was another scope's, or was forgotten
        memory.close_episode(episode, "unknown", "abandoned")


def observe(run: Run, steps: Sequence[Step]) -> None:
    """Journal what the model did. A run that had failed and goes on is open again."""
    for step in steps:
        try:
            run.memory.observe(run.episode, step)
        except ConfigError:
            run.memory.reopen_episode(run.episode, resumable=run.resumable)
            run.memory.observe(run.episode, step)


def observe_tool(run: Run, steps: Sequence[Step]) -> None:
    """Journal what a tool did. Where another tool of the same turn has ended the run, its end stands."""
    for step in steps:
        try:
            run.memory.observe(run.episode, step)
        except ConfigError:
            ended = run.memory.store.episode(run.memory.scope, run.episode)
            observe(run, [step])
            if ended is not None:
                run.memory.close_episode(run.episode, ended.verdict, ended.source)


def observe_unseen(run: Run, messages: Sequence[Any], clean: Callable[[Step], Step]) -> None:
    """Journal refusals that no tool gave."""
    episode = run.memory.store.episode(run.memory.scope, run.episode)
    if episode is not None and episode.closed_at is None:
        observe(run, unseen_steps(messages, episode.steps, clean))


def fail(run: Run, step: Step) -> None:
    """Close a run that raised."""
    observe_tool(run, [step])
    run.memory.close_episode(run.episode, "failure", "exception")


def finish(run: Run, messages: Sequence[Any], verdict: Judge, clean: Callable[[Step], Step]) -> list[str]:
    """Close a run that came to its end; ids of what was learnt, as far as that is known at once."""
    memory = run.memory
    episode = memory.store.episode(memory.scope, run.episode)
    if episode is None or episode.closed_at is not None:
        return []
    last = final_step(messages, episode.steps, clean)
    if last is not None:
        memory.observe(run.episode, last)
        episode = memory.store.episode(memory.scope, run.episode) or episode
    ended = _verdict(memory, verdict, episode)
    learnt: list[str] = []

    def hear(event: Any) -> None:
        if event.name == "distilled" and event.data.get("key") == run.episode:
            learnt.extend(event.data["ids"])

    stop = memory.events.subscribe(hear)
    try:
        memory.close_episode(run.episode, ended.outcome, ended.source)
    finally:
        stop()
    return learnt


def _verdict(memory: Memory, verdict: Judge, episode: Episode) -> Verdict:
    try:
        return verdict(episode)
    except Exception as error:  # raising counts as not knowing
        memory.context.emit("verdict_failed", episode=episode.id, error=f"{type(error).__name__}: {error}"[:500])
        return Verdict("unknown", "none")


def rendered(memory: Memory, ids: Sequence[str]) -> str:
    """The texts of records as they are now; those that were forgotten meanwhile are left out."""
    if not ids:
        return ""
    found = memory.store.get(memory.scope, ids)
    records = [found[id] for id in ids if id in found and found[id].status == "active"]
    return memory.render([Hit(record.id, record.content, 1.0, record, {}) for record in records]) if records else ""
