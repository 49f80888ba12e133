"""Each way a run ends, for each agent of LlamaIndex: what the journal holds of it."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentOutput, AgentWorkflow, FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool, ToolOutput
from workflows.errors import WorkflowCancelledByUser, WorkflowRuntimeError, WorkflowTimeoutError

from remnant.memory import Verdict
from remnant_llamaindex import RemnantMemory
from remnant_llamaindex._steps import of_event

QUESTION = "what is one and two"


async def ran(memory: RemnantMemory, run: Any, tracked: bool) -> Any:
    return await (memory.track(run) if tracked else run)


def broken(a: int, b: int) -> int:
    """Add."""
    raise ValueError("boom")


@pytest.mark.parametrize("tracked", [False, True], ids=["messages", "events"])
@pytest.mark.parametrize("kind", ["function", "workflow", "react", "code"])
async def test_every_step_of_an_answered_run_is_kept(stage: Any, kind: str, tracked: bool):
    memory = stage.open()
    agent = stage.agent(stage.once(kind), kind=kind)
    answer = await ran(memory, agent.run(user_msg=QUESTION, memory=memory), tracked)
    assert str(answer) == "three"
    episode = stage.episode(memory)
    assert (episode.task, episode.verdict, episode.source) == (QUESTION, "unknown", "rule")
    assert episode.closed_at is not None
    assert [step["role"] for step in episode.steps] == ["user", "assistant", "tool", "assistant"]
    assert "3" in episode.steps[2]["content"]
    assert "three" in episode.steps[3]["content"]
    assert episode.metadata["session"] == memory.session_id
    assert len(memory.core.store.episodes("tenant-a")) == 1


@pytest.mark.parametrize("tracked", [False, True])
async def test_tool_call_and_its_result_carry_names_and_arguments(stage: Any, tracked: bool):
    memory = stage.open()
    await ran(memory, stage.agent(stage.once("function")).run(user_msg=QUESTION, memory=memory), tracked)
    _, first, second, _ = stage.episode(memory).steps
    assert first["tool_calls"] == [{"name": "add", "arguments": {"a": 1, "b": 2}}]
    assert second == {"role": "tool", "name": "add", "arguments": {"a": 1, "b": 2}, "content": "3"}


async def test_each_user_turn_is_an_episode_of_its_own(stage: Any):
    memory = stage.open()
    agent = stage.agent(stage.once("function"))
    for question in ("first", "second"):
        await agent.run(user_msg=question, memory=memory)
    found = memory.core.store.episodes("tenant-a")
    assert sorted(episode.task for episode in found) == ["first", "second"]
    steps = [len(stage.episode(memory, episode.id).steps) for episode in found]
    assert steps == [4, 4]


async def test_failed_tool_fails_a_tracked_run(stage: Any):
    memory = stage.open()
    await memory.track(stage.agent(stage.once("function"), broken).run(user_msg=QUESTION, memory=memory))
    episode = stage.episode(memory)
    assert (episode.verdict, episode.source) == ("failure", "rule")
    assert episode.steps[2] == {
        "role": "tool",
        "name": "add",
        "arguments": {"a": 1, "b": 2},
        "content": "boom",
        "error": True,
    }


async def test_tool_that_does_not_exist_fails_a_tracked_run(stage: Any, call_: Any, say_: Any):
    def answer(messages: list[ChatMessage]) -> ChatMessage:
        return say_("done") if any(m.role == "tool" for m in messages) else call_("fly")

    memory = stage.open()
    await memory.track(stage.agent(answer).run(user_msg=QUESTION, memory=memory))
    assert stage.episode(memory).verdict == "failure"
    assert "not found" in stage.episode(memory).steps[2]["content"]


async def test_failed_tool_that_worked_in_the_end_does_not_fail_the_run(stage: Any, call_: Any, say_: Any):
    def answer(messages: list[ChatMessage]) -> ChatMessage:
        tools = [m for m in messages if m.role == "tool"]
        return [call_("add"), call_("add1"), say_("three")][len(tools)]

    memory = stage.open()
    run = stage.agent(answer, broken, lambda a, b: a + b).run(user_msg=QUESTION, memory=memory)
    await memory.track(run)
    assert stage.episode(memory).verdict == "unknown"


@pytest.mark.parametrize("tracked", [False, True])
async def test_empty_answer_is_a_failure(stage: Any, say_: Any, tracked: bool):
    memory = stage.open()
    await ran(memory, stage.agent(lambda _: say_("")).run(user_msg=QUESTION, memory=memory), tracked)
    assert stage.episode(memory).verdict == "failure"


@pytest.mark.parametrize("kind", ["function", "workflow", "react", "code"])
async def test_model_that_raises_after_a_tool_leaves_a_failure_with_its_steps(stage: Any, kind: str):
    once = stage.once(kind)

    def answer(messages: list[ChatMessage]) -> ChatMessage:
        reply = once(messages)
        if "three" in (reply.content or ""):
            raise RuntimeError("provider down")
        return reply

    memory = stage.open()
    with pytest.raises(RuntimeError, match="provider down"):
        await memory.track(stage.agent(answer, kind=kind).run(user_msg=QUESTION, memory=memory))
    episode = stage.episode(memory)
    assert (episode.verdict, episode.source) == ("failure", "exception")
    assert [step["role"] for step in episode.steps] == ["user", "assistant", "tool", "agent"]
    assert "provider down" in episode.steps[-1]["content"]


@pytest.mark.parametrize("kind", ["function", "workflow", "react", "code"])
async def test_iterations_that_run_out_are_a_failure_by_limit(stage: Any, kind: str):
    once = stage.once(kind)
    memory = stage.open()
    agent = stage.agent(lambda messages: once([m for m in messages if m.role == "user"][:1]), kind=kind)
    with pytest.raises(WorkflowRuntimeError, match="iterations"):
        await memory.track(agent.run(user_msg=QUESTION, memory=memory, max_iterations=3))
    episode = stage.episode(memory)
    assert (episode.verdict, episode.source) == ("failure", "limit")
    assert sum(step["role"] == "tool" for step in episode.steps) == 2


async def test_answer_forced_by_the_limit_is_a_failure_by_limit(stage: Any, call_: Any, say_: Any):
    def answer(messages: list[ChatMessage]) -> ChatMessage:
        return say_("as far as I got") if messages[-1].role == "system" else call_()

    memory = stage.open()
    agent = stage.agent(answer, early_stopping_method="generate")
    result = await memory.track(agent.run(user_msg=QUESTION, memory=memory, max_iterations=2))
    assert str(result) == "as far as I got"
    assert (stage.episode(memory).verdict, stage.episode(memory).source) == ("failure", "limit")


async def slow(messages: Sequence[ChatMessage], **_: Any) -> AsyncGenerator[ChatMessage, None]:
    await asyncio.sleep(30)
    yield ChatMessage(role="assistant", content="late")


def sleeper(**options: Any) -> FunctionAgent:
    from llama_index.core.llms.mock import MockFunctionCallingLLM

    llm = MockFunctionCallingLLM(response_generator=slow, is_chat_model=True)
    return FunctionAgent(tools=[FunctionTool.from_defaults(broken)], llm=llm, **options)


async def begun(memory: RemnantMemory) -> None:
    """Wait until the journal holds the run."""
    while not memory.core.store.episodes("tenant-a"):
        await asyncio.sleep(0.01)


async def test_run_that_the_user_cancels_says_nothing_about_success(stage: Any):
    memory = stage.open()
    run = memory.track(sleeper().run(user_msg=QUESTION, memory=memory))
    await begun(memory)
    await run.cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await run
    assert (stage.episode(memory).verdict, stage.episode(memory).source) == ("unknown", "cancelled")


async def test_run_whose_awaiting_task_is_cancelled_is_closed(stage: Any):
    memory = stage.open()
    run = memory.track(sleeper().run(user_msg=QUESTION, memory=memory))
    await begun(memory)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(run, 0.1)
    episode = stage.episode(memory)
    assert (episode.verdict, episode.source) == ("unknown", "cancelled")
    assert episode.closed_at is not None


async def test_run_that_times_out_is_a_failure_by_limit(stage: Any):
    memory = stage.open()
    with pytest.raises(WorkflowTimeoutError):
        await memory.track(sleeper(timeout=1.0).run(user_msg=QUESTION, memory=memory))
    assert (stage.episode(memory).verdict, stage.episode(memory).source) == ("failure", "limit")


async def test_run_that_died_unseen_is_closed_as_unknown_by_the_next_turn(stage: Any, say_: Any):
    def down(_: Any) -> ChatMessage:
        raise RuntimeError("provider down")

    memory = stage.open()
    with pytest.raises(RuntimeError):
        await stage.agent(down).run(user_msg="first", memory=memory)
    died = memory.episode
    assert stage.episode(memory).closed_at is None
    await memory.track(stage.agent(lambda _: say_("three")).run(user_msg="second", memory=memory))
    assert (stage.episode(memory, died).verdict, stage.episode(memory, died).source) == ("unknown", "superseded")
    assert stage.episode(memory).task == "second"
    assert [step["content"] for step in stage.episode(memory).steps] == ["second", "three"]


@pytest.mark.parametrize("tracked", [False, True])
async def test_handoff_between_agents_is_one_episode(stage: Any, call_: Any, say_: Any, tracked: bool):
    def first(messages: list[ChatMessage]) -> ChatMessage:
        return call_("handoff", to_agent="second", reason="it knows")

    agents: list[Any] = [
        FunctionAgent(name="first", description="asks", llm=stage.llm(first), can_handoff_to=["second"]),
        FunctionAgent(name="second", description="knows", llm=stage.llm(lambda _: say_("three"))),
    ]
    memory = stage.open()
    workflow = AgentWorkflow(agents=agents, root_agent="first")
    assert str(await ran(memory, workflow.run(user_msg=QUESTION, memory=memory), tracked)) == "three"
    (episode,) = memory.core.store.episodes("tenant-a")
    steps = stage.episode(memory, episode.id).steps
    assert [step["role"] for step in steps] == ["user", "assistant", "tool", "assistant"]
    assert episode.closed_at is not None


async def test_tool_that_returns_directly_ends_the_episode(stage: Any, call_: Any):
    tool = FunctionTool.from_defaults(lambda a, b: a + b, name="add", description="adds", return_direct=True)
    memory = stage.open()
    agent = FunctionAgent(tools=[tool], llm=stage.llm(lambda _: call_()))
    assert str(await agent.run(user_msg=QUESTION, memory=memory)) == "3"
    assert stage.episode(memory).closed_at is not None


async def test_verdict_is_the_judges_or_a_function_of_ones_own(stage: Any):
    seen: list[str] = []

    def verdict(episode: Any) -> Verdict:
        seen.append(episode.steps[-1]["content"])
        return Verdict("success", "test")

    memory = stage.open(verdict=verdict)
    await stage.agent(stage.once("function")).run(user_msg=QUESTION, memory=memory)
    assert seen == ["three"]
    assert (stage.episode(memory).verdict, stage.episode(memory).source) == ("success", "test")


async def test_feedback_comes_later(stage: Any):
    memory = stage.open()
    await stage.agent(stage.once("function")).run(user_msg=QUESTION, memory=memory)
    await memory.afeedback(True)
    assert (stage.episode(memory).verdict, stage.episode(memory).source) == ("success", "user")


async def test_judge_that_raises_knows_nothing(stage: Any):
    def verdict(episode: Any) -> Verdict:
        raise OSError("no judge today")

    events: list[str] = []
    memory = stage.open(verdict=verdict)
    memory.core.events.subscribe(lambda event: events.append(event.name))
    await stage.agent(stage.once("function")).run(user_msg=QUESTION, memory=memory)
    assert stage.episode(memory).verdict == "unknown"
    assert "verdict_failed" in events


async def test_words_of_tools_are_not_the_agents(stage: Any):
    """Whatever a tool says may become a lesson only as a tool's words, for each kind of agent."""
    from remnant.memory.strategies.trace import learnt_trust

    for kind in stage.kinds:
        memory = stage.open().session()
        await stage.agent(stage.once(kind), kind=kind).run(user_msg=QUESTION, memory=memory)
        assert learnt_trust([stage.episode(memory)]) == "tool", kind


def test_results_that_join_an_answer_at_its_end_are_no_wishes_for_tools():
    """LlamaIndex adds a run's results to its last event, which a slow journal may read only then."""
    result = ToolOutput(content="3", tool_name="add", raw_input={}, raw_output=3)
    done = ToolCallResult(tool_name="add", tool_kwargs={}, tool_id="1", tool_output=result, return_direct=False)
    message = ChatMessage(role="assistant", content="three")
    output = AgentOutput(response=message, tool_calls=[], current_agent_name="Agent")
    output.tool_calls.extend([done])  # type: ignore[list-item]
    assert of_event(output) == {"role": "assistant", "content": "three"}
