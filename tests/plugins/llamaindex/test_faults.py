"""Whatever happens to memory, the agent's answer is the one it would have given without."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage

from remnant.memory import ModelError, ScriptedChatModel, StoreError

QUESTION = "what is one and two"
WRITES = ("open_episode", "add_step", "close_episode", "shown")
READS = ("words", "get", "episode", "vectors")


async def answered(stage: Any, memory: Any, tracked: bool = True, kind: str = "function") -> str:
    run = stage.agent(stage.once(kind), kind=kind).run(user_msg=QUESTION, memory=memory)
    return str(await (memory.track(run) if tracked else run))


def spoil(monkeypatch: pytest.MonkeyPatch, memory: Any, names: tuple[str, ...], act: Callable[..., Any]) -> None:
    for name in names:
        real = getattr(type(memory.core.store), name)
        monkeypatch.setattr(type(memory.core.store), name, lambda *a, _real=real, **k: act(_real, *a, **k))


def down(_real: Any, *_: Any, **__: Any) -> Any:
    raise StoreError("the store is down")


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("kind", ["function", "react", "code"])
async def test_store_that_is_down(stage: Any, monkeypatch: pytest.MonkeyPatch, kind: str, tracked: bool):
    memory = stage.open()
    events: list[str] = []
    memory.core.events.subscribe(lambda event: events.append(event.name))
    spoil(monkeypatch, memory, WRITES + READS, down)
    assert await answered(stage, memory, tracked, kind) == "three"
    assert {"recall_failed", "journal_failed"} <= set(events)


async def test_trajectory_of_a_store_that_comes_back_is_not_lost(stage: Any):
    memory = stage.open()
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, memory, WRITES + READS, down)
        assert await answered(stage, memory) == "three"
    assert not memory.core.store.episodes("tenant-a")
    assert await memory.aflush(10)
    (episode,) = memory.core.store.episodes("tenant-a")
    assert [step["role"] for step in stage.episode(memory, episode.id).steps] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert episode.closed_at is not None


async def test_store_that_fails_now_and_then_gets_each_step_once_and_in_order(stage: Any):
    memory = stage.open()
    calls = 0

    def flaky(real: Any, *given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise StoreError("locked")
        return real(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, memory, WRITES, flaky)
        for _ in range(3):
            assert await answered(stage, memory) == "three"
    await memory.aflush(10)
    episodes = memory.core.store.episodes("tenant-a")
    assert len(episodes) == 3
    for episode in episodes:
        roles = [step["role"] for step in stage.episode(memory, episode.id).steps]
        assert roles == ["user", "assistant", "tool", "assistant"]
        assert episode.closed_at is not None


async def test_store_that_hangs_is_not_waited_for(stage: Any, monkeypatch: pytest.MonkeyPatch):
    memory = stage.open(timeout=0.05)
    memory.core.add("One and two is three.")

    def late(real: Any, *given: Any, **named: Any) -> Any:
        time.sleep(0.5)
        return real(*given, **named)

    spoil(monkeypatch, memory, ("words", "add_step"), late)
    events: list[str] = []
    memory.core.events.subscribe(lambda event: events.append(event.name))
    assert await answered(stage, memory) == "three"
    assert not stage.shown("One and two is three.")
    assert {"recall_failed", "journal_late"} <= set(events)
    assert await memory.aflush(20)
    assert [step["role"] for step in stage.episode(memory).steps] == ["user", "assistant", "tool", "assistant"]


async def test_file_that_breaks_while_it_is_used(stage: Any):
    memory = stage.open()
    memory.core.add("One and two is three.")
    assert await answered(stage, memory) == "three"
    with sqlite3.connect(stage.path) as file:
        for table in ("steps", "episodes"):
            file.execute(f"ALTER TABLE {table} RENAME TO lost_{table}")
    assert await answered(stage, memory) == "three"


async def test_file_that_is_no_database_is_refused_when_it_is_opened(stage: Any):
    stage.path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreError):
        stage.open()


def raising(_: str) -> str:
    raise ModelError("no model today")


@pytest.mark.parametrize("reply", ["nonsense", "{}", "", raising], ids=["nonsense", "empty", "silent", "down"])
@pytest.mark.parametrize("strategy", ["facts", "reasoningbank", "tim"])
async def test_model_of_memory_that_is_down_or_talks_nonsense(stage: Any, strategy: str, reply: Any):
    memory = stage.open(strategy, llm=ScriptedChatModel([(".", reply)]), write="inline")
    memory.core.add("One and two is three.")
    assert await answered(stage, memory) == "three"
    assert stage.shown("One and two is three.")
    assert [record.content for record in memory.core.records()] == ["One and two is three."]


async def test_embedder_that_is_down_leaves_the_words(stage: Any):
    class Down:
        model_id = "down"

        def embed(self, texts: Any, *, kind: str) -> Any:
            raise OSError("no network")

        async def aembed(self, texts: Any, *, kind: str) -> Any:
            raise OSError("no network")

    memory = stage.open(embedder=Down())
    memory.core.add("One and two is three.")
    assert await answered(stage, memory) == "three"
    assert stage.shown("One and two is three.")


async def test_run_that_is_cancelled_while_it_is_written_down_is_written_down(stage: Any):
    """A cancelled agent takes no step of the journal with it."""
    memory = stage.open()
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, memory, ("open_episode",), lambda real, *a, **k: (time.sleep(0.2), real(*a, **k))[1])
        putting = asyncio.ensure_future(memory.aput(ChatMessage(role="user", content=QUESTION)))
        await asyncio.sleep(0.1)
        putting.cancel()
        await asyncio.gather(putting, return_exceptions=True)
        assert await memory.aflush(10)
    assert stage.episode(memory).task == QUESTION
