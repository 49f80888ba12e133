"""What the model is shown: memories as data at call time, nothing of them in the state, nothing without any."""

import asyncio
import itertools
from typing import Any

import pytest
from langchain.agents.middleware import PIIMiddleware, SummarizationMiddleware
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from remnant.errors import ConfigError
from remnant_langchain import MemoryMiddleware

THREAD = {"configurable": {"thread_id": "1"}}


@tool
def ok() -> str:
    """Works."""
    return "fine"


class Seen:
    """A model's answer that keeps the messages it was shown."""

    def __init__(self, tools: int = 0) -> None:
        self.prompts: list[list[Any]] = []
        self._tools = tools

    def __call__(self, messages: Any) -> Any:
        self.prompts.append(list(messages))
        if len(self.prompts) <= self._tools:
            return AIMessage("", tool_calls=[{"name": "ok", "args": {}, "id": str(len(self.prompts))}])
        return "done"

    def as_data(self) -> list[list[dict[str, Any]]]:
        """Without the ids, which are random."""
        dumped = [[message.model_dump() for message in prompt] for prompt in self.prompts]
        for message in itertools.chain.from_iterable(dumped):
            message.pop("id")
        return dumped


def test_an_empty_memory_changes_no_byte_of_the_prompt(make, run):
    with_memory, without = Seen(1), Seen(1)
    run(make.agent(with_memory, [ok], [make.memory()], system_prompt="Be brief."), "how is tea taken?")
    run(make.agent(without, [ok], system_prompt="Be brief."), "how is tea taken?")
    assert with_memory.as_data() == without.as_data()


def test_memories_stand_below_the_system_prompt(make, run):
    memory, seen = make.memory(), Seen(1)
    memory.memory.add("tea is taken without milk")
    result = run(make.agent(seen, [ok], [memory], system_prompt="Be brief."), "how is tea taken?")
    for prompt in seen.prompts:
        assert prompt[0].text == "Be brief.\n\nMEMORY:\ntea is taken without milk"
    assert "milk" not in str(result)
    assert "remnant" not in result


def test_an_agent_without_a_system_prompt(make, run):
    memory, seen = make.memory(), Seen()
    memory.memory.add("tea is taken without milk")
    run(make.agent(seen, [], [memory]), "how is tea taken?")
    assert isinstance(seen.prompts[0][0], SystemMessage)
    assert seen.prompts[0][0].text == "MEMORY:\ntea is taken without milk"


def test_memories_before_the_question(make, run):
    memory, seen = make.memory(position="user"), Seen(1)
    memory.memory.add("tea is taken without milk")
    run(make.agent(seen, [ok], [memory], system_prompt="Be brief."), "how is tea taken?")
    for prompt in seen.prompts:
        assert [message.text for message in prompt[:2]] == [
            "Be brief.",
            "MEMORY:\ntea is taken without milk\n\nhow is tea taken?",
        ]


def test_the_prefix_stays_the_same_from_call_to_call(make, run):
    memory, seen = make.memory(strategy="facts"), Seen(2)
    memory.memory.add("tea is taken without milk")
    run(make.agent(seen, [ok], [memory]), "how is tea taken?")
    assert len({prompt[0].text for prompt in seen.prompts}) == 1


def test_the_state_keeps_ids_only(make, run):
    memory, saver = make.memory(), InMemorySaver()
    (id,) = memory.memory.add("tea is taken without milk")
    agent = make.agent(Seen(1), [ok], [memory], checkpointer=saver)
    run(agent, "how is tea taken?", THREAD)
    kept = agent.get_state(THREAD).values["remnant"][memory.name]
    assert kept == {"episode": make.episode().id, "ids": [id]}
    assert "without milk" not in str(saver.blobs) + str(saver.storage) + str(saver.writes)


def test_what_is_forgotten_during_a_run_is_shown_no_more(make, run):
    memory, seen = make.memory(), Seen(1)
    (id,) = memory.memory.add("tea is taken without milk")

    @tool("ok")
    def forget() -> str:
        """Forgets."""
        memory.memory.forget(id)
        return "fine"

    run(make.agent(seen, [forget], [memory]), "how is tea taken?")
    assert ["milk" in str(prompt) for prompt in seen.prompts] == [True, False]


def test_budget_and_k(make, run):
    memory, seen = make.memory(k=2), Seen()
    memory.memory.add([f"tea fact {number} {'x' * 100}" for number in range(5)])
    run(make.agent(seen, [], [memory]), "tea")
    assert seen.prompts[0][0].text.count("tea fact") == 2
    run(make.agent(seen, [], [memory]), "tea", {"configurable": {"remnant": {"k": 4, "budget_tokens": 100}}})
    assert seen.prompts[1][0].text.count("tea fact") == 3


def test_options_of_a_run(make, run):
    memory, seen = make.memory(), Seen()
    first = memory.memory.apply([], "nothing", "test")
    memory.memory.add("tea is taken without milk")
    before = memory.memory.changes()[0].number
    memory.memory.add("tea is drunk at five")
    agent = make.agent(seen, [], [memory])
    run(agent, "tea", {"configurable": {"remnant": {"as_of": before}}})
    assert "five" not in seen.prompts[-1][0].text
    assert "milk" in seen.prompts[-1][0].text
    run(agent, "tea", {"configurable": {"remnant": {"off": True}}})
    assert [message.type for message in seen.prompts[-1]] == ["human"]
    run(agent, "tea", {"configurable": {"remnant": {"write": "off"}}})
    assert "five" in seen.prompts[-1][0].text
    assert len(make.episodes()) == 1
    assert first is not None


def test_off_forgets_what_an_earlier_turn_recalled(make, run):
    memory, seen = make.memory(), Seen()
    memory.memory.add("tea is taken without milk")
    agent = make.agent(seen, [], [memory], checkpointer=InMemorySaver())
    run(agent, "tea", THREAD)
    run(agent, "tea", {"configurable": {**THREAD["configurable"], "remnant": {"off": True}}})
    assert ["MEMORY" in str(prompt) for prompt in seen.prompts] == [True, False]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"kk": 1}, "option"), ({"k": 0}, "1 or more"), ({"write": "later"}, "deferred"), ("all", "mapping")],
)
def test_wrong_options_are_said_at_once(make, run, options, said):
    agent = make.agent(Seen(), [], [make.memory()])
    with pytest.raises(ConfigError, match=said):
        run(agent, "tea", {"configurable": {"remnant": options}})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": 0}, "1 or more"),
        ({"position": "top"}, "system"),
        ({"verdict": "good"}, "judge"),
        ({"llm": 3}, "chat model"),
        ({"embedder": 3}, "embeddings"),
        ({"colour": 3}, "colour"),
        ({"write": "later"}, "write"),
    ],
)
def test_wrong_settings_are_said_at_once(make, settings, said):
    with pytest.raises(ConfigError, match=said):
        make.memory(**settings)


def test_a_memory_that_is_open_keeps_its_own_settings(make):
    memory = make.memory().memory
    assert MemoryMiddleware(memory).memory is memory
    with pytest.raises(ConfigError, match="strategy"):
        MemoryMiddleware(memory, strategy="tim")


ORDERS = list(itertools.permutations(["memory", "summary", "pii"]))


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_the_whole_run_is_recorded_whatever_is_summarised_or_hidden(make, run, order):
    seen = Seen(6)
    model = GenericFakeChatModel(messages=itertools.repeat(AIMessage("a summary")))
    summary = SummarizationMiddleware(model=model, trigger=("messages", 6), keep=("messages", 2))
    pii = PIIMiddleware("email", strategy="redact")
    memory = make.memory(redact=lambda text: text.replace("ann@example.org", "[mail]"))
    memory.memory.add("tea is taken without milk")
    kinds = {"memory": memory, "summary": summary, "pii": pii}
    agent = make.agent(seen, [ok], [kinds[name] for name in order])
    result = run(agent, "tea for ann@example.org", {"recursion_limit": 200})
    assert len(result["messages"]) < 13
    episode = make.episode()
    assert [step["role"] for step in episode.steps] == ["assistant", "tool"] * 6 + ["assistant"]
    assert all("MEMORY:\ntea" in prompt[0].text for prompt in seen.prompts)
    assert episode.task == "tea for [mail]"
    assert all("example.org" not in str(prompt) for prompt in seen.prompts)
    assert b"ann@example.org" not in make.path.read_bytes()


MODES = ["values", "updates", "messages", "custom", "debug", "checkpoints", "tasks"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("write", ["inline", "background"])
def test_streams_show_the_answer_and_no_word_of_the_memory(make, mode, write):
    """Its model is the agent's own, asked in the hook (inline) or in a worker."""

    def answer(messages: Any) -> str:
        return "done well" if messages[-1].text == "how is tea taken?" else '{"secret judge": 1}'

    memory = make.memory(llm=None, strategy="facts", write=write)
    memory.memory.add("tea is taken without milk")
    agent = make.agent(answer, [], [memory], checkpointer=InMemorySaver())
    chunks = list(agent.stream({"messages": [("user", "how is tea taken?")]}, THREAD, stream_mode=mode))
    assert memory.memory.costs() or write == "background"
    assert "secret" not in str(chunks)
    assert "without milk" not in str(chunks)
    if mode == "messages":
        assert "".join(chunk.text for chunk, _ in chunks) == "done well"
    if mode == "custom":
        told = [chunk["remnant"] for chunk in chunks]
        assert [event["event"] for event in told][:2] == ["retrieved", "queued"]
        assert len(told[0]["ids"]) == 1
        assert {event["episode"] for event in told} == {make.episode().id}


async def test_async_streams(make):
    memory = make.memory(llm=None, strategy="facts", write="inline")
    memory.memory.add("tea is taken without milk")
    agent = make.agent(lambda m: "done well" if len(m) < 3 else '{"secret": 1}', [], [memory])
    given = {"messages": [("user", "how is tea taken?")]}
    both = [part async for part in agent.astream(given, stream_mode=["messages", "custom"])]
    assert "".join(data[0].text for mode, data in both if mode == "messages") == "done well"
    assert [data["remnant"]["event"] for mode, data in both if mode == "custom"] == ["retrieved", "queued"]


def test_what_was_learnt_inline_is_told(make):
    agent = make.agent(lambda _: "done", [], [memory := make.memory(write="inline")])
    told = list(agent.stream({"messages": [("user", "tea")]}, stream_mode="custom"))
    assert [event["remnant"]["event"] for event in told] == ["retrieved", "queued", "stored"]
    assert told[-1]["remnant"]["ids"] == [memory.memory.records()[0].id]


def test_an_agent_learns_from_its_runs_with_its_own_model(make, run):
    """The one line of the README: the agent's model distils, in the background."""
    prompts: list[str] = []

    def answer(messages: Any) -> str:
        prompts.append(str(messages))
        text = " ".join(message.text for message in messages)
        if "JSON Schema" not in text:
            return "the blue door"
        if "label" in text:
            return '{"reason": "it worked", "label": "success", "confidence": 0.9}'
        return '{"items": [{"title": "Doors", "description": "Mazes.", "content": "Take the blue door."}]}'

    memory = make.memory(strategy="reasoningbank", llm=None, write="background")
    agent = make.agent(answer, [], [memory])
    run(agent, "which door of the maze?")
    assert memory.memory.flush(20)
    (record,) = memory.memory.records()
    assert "Take the blue door." in record.content
    prompts.clear()
    run(agent, "which door of the maze?")
    assert "Take the blue door." in prompts[0]


def test_distillation_left_by_another_memory_waits_for_the_agents_model(make, run):
    run(make.agent(lambda _: "done", [], [make.memory(strategy="facts", write="manual")]), "tea")
    late = make.memory(strategy="facts", llm=None, write="manual").memory
    assert not late.flush(0.1)
    assert [(state, attempts) for _, state, attempts, _ in late.store.jobs("default")] == [("queued", 0)]
    agent = make.agent(lambda _: '{"operations": []}', [], [make.made[1]])
    run(agent, "coffee", {"configurable": {"remnant": {"write": "off"}}})
    late.flush(0.1)
    assert sum(usage.calls for usage in late.costs().values()) > 0


async def test_async_hooks_never_hold_the_loop(make):
    """A slow store and a slow embedder: the loop goes on ticking during recall, recording and close."""
    import time

    memory = make.memory(recall_seconds=5.0)
    store = memory.memory.store
    for name in ("words", "add_step", "close_episode", "open_episode", "get"):
        original = getattr(store, name)

        def slow(*args: Any, _original: Any = original, **rest: Any) -> Any:
            time.sleep(0.15)
            return _original(*args, **rest)

        setattr(store, name, slow)
    ticks, gaps, done = 0, [0.0], False

    async def tick() -> None:
        nonlocal ticks
        last = time.monotonic()
        while not done:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            gaps.append(now - last)
            last = now
            ticks += 1

    ticker = asyncio.create_task(tick())
    agent = make.agent(Seen(1), [ok], [memory])
    await agent.ainvoke({"messages": [("user", "tea")]})
    await memory.memory.aflush(1)
    done = True
    await ticker
    assert ticks > 30
    assert max(gaps) < 0.14  # one blocking call of ours would leave at least 0.15 s


def test_messages_that_are_not_text(make, run):
    memory, seen = make.memory(position="user"), Seen()
    memory.memory.add("tea is taken without milk")
    picture = {"type": "image", "base64": "aGk=", "mime_type": "image/png"}
    asked = HumanMessage(content=[{"type": "text", "text": "how is tea taken?"}, picture])
    run(make.agent(seen, [], [memory]), {"messages": [asked]})
    shown = seen.prompts[0][0].content
    assert [part["type"] for part in shown] == ["text", "text", "image"]
    assert make.episode().task == "how is tea taken?"
