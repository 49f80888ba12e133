"""Whatever happens to the memory, the agent's answer is the one it gives without; and what is forgotten is gone."""

import asyncio
import sqlite3
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from remnant.memory import Event, StoreError
from remnant_langchain import memory_tools

THREAD = {"configurable": {"thread_id": "1"}}
WRITES = ("open_episode", "add_step", "close_episode")
READS = ("words", "get", "episode", "latest")


@tool
def ok() -> str:
    """Works."""
    return "fine"


def answer(messages: Any) -> Any:
    if not any(message.type == "tool" for message in messages):
        return AIMessage("", tool_calls=[{"name": "ok", "args": {}, "id": "1"}])
    return "the answer"


def broken(make: Any, memory: Any, fault: Any, names: Any = (*WRITES, *READS)) -> list[Event]:
    """Every named method of the store does something else; the events that follow."""
    told: list[Event] = []
    memory.memory.events.subscribe(told.append)
    for name in names:
        setattr(memory.memory.store, name, fault)
    return told


def raises(*_: Any, **__: Any) -> Any:
    raise StoreError("the store is down")


def hangs(*_: Any, **__: Any) -> Any:
    time.sleep(30)


def nonsense(*_: Any, **__: Any) -> Any:
    return 42


@pytest.mark.parametrize("fault", [raises, nonsense])
@pytest.mark.parametrize("names", [WRITES, READS, (*WRITES, *READS)], ids=["writes", "reads", "all"])
def test_a_store_that_fails(make, run, fault, names):
    memory = make.memory()
    memory.memory.add("q is a letter")
    told = broken(make, memory, fault, names)
    result = run(make.agent(answer, [ok], [memory]), "q")
    assert result["messages"][-1].text == "the answer"
    assert fault is nonsense or any(event.name.endswith("_failed") for event in told)


def test_a_store_that_hangs(make, run):
    memory = make.memory(recall_seconds=0.2, record_seconds=0.2)
    broken(make, memory, hangs)
    began = time.monotonic()
    assert run(make.agent(answer, [ok], [memory]), "q")["messages"][-1].text == "the answer"
    assert time.monotonic() - began < 20


def test_a_recall_that_is_too_slow_gives_nothing(make, run):
    memory, told = make.memory(recall_seconds=0.1), []
    memory.memory.events.subscribe(told.append)
    memory.memory.add("q is a letter")
    memory.memory.store.words = lambda *a, **k: time.sleep(0.5) or []  # pyright: ignore[reportAttributeAccessIssue]
    assert run(make.agent(answer, [ok], [memory]), "q")["messages"][-1].text == "the answer"
    assert "recall_failed" in [event.name for event in told]
    assert len(make.episode().steps) == 3


def test_a_file_that_is_overwritten_with_noise(make, run):
    memory = make.memory()
    memory.memory.add([f"q is a letter {n}" for n in range(100)])
    for name in ("agent.db", "agent.db-wal"):  # not the shared memory: no process survives that
        with (make.path.parent / name).open("r+b") as file:
            file.write(b"noise " * 5000)
    assert run(make.agent(answer, [ok], [memory]), "q")["messages"][-1].text == "the answer"


def test_a_file_that_somebody_holds_is_waited_for(make, run):
    """A writer that takes a second; no step is lost."""
    memory = make.memory()
    held = sqlite3.connect(make.path, isolation_level=None, check_same_thread=False)
    held.execute("BEGIN IMMEDIATE")
    release = threading.Timer(1.0, lambda: held.execute("COMMIT"))
    release.start()
    assert run(make.agent(answer, [ok], [memory]), "q")["messages"][-1].text == "the answer"
    release.join()
    held.close()
    assert len(make.episode().steps) == 3


class BadEmbeddings(Embeddings):
    """Fails, or gives vectors of changing size."""

    def __init__(self, fault: Any) -> None:
        self._fault = fault

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self._fault() for _ in texts]

    def embed_query(self, text: str) -> list[float]:
        return self._fault()


@pytest.mark.parametrize("fault", [lambda: 1 / 0, lambda: [0.1] * 3, lambda: "no vector", lambda: time.sleep(1)])
def test_an_embedder_that_fails(make, run, fault):
    memory = make.memory(embedder=DeterministicFakeEmbedding(size=8), recall_seconds=0.3)
    memory.memory.add("q is a letter")
    bad = BadEmbeddings(fault)
    memory.memory.context.embedder._embeddings = bad
    assert run(make.agent(answer, [ok], [memory]), "q")["messages"][-1].text == "the answer"
    assert len(make.episode().steps) == 3


@pytest.mark.parametrize("reply", ["", "nonsense", "{}", '{"changes": 3}', None])
@pytest.mark.parametrize("write", ["inline", "background"])
def test_a_memorys_model_that_fails(make, run, reply, write):
    """It is down, or answers nonsense; the trajectory stays in the journal and in the queue."""
    from remnant.memory import Completion

    class Bad:
        model_id = "bad"

        def generate(self, messages: Any, **_: Any) -> Completion:
            if reply is None:
                raise TimeoutError("too late")
            return Completion(reply)

        agenerate = generate

    memory = make.memory(strategy="facts", llm=Bad(), write=write)
    assert run(make.agent(answer, [ok], [memory]), "q")["messages"][-1].text == "the answer"
    assert len(make.episode().steps) == 3
    assert make.episode().closed_at is not None
    deadline = time.monotonic() + 10
    while write == "background" and memory.memory.store.jobs("default")[0][2] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    ((_, state, attempts, error),) = memory.memory.store.jobs("default")
    assert state in ("queued", "running", "failed")
    assert attempts
    assert error


def test_a_slow_model_of_the_memory_does_not_delay_the_answer(make, run):
    asked, go = threading.Event(), threading.Event()

    class Slow:
        model_id = "slow"

        def generate(self, messages: Any, **_: Any) -> Any:
            from remnant.memory import Completion

            asked.set()
            go.wait(20)
            return Completion('{"changes": []}')

        agenerate = generate

    memory = make.memory(strategy="facts", llm=Slow(), write="background")
    assert run(make.agent(answer, [ok], [memory]), "q")["messages"][-1].text == "the answer"
    assert asked.wait(10)
    assert memory.memory.stats()["pending"] == 1
    go.set()
    assert memory.memory.flush(10)


async def test_flush_and_close_do_not_hold_the_loop(make):
    class Slow:
        model_id = "slow"

        def generate(self, messages: Any, **_: Any) -> Any:
            from remnant.memory import Completion

            time.sleep(0.3)
            return Completion('{"changes": []}')

        agenerate = generate

    memory = make.memory(strategy="facts", llm=Slow(), write="background")
    await make.agent(answer, [ok], [memory]).ainvoke({"messages": [("user", "q")]})
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticker = asyncio.create_task(tick())
    assert await memory.memory.aflush(10)
    await memory.memory.aclose()
    ticker.cancel()
    assert ticks > 10


SECRET = "the cat is called Zebulon"


def files_with(folder: Path, text: str) -> list[str]:
    return [path.name for path in folder.iterdir() if text.encode() in path.read_bytes()]


def test_what_is_forgotten_is_nowhere(make, run, tmp_path: Path):
    """Through every door, in the checkpoints, in the journal and in the bytes of the files."""
    memory, saver, prompts = make.memory(tools=True, strategy="facts"), InMemorySaver(), []

    def asks(messages: Any) -> Any:
        prompts.append(str(messages))
        if messages[-1].type == "human" and "search" in messages[-1].text:
            return AIMessage("", tool_calls=[{"name": "search_memory", "args": {"query": "cat"}, "id": "1"}])
        return "well"

    (id,) = memory.memory.add(SECRET)
    agent = make.agent(asks, [], [memory], checkpointer=saver)
    result = run(agent, "search for the cat", THREAD)
    assert sum("Zebulon" in prompt for prompt in prompts) == len(prompts) == 2
    assert "Zebulon" not in str(result)
    receipt = memory.memory.forget(id)
    assert receipt.ids == (id,)
    assert receipt.clean
    prompts.clear()
    run(agent, "search for the cat", THREAD)
    run(agent, "the cat?", {"configurable": {"thread_id": "2"}})
    assert not any("Zebulon" in prompt for prompt in prompts)
    assert "Zebulon" not in str(saver.blobs) + str(saver.storage) + str(saver.writes)
    assert "Zebulon" not in str(make.episodes())
    (search, *_) = memory_tools(memory.memory)
    assert "Zebulon" not in str(search.invoke({"query": "cat"}))
    assert memory.memory.recall("cat Zebulon") == []
    assert files_with(tmp_path, "Zebulon") == []


def test_a_memory_the_agent_saved_goes_with_the_steps_it_was_saved_in(make, run, tmp_path: Path):
    memory = make.memory(tools=True, strategy="facts")

    def saves(messages: Any) -> Any:
        if messages[-1].type == "human":
            return AIMessage("", tool_calls=[{"name": "save_memory", "args": {"content": SECRET}, "id": "1"}])
        return "noted"

    run(make.agent(saves, [], [memory]), "remember it")
    (record,) = memory.memory.records()
    assert record.provenance[0].source_id == make.episode().id
    assert files_with(tmp_path, "Zebulon")
    assert memory.memory.forget(record.id).clean
    assert files_with(tmp_path, "Zebulon") == []
    assert make.episode().erased


def test_what_memory_shows_is_not_learnt_again(make, run):
    memory = make.memory(tools=True)
    memory.memory.add(SECRET)

    def asks(messages: Any) -> Any:
        if messages[-1].type == "human":
            return AIMessage("", tool_calls=[{"name": "search_memory", "args": {"query": "cat"}, "id": "1"}])
        return "well"

    run(make.agent(asks, [], [memory]), "what of the cat?")
    step = make.episode().steps[1]
    assert step["injected"] is True
    assert "Zebulon" not in str(make.episode())


def test_the_runtime_may_be_anything():
    """Hooks of older LangGraph releases, and tests of others, hand over less than a whole runtime."""
    from remnant_langchain._options import Options, scope_of

    assert scope_of(None, Options(), SimpleNamespace(), False) == "default"
    assert scope_of(None, Options(), None, False) == "default"
