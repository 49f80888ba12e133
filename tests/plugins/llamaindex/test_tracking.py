"""A tracked run is the run: same result, same error, same events; and fifty of them stay apart."""

import asyncio
import warnings
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import Memory
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent
from workflows.errors import WorkflowRuntimeError

from remnant.errors import ConfigError
from remnant.memory import RolloutsFailed
from remnant_llamaindex import matts

QUESTION = "what is one and two"


def kinds(events: list[Any]) -> list[str]:
    return [type(event).__name__ for event in events]


async def stock_events(stage: Any) -> list[str]:
    run = stage.agent(stage.once("function")).run(user_msg=QUESTION, memory=Memory.from_defaults())
    return kinds([event async for event in run.stream_events()])


@pytest.mark.parametrize("streamed", ["handler", "tracked"])
async def test_events_stream_through_untouched(stage: Any, streamed: str):
    memory = stage.open()
    handler = stage.agent(stage.once("function")).run(user_msg=QUESTION, memory=memory)
    tracked = memory.track(handler)
    source = handler if streamed == "handler" else tracked
    seen = kinds([event async for event in source.stream_events()])
    assert seen == await stock_events(stage)
    assert str(await tracked) == "three"
    assert len(stage.episode(memory).steps) == 4
    with pytest.raises(WorkflowRuntimeError, match="consumed"):
        [event async for event in handler.stream_events()]


async def test_events_come_while_the_run_goes_on(stage: Any):
    memory = stage.open()
    handler = stage.agent(stage.once("function")).run(user_msg=QUESTION, memory=memory)
    tracked = memory.track(handler)
    async for event in tracked.stream_events():
        if isinstance(event, ToolCallResult):
            assert not tracked.is_done()
            break
    assert str(await tracked) == "three"


async def test_events_may_be_streamed_after_the_end(stage: Any):
    memory = stage.open()
    handler = stage.agent(stage.once("function")).run(user_msg=QUESTION, memory=memory)
    await memory.track(handler)
    assert kinds([event async for event in handler.stream_events()]) == await stock_events(stage)


async def test_handler_itself_may_be_awaited(stage: Any):
    memory = stage.open()
    handler = stage.agent(stage.once("function")).run(user_msg=QUESTION, memory=memory)
    tracked = memory.track(handler)
    assert str(await handler) == "three"
    assert await tracked is await tracked
    assert tracked.ctx is handler.ctx


async def test_run_that_began_before_it_was_tracked(stage: Any):
    memory = stage.open()
    handler = stage.agent(stage.once("function")).run(user_msg=QUESTION, memory=memory)
    await asyncio.sleep(0.01)
    await memory.track(handler)
    (episode,) = memory.core.store.episodes("tenant-a")
    assert [step["role"] for step in stage.episode(memory, episode.id).steps] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


async def test_run_that_was_over_before_it_was_tracked_is_not_kept_twice(stage: Any):
    memory = stage.open()
    handler = stage.agent(stage.once("function")).run(user_msg=QUESTION, memory=memory)
    await handler
    assert str(await memory.track(handler)) == "three"
    assert kinds([event async for event in handler.stream_events()])[-1] == "StopEvent"
    assert len(memory.core.store.episodes("tenant-a")) == 1


async def test_any_awaitable_of_a_run_can_be_tracked(stage: Any, say_: Any):
    memory = stage.open()

    async def chat(text: str) -> str:
        await memory.aput(ChatMessage(role="user", content=text))
        await memory.aput(say_("let me think"))
        return "three"

    assert await memory.track(chat(QUESTION)) == "three"
    assert [step["content"] for step in stage.episode(memory).steps] == [QUESTION, "let me think"]

    async def dies() -> None:
        await memory.aput(ChatMessage(role="user", content="fail"))
        raise RuntimeError("no engine")

    with pytest.raises(RuntimeError, match="no engine"):
        await memory.track(dies())
    assert (stage.episode(memory).task, stage.episode(memory).source) == ("fail", "exception")


async def test_run_that_nobody_awaits_is_recorded_without_complaint(stage: Any, recwarn: Any):
    def down(_: Any) -> Any:
        raise RuntimeError("provider down")

    memory = stage.open()
    tracked = memory.track(stage.agent(down).run(user_msg=QUESTION, memory=memory))
    while not tracked._task.done():
        await asyncio.sleep(0.01)
    assert stage.episode(memory).source == "exception"


async def test_person_in_the_loop_answers_through_the_tracked_run(stage: Any, call_: Any, say_: Any):
    async def ask(ctx: Context) -> str:
        """Ask the person."""
        waiting = InputRequiredEvent(prefix="sure?")  # pyright: ignore[reportCallIssue]
        answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=waiting)
        return answer.response

    tool = FunctionTool.from_defaults(async_fn=ask, name="ask")
    block = call_("ask")
    block.blocks[0].tool_kwargs = {}
    llm = stage.llm(lambda messages: say_("done") if any(m.role == "tool" for m in messages) else block)
    memory = stage.open()
    tracked = memory.track(FunctionAgent(tools=[tool], llm=llm).run(user_msg=QUESTION, memory=memory))
    async for event in tracked.stream_events():
        if isinstance(event, InputRequiredEvent):
            tracked.ctx.send_event(HumanResponseEvent(response="yes, go"))  # pyright: ignore[reportCallIssue]
    assert str(await tracked) == "done"
    assert "yes, go" in [step["content"] for step in stage.episode(memory).steps]


@pytest.mark.parametrize(("count", "shared"), [(50, False), (8, True)], ids=["own histories", "one database"])
async def test_runs_side_by_side_cross_nothing(stage: Any, call_: Any, say_: Any, count: int, shared: bool):
    def answer(messages: list[ChatMessage]) -> ChatMessage:
        name = next(m.content or "" for m in messages if m.role == "user").split()[-1]
        return say_(f"answer {name}") if any(m.role == "tool" for m in messages) else call_(a=int(name), b=0)

    uri = {"async_database_uri": f"sqlite+aiosqlite:///{stage.path}.chat"} if shared else {}
    memory = stage.open(**uri)
    agent = stage.agent(answer, lambda a, b: f"tool {a}")

    async def one(number: int) -> tuple[str, str]:
        session = memory.session()
        run = agent.run(user_msg=f"task {number}", memory=session)
        result = await (session.track(run) if number % 2 else run)
        return session.episode, str(result)

    ends = await asyncio.gather(*map(one, range(count)))
    for number, (id, result) in enumerate(ends):
        episode = stage.episode(memory, id)
        assert result == f"answer {number}"
        assert episode.task == f"task {number}"
        assert [step["content"] for step in episode.steps] == [
            f"task {number}",
            "",
            f"tool {number}",
            f"answer {number}",
        ]
        assert episode.closed_at is not None
    assert len(memory.core.store.episodes("tenant-a")) == count


async def test_matts_answers_with_the_best_and_learns_once(stage: Any, call_: Any, say_: Any):
    answers = iter(["four", "three", "three", "three"])

    def answer(messages: list[ChatMessage]) -> ChatMessage:
        return say_(next(answers)) if any(m.role == "tool" for m in messages) else call_()

    memory = stage.open()
    memory.core.add("Adding one and two gives three.")
    scaled = await matts(memory, stage.agent(answer), QUESTION, n=4)
    assert str(scaled.result) == "three"
    assert "agree" in scaled.reason
    episodes = memory.core.store.episodes("tenant-a")
    assert {episode.group for episode in episodes} == {scaled.group}
    assert sorted(episode.metadata["rollout"] for episode in episodes) == [0, 1, 2, 3]
    assert {episode.task for episode in episodes} == {QUESTION}
    assert [job[0] for job in memory.core.store.jobs("tenant-a")] == [scaled.group]
    assert await memory.aget_all() == []


async def test_rollouts_of_a_group_read_one_state_of_memory(stage: Any, say_: Any):
    memory = stage.open()
    memory.core.add("One and two is three, says Ada.")

    def answer(messages: list[ChatMessage]) -> ChatMessage:
        memory.core.add("One and two is three, says somebody who came in between.")
        return say_("three")

    await matts(memory, stage.agent(answer), QUESTION, n=3, mode="sequential")
    assert len(stage.prompts) == 3
    assert stage.shown("says Ada")
    assert not stage.shown("came in between")


async def test_rollout_that_raises_is_data(stage: Any, say_: Any):
    calls = iter(range(3))

    def answer(messages: list[ChatMessage]) -> ChatMessage:
        if next(calls) == 0:
            raise RuntimeError("provider down")
        return say_("three")

    memory = stage.open()
    scaled = await matts(memory, stage.agent(answer), QUESTION, n=3)
    assert str(scaled.result) == "three"
    verdicts = sorted(attempt.verdict for attempt in scaled.attempts)
    assert verdicts == ["failure", "unknown", "unknown"]
    with pytest.raises(RolloutsFailed):
        await matts(memory, stage.agent(lambda _: 1 / 0), QUESTION, n=2)


async def test_sequential_rollouts_check_and_mend_in_one_conversation(stage: Any, say_: Any):
    memory = stage.open()
    agent = stage.agent(lambda messages: say_(f"try {sum(m.role == 'user' for m in messages)}"))
    scaled = await matts(memory, agent, QUESTION, n=3, mode="sequential")
    assert str(scaled.result) == "try 3"
    assert QUESTION in stage.prompts[-1][0][1]
    assert "try 2" in [content for _, content in stage.prompts[-1]]


async def test_group_of_no_rollouts_is_refused(stage: Any, say_: Any):
    with pytest.raises(ConfigError, match="0 rollouts"):
        await matts(stage.open(), stage.agent(lambda _: say_("x")), QUESTION, n=0)


def test_nothing_warns(stage: Any):
    """A run, tracked and awaited, leaves no warning of asyncio's behind."""

    async def main() -> None:
        memory = stage.open()
        await memory.track(stage.agent(stage.once("function")).run(user_msg=QUESTION, memory=memory))
        await memory.aclose()

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        asyncio.run(main())
    assert not [str(w.message) for w in found if issubclass(w.category, RuntimeWarning)]
