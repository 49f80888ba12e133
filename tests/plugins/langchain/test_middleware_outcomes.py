"""Every way a run can end leaves the right outcome in the journal; by `invoke` and by `ainvoke`."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ModelRetryMiddleware,
    ToolRetryMiddleware,
    hook_config,
)
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.types import Command, interrupt

from remnant.memory.verdict import Verdict
from remnant_langchain import memory_callback

THREAD = {"configurable": {"thread_id": "1"}}


@tool
def ok() -> str:
    """Works."""
    return "fine"


@tool
def bad() -> str:
    """Breaks."""
    raise ValueError("boom")


@tool
def asks() -> str:
    """Asks a person."""
    return f"a person says {interrupt('may I?')}"


def uses(name: str, then: Any = "done", **arguments: Any) -> Callable[[Any], Any]:
    """A model that asks for a tool and then answers."""
    asked = AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": "1"}])
    return lambda messages: asked if messages[-1].type == "human" else then


def raising(messages: Any) -> Any:
    raise RuntimeError("provider down")


def test_a_normal_answer(make, run):
    agent = make.agent(uses("ok"), [ok], [make.memory()])
    assert run(agent, "the task")["messages"][-1].text == "done"
    episode = make.episode()
    assert (episode.task, episode.verdict, episode.source) == ("the task", "unknown", "rule")
    assert episode.closed_at is not None
    assert [(step["role"], step["content"]) for step in episode.steps] == [
        ("assistant", ""),
        ("tool", "fine"),
        ("assistant", "done"),
    ]
    assert episode.steps[0]["tool_calls"] == [{"name": "ok", "arguments": {}}]


def test_the_model_raises(make, run):
    with pytest.raises(RuntimeError, match="provider down"):
        run(make.agent(raising, middleware=[make.memory()]), "q")
    episode = make.episode()
    assert (episode.verdict, episode.source) == ("failure", "exception")
    assert episode.steps[-1] == {"role": "assistant", "content": "RuntimeError: provider down", "error": True}


def test_a_tool_raises(make, run):
    with pytest.raises(ValueError, match="boom"):
        run(make.agent(uses("bad"), [bad], [make.memory()]), "q")
    episode = make.episode()
    assert (episode.verdict, episode.source) == ("failure", "exception")
    assert episode.steps[-1]["content"] == "ValueError: boom"
    assert episode.steps[-1]["name"] == "bad"


def test_an_unknown_tool(make, run):
    run(make.agent(uses("nope", "sorry"), [ok], [make.memory()]), "q")
    episode = make.episode()
    assert (episode.verdict, episode.source) == ("failure", "rule")
    assert episode.steps[1]["error"] is True


def test_bad_arguments(make, run):
    @tool
    def add(a: int, b: int) -> str:
        """Adds."""
        return str(a + b)

    run(make.agent(uses("add", "sorry", a="x"), [add], [make.memory()]), "q")
    assert make.episode().verdict == "failure"
    assert make.episode().steps[1]["error"] is True


def test_a_tool_that_failed_and_then_worked_is_no_failure(make, run):
    def answer(messages):
        count = sum(message.type == "tool" for message in messages)
        return "done" if count == 2 else uses("ok" if count else "nope")(messages[:1])

    run(make.agent(answer, [ok], [make.memory()]), "q")
    assert make.episode().verdict == "unknown"


def test_an_empty_answer(make, run):
    run(make.agent(lambda _: AIMessage(""), middleware=[make.memory()]), "q")
    assert (make.episode().verdict, make.episode().source) == ("failure", "rule")


def test_the_recursion_limit_by_the_callback(make, run):
    memory = make.memory()
    forever = make.agent(lambda _: AIMessage("", tool_calls=[{"name": "ok", "args": {}, "id": "1"}]), [ok], [memory])
    with pytest.raises(GraphRecursionError):
        run(forever, "q", {"recursion_limit": 8, "callbacks": [memory_callback(memory)]})
    assert (make.episode().verdict, make.episode().source) == ("failure", "limit")
    assert len(make.episode().steps) > 2


def test_the_recursion_limit_without_it_is_left_to_recovery(make, run):
    memory = make.memory()
    forever = make.agent(lambda _: AIMessage("", tool_calls=[{"name": "ok", "args": {}, "id": "1"}]), [ok], [memory])
    with pytest.raises(GraphRecursionError):
        run(forever, "q", {"recursion_limit": 8})
    assert make.episode().closed_at is None


def test_a_limit_of_model_calls(make, run):
    limit = ModelCallLimitMiddleware(run_limit=2, exit_behavior="end")
    forever = make.agent(
        lambda _: AIMessage("", tool_calls=[{"name": "ok", "args": {}, "id": "1"}]), [ok], [make.memory(), limit]
    )
    run(forever, "q")
    assert (make.episode().verdict, make.episode().source) == ("failure", "limit")
    assert make.episode().steps[-1]["limit"] is True


class Jump(AgentMiddleware):
    @hook_config(can_jump_to=["end"])
    def before_model(self, state: Any, runtime: Any) -> dict[str, Any]:
        return {"jump_to": "end", "messages": [AIMessage("blocked")]}


def test_a_jump_to_the_end_is_recorded_though_no_model_spoke(make, run):
    run(make.agent(lambda _: "never", middleware=[make.memory(), Jump()]), "q")
    episode = make.episode()
    assert episode.steps == ({"role": "assistant", "content": "blocked"},)
    assert episode.verdict == "unknown"


def test_an_interrupt_in_a_tool_leaves_the_episode_open(make, run):
    memory = make.memory()
    agent = make.agent(uses("asks"), [asks], [memory], checkpointer=InMemorySaver())
    assert "__interrupt__" in run(agent, "q", {**THREAD, "callbacks": [memory_callback(memory)]})
    assert make.episode().closed_at is None
    assert [step["role"] for step in make.episode().steps] == ["assistant"]
    run(agent, Command(resume="yes"), {**THREAD, "callbacks": [memory_callback(memory)]})
    assert [step["content"] for step in make.episode().steps] == ["", "a person says yes", "done"]
    assert make.episode().closed_at is not None


def test_a_person_in_the_loop(make, run):
    person = HumanInTheLoopMiddleware(interrupt_on={"ok": True})
    agent = make.agent(uses("ok"), [ok], [make.memory(), person], checkpointer=InMemorySaver())
    run(agent, "q", THREAD)
    assert make.episode().closed_at is None
    run(agent, Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
    assert [step["content"] for step in make.episode().steps] == ["", "fine", "done"]
    assert make.episode().closed_at is not None


def test_what_a_person_rejects_is_recorded(make, run):
    person = HumanInTheLoopMiddleware(interrupt_on={"ok": True})
    agent = make.agent(uses("ok"), [ok], [make.memory(), person], checkpointer=InMemorySaver())
    run(agent, "q", THREAD)
    run(agent, Command(resume={"decisions": [{"type": "reject", "message": "not today"}]}), THREAD)
    steps = make.episode().steps
    assert [step["role"] for step in steps] == ["assistant", "tool", "assistant"]
    assert steps[1]["content"].endswith("not today")
    assert steps[1]["error"] is True


def test_a_new_question_ends_a_run_that_waits(make, run):
    agent = make.agent(uses("asks"), [asks], [make.memory()], checkpointer=InMemorySaver())
    run(agent, "first", THREAD)
    run(agent, "second", THREAD)
    first, second = make.episodes()
    assert (first.task, first.verdict, first.source) == ("first", "unknown", "abandoned")
    assert (second.task, second.closed_at) == ("second", None)


def test_a_retry_inside_hides_the_fault(make, run):
    calls: list[int] = []

    def flaky(messages: Any) -> Any:
        calls.append(1)
        return raising(messages) if len(calls) == 1 else "done"

    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False)
    run(make.agent(flaky, middleware=[make.memory(), retry]), "q")
    assert [step["content"] for step in make.episode().steps] == ["done"]
    assert make.episode().verdict == "unknown"


def test_a_retry_outside_opens_the_episode_again(make, run):
    calls: list[int] = []

    def flaky(messages: Any) -> Any:
        calls.append(1)
        return raising(messages) if len(calls) == 1 else "done"

    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False)
    run(make.agent(flaky, middleware=[retry, make.memory()]), "q")
    assert [step["content"] for step in make.episode().steps] == ["RuntimeError: provider down", "done"]
    assert (make.episode().verdict, make.episode().source) == ("unknown", "rule")


def test_a_tool_retried_outside(make, run):
    calls: list[int] = []

    @tool
    def flaky() -> str:
        """Works the second time."""
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("boom")
        return "fine"

    retry = ToolRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False)
    run(make.agent(uses("flaky"), [flaky], [retry, make.memory()]), "q")
    assert [step["content"] for step in make.episode().steps] == ["", "ValueError: boom", "fine", "done"]
    assert make.episode().verdict == "unknown"
    assert make.episode().closed_at is not None


def test_a_run_that_failed_goes_on_from_its_checkpoint(make, run):
    broken = [True]

    def answer(messages: Any) -> Any:
        return raising(messages) if broken[0] else "done"

    agent = make.agent(answer, middleware=[make.memory()], checkpointer=InMemorySaver())
    with pytest.raises(RuntimeError):
        run(agent, "q", THREAD)
    assert make.episode().verdict == "failure"
    broken[0] = False
    (agent.invoke(None, THREAD) if run.__name__ == "sync" else asyncio.run(agent.ainvoke(None, THREAD)))
    assert [step["content"] for step in make.episode().steps] == ["RuntimeError: provider down", "done"]
    assert make.episode().verdict == "unknown"
    memory = make.made[0].memory
    assert memory.flush()
    assert [record.content for record in memory.records()] == ["q -> done"]


async def test_cancellation_by_the_callback(make):
    started = asyncio.Event()

    @tool
    async def slow() -> str:
        """Takes long."""
        started.set()
        await asyncio.sleep(60)
        return "late"

    memory = make.memory()
    agent = make.agent(uses("slow"), [slow], [memory])
    given = {"messages": [("user", "q")]}
    task = asyncio.create_task(agent.ainvoke(given, {"callbacks": [memory_callback(memory)]}))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (make.episode().verdict, make.episode().source) == ("unknown", "cancelled")


def test_an_agent_inside_a_tool_dies_alone(make, run):
    """The callback closes the inner agent's episode, and the outer run goes on."""
    memory = make.memory()
    inner = make.agent(lambda _: AIMessage("", tool_calls=[{"name": "ok", "args": {}, "id": "1"}]), [ok], [memory])

    @tool
    def delegate() -> str:
        """Asks another agent."""
        try:
            inner.invoke({"messages": [("user", "inner")]}, {"recursion_limit": 6})
        except GraphRecursionError:
            return "it gave up"
        return "never"

    outer = make.agent(uses("delegate"), [delegate], [memory])
    run(outer, "outer", {"callbacks": [memory_callback(memory)]})
    found = {episode.task: episode for episode in make.episodes()}
    assert (found["inner"].verdict, found["inner"].source) == ("failure", "limit")
    assert (found["outer"].verdict, found["outer"].steps[-1]["content"]) == ("unknown", "done")


def test_the_callback_leaves_other_runs_alone(make, run):
    memory = make.memory()
    watcher = memory_callback(memory.memory)
    good = make.agent(uses("ok"), [ok], [memory])
    run(good, "good", {"callbacks": [watcher]})
    with pytest.raises(RuntimeError):
        run(make.agent(raising, middleware=[memory]), "bad", {"callbacks": [watcher]})
    assert {e.task: (e.verdict, e.source) for e in make.episodes()} == {
        "good": ("unknown", "rule"),
        "bad": ("failure", "exception"),
    }
    assert not watcher._parents
    assert not watcher._open


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (lambda episode: Verdict("success", "test"), ("success", "test")),
        (lambda episode: "failure", ("failure", "rule")),
        (lambda episode: "splendid", ("unknown", "none")),
        (lambda episode: 1 / 0, ("unknown", "none")),
        ("manual", ("unknown", "none")),
    ],
)
def test_a_verdict_of_ones_own(make, run, verdict, expected):
    run(make.agent(uses("ok"), [ok], [make.memory(verdict=verdict)]), "q")
    assert (make.episode().verdict, make.episode().source) == expected


def test_a_state_without_the_key_is_passed_over(make, run):
    """A run that is resumed from a checkpoint older than the memory."""
    saver = InMemorySaver()
    before = make.agent(uses("asks"), [asks], checkpointer=saver)
    run(before, "q", THREAD)
    after = make.agent(uses("asks"), [asks], [make.memory()], checkpointer=saver)
    assert run(after, Command(resume="yes"), THREAD)["messages"][-1].text == "done"
    assert make.episodes() == []
