"""How much of a chat goes to the model: whole when short, parts or quotes when long, pairs never split."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from remnant.errors import ConfigError
from remnant.memory import Record
from remnant.routing import ContextRouter, Model, Settings, count_tokens
from remnant_langchain import RouterMiddleware
from remnant_langchain._turns import as_text, cut

SMALL = ContextRouter(
    Settings(
        low=2, high=4, tokens_per_conversation=100, recent=2, hysteresis=0.0, k_by_tier={"weak": 2, "mid": 2, "top": 2}
    )
)
FILL = "and so on with words that say little " * 8  # about 75 tokens


def _talk(count: int, *, tools: bool = False) -> list[AnyMessage]:
    """Turns with a word of their own each."""
    messages: list[AnyMessage] = []
    for i in range(count):
        messages.append(HumanMessage(f"tell me of city{i} {FILL}"))
        if tools:
            messages.append(AIMessage("", tool_calls=[{"name": "look", "args": {"at": f"city{i}"}, "id": f"t{i}"}]))
            messages.append(ToolMessage(f"city{i} has {i} gates", tool_call_id=f"t{i}", name="look"))
        messages.append(AIMessage(f"city{i} is fine"))
    return messages


class FunctionModel(GenericFakeChatModel):
    """A chat model around a function of the messages."""

    messages: Any = ()
    answer: Any

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **rest: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self.answer(messages)))])


class Seen:
    """Answers, and keeps what it was sent."""

    def __init__(self, answer: Any = "done") -> None:
        self.calls: list[list[AnyMessage]] = []
        self.answer = answer

    def __call__(self, messages: Sequence[AnyMessage]) -> Any:
        self.calls.append(list(messages))
        return self.answer(messages) if callable(self.answer) else self.answer

    @property
    def last(self) -> list[AnyMessage]:
        return self.calls[-1]


def _said(messages: Sequence[AnyMessage]) -> str:
    return " ".join(str(message.text) for message in messages)


async def _run(agent: Any, messages: Sequence[Any], awaited: bool, **rest: Any) -> dict[str, Any]:
    given = {"messages": list(messages)}
    return await agent.ainvoke(given, **rest) if awaited else await asyncio.to_thread(agent.invoke, given, **rest)


def _events(agent: Any, messages: Sequence[Any], **rest: Any) -> list[dict[str, Any]]:
    parts = agent.stream({"messages": list(messages)}, stream_mode="custom", **rest)
    return [part["remnant"] for part in parts if part.get("remnant", {}).get("event") == "routed"]


@pytest.mark.parametrize("awaited", [False, True])
async def test_a_short_history_goes_whole(make: Any, awaited: bool) -> None:
    seen = Seen()
    agent = make.agent(seen, middleware=[RouterMiddleware(Model(128_000))], system_prompt="Be kind.")
    messages = [*_talk(5), HumanMessage("and city3?")]
    result = await _run(agent, messages, awaited)
    assert [m.text for m in seen.last] == ["Be kind.", *(m.text for m in messages)]
    assert len(result["messages"]) == len(messages) + 1
    assert "remnant_route" not in result


@pytest.mark.parametrize("awaited", [False, True])
async def test_of_a_long_one_go_the_newest_and_what_shares_words(make: Any, awaited: bool) -> None:
    seen = Seen()
    agent = make.agent(seen, middleware=[RouterMiddleware(Model(100_000), router=SMALL)], system_prompt="Be kind.")
    result = await _run(agent, [*_talk(20), HumanMessage("How many gates has city3?")], awaited)
    text = _said(seen.last)
    assert seen.last[0].text == "Be kind."
    assert seen.last[-1].text == "How many gates has city3?"
    assert "city3 is fine" in text
    assert "city19 is fine" in text, "the newest conversation is always sent"
    assert "city7 " not in text
    assert len(seen.last) < 12
    assert len(result["messages"]) == 42, "the state keeps everything"


def test_between_the_thresholds_the_newest_conversations_go_verbatim(make: Any) -> None:
    seen = Seen()
    costly = ContextRouter(
        Settings(
            low=2,
            high=50,
            tokens_per_conversation=100,
            recent=3,
            cost_ratio=0.0,
            k_by_tier={"weak": 1, "mid": 1, "top": 1},
        )
    )
    agent = make.agent(seen, middleware=[RouterMiddleware(Model(100_000, price_in=3.0), router=costly)])
    agent.invoke({"messages": [*_talk(12), HumanMessage("What was city2?")]})
    cities = [f"city{i}" for i in range(12) if f"city{i} is fine" in _said(seen.last)]
    assert cities == ["city2", "city9", "city10", "city11"]


def test_the_reason_is_told_and_texts_are_not(make: Any) -> None:
    agent = make.agent(Seen(), middleware=[RouterMiddleware(Model(100_000, price_in=3.0), router=SMALL)])
    (event,) = _events(agent, [*_talk(20), HumanMessage("How many gates has city3?")])
    assert (event["mode"], event["query_type"]) == ("rag", "user_fact")
    assert "retrieval finds it" in event["why"]
    assert event["messages"] < event["of_messages"] == 41
    assert 0 < event["usd"] < 1
    assert "city" not in json.dumps(event)
    (short,) = _events(make.agent(Seen(), middleware=[RouterMiddleware(128_000)]), [HumanMessage("hello city1")])
    assert (short["mode"], short["why"]) == ("none", "there is no history")


def _paired(messages: Sequence[AnyMessage]) -> bool:
    calls = {call["id"] for m in messages if isinstance(m, AIMessage) for call in m.tool_calls}
    return calls == {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}


@pytest.mark.parametrize("awaited", [False, True])
async def test_calls_keep_their_results(make: Any, awaited: bool) -> None:
    seen = Seen()
    agent = make.agent(seen, middleware=[RouterMiddleware(Model(100_000), router=SMALL)])
    await _run(agent, [*_talk(20, tools=True), HumanMessage("How many gates has city3?")], awaited)
    assert len(seen.last) < 20
    assert _paired(seen.last)
    assert "city3 has 3 gates" in _said(seen.last)


def test_a_result_that_comes_after_the_next_question_stays_with_its_call() -> None:
    messages: list[AnyMessage] = [
        HumanMessage("look at both"),
        AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": id} for id in "ab"]),
        ToolMessage("one", tool_call_id="a"),
        HumanMessage("hurry"),
        ToolMessage("two", tool_call_id="b"),
        AIMessage("done"),
        HumanMessage("thanks"),
    ]
    history = cut(messages, 2000)
    assert history.turns == ((0, 1, 2, 3, 4, 5),)
    assert history.current == (6,)
    assert cut(messages[:5], 2000).turns == (), "an open call belongs to what is going on now"


MESSAGES = st.lists(st.sampled_from(["human", "ai", "call", "result", "system", "summary"]), max_size=24)


@settings(max_examples=150, deadline=None)
@given(MESSAGES, st.sets(st.integers(0, 23)), st.randoms())
def test_whatever_is_kept_pairs_are_whole_and_in_order(kinds: list[str], chosen: set[int], random: Any) -> None:
    messages: list[AnyMessage] = []
    open_calls: list[str] = []
    for i, kind in enumerate(kinds):
        if kind == "call":
            open_calls.append(str(i))
            messages.append(AIMessage("", tool_calls=[{"name": "x", "args": {}, "id": str(i)}]))
        elif kind == "result" and open_calls:
            messages.append(ToolMessage("r", tool_call_id=open_calls.pop(random.randrange(len(open_calls)))))
        elif kind == "system":
            messages.append(SystemMessage("s"))
        elif kind == "summary":
            messages.append(HumanMessage("sum", additional_kwargs={"lc_source": "summarization"}))
        else:
            messages.append(HumanMessage(f"h{i}") if kind == "human" else AIMessage(f"a{i}"))
    answered = {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
    history = cut(messages, 5)
    every = [*history.pinned, *(i for turn in history.turns for i in turn), *history.current]
    assert sorted(every) == list(range(len(messages)))
    kept = history.kept([unit for unit in history.units if int(unit.id) in chosen])
    assert kept == sorted(kept)
    sent = [messages[i] for i in kept]
    calls = {c["id"] for m in sent if isinstance(m, AIMessage) for c in m.tool_calls}
    assert calls & answered == {m.tool_call_id for m in sent if isinstance(m, ToolMessage)}
    assert all(i in kept for i, m in enumerate(messages) if isinstance(m, SystemMessage) or m.text == "sum")
    people = [i for i, m in enumerate(messages) if isinstance(m, HumanMessage) and m.text != "sum"]
    assert not people or people[-1] in kept
    assert history.tokens == sum(count_tokens(unit.text) for unit in history.units)


def test_a_run_in_progress_is_sent_whole(make: Any) -> None:
    @tool
    def look(at: str) -> str:
        """Look."""
        return f"{at} has 3 gates"

    def answer(messages: Sequence[AnyMessage]) -> Any:
        if isinstance(messages[-1], ToolMessage):
            return "three"
        return AIMessage("", tool_calls=[{"name": "look", "args": {"at": "city3"}, "id": "now"}])

    seen = Seen(answer)
    agent = make.agent(seen, [look], [RouterMiddleware(Model(100_000), router=SMALL)])
    agent.invoke({"messages": [*_talk(20, tools=True), HumanMessage("Look at city3 again.")]})
    assert [m.type for m in seen.last[-3:]] == ["human", "ai", "tool"]
    assert len(seen.calls) == 2
    assert _paired(seen.last)


class Extractor:
    """A chat model that quotes what it is told to look for."""

    model_id = "extractor"

    def __init__(self, word: str, fail: bool = False) -> None:
        self.word, self.fail = word, fail
        self.prompts: list[str] = []
        self.awaited = 0

    def generate(self, messages: Any, **rest: Any) -> Any:
        from remnant.memory import Completion

        prompt = messages[-1].text
        self.prompts.append(prompt)
        if self.fail:
            raise TimeoutError
        listed = json.loads(prompt[prompt.index("\n[") : prompt.index("]\n") + 1])
        lines = [(c["id"], line) for c in listed for line in c["text"].split("\n") if self.word in line]
        items = [{"conversation_id": id, "quote": line, "speaker": "", "note": "", "date": ""} for id, line in lines]
        return Completion(json.dumps({"relevant": bool(items), "items": items}))

    async def agenerate(self, messages: Any, **rest: Any) -> Any:
        self.awaited += 1
        await asyncio.sleep(0)
        return self.generate(messages)


@pytest.mark.parametrize("awaited", [False, True])
async def test_an_extractor_quotes_what_bears_on_the_question(make: Any, awaited: bool) -> None:
    seen, extractor = Seen(), Extractor("city3 is fine")
    router = RouterMiddleware(Model(100_000), router=SMALL, extractor=extractor)
    agent = make.agent(seen, middleware=[router], system_prompt="Be kind.")
    question = HumanMessage("Would Ann enjoy it there?")
    await _run(agent, [*_talk(20), question], awaited)
    system = str(seen.last[0].text)
    assert system.startswith("Be kind.")
    assert "assistant said: city3 is fine" in system
    assert "not instructions" in system
    assert [m.text for m in seen.last[1:]][-1] == question.text
    assert len(seen.last) < 8, "the newest conversation and the question"
    assert (extractor.awaited > 0) is awaited
    asked = len(extractor.prompts)
    await _run(agent, [*_talk(20), question], awaited)
    assert len(extractor.prompts) == asked, "what was extracted once is kept"


def test_blocks_that_cannot_be_read_are_said_to_be_missing(make: Any) -> None:
    seen = Seen()
    router = RouterMiddleware(Model(100_000), router=SMALL, extractor=Extractor("x", fail=True), position="user")
    agent = make.agent(seen, middleware=[router])
    (event,) = _events(agent, [*_talk(20), HumanMessage("Would Ann enjoy it there?")])
    assert event["unread"] > 0
    assert "could not be read" in str(seen.last[-1].text)


def test_without_an_extractor_nothing_is_read_in_blocks(make: Any) -> None:
    agent = make.agent(Seen(), middleware=[RouterMiddleware(Model(100_000), router=SMALL)])
    (event,) = _events(agent, [*_talk(20), HumanMessage("Would Ann enjoy it there?")])
    assert event["mode"] == "rag"
    assert "nothing reads blocks" in event["why"]


def test_what_does_not_fit_is_not_sent(make: Any) -> None:
    seen = Seen()
    agent = make.agent(seen, middleware=[RouterMiddleware(Model(2000, 1200), output_tokens=100)])
    agent.invoke({"messages": [*_talk(40), HumanMessage("How many gates has city3?")]})
    assert sum(count_tokens(as_text(m)) for m in seen.last) <= 1200
    assert "city3 is fine" in _said(seen.last)


def test_the_window_comes_from_the_models_profile(make: Any) -> None:
    seen = Seen()
    agent = make.agent(seen, middleware=[RouterMiddleware()])
    with pytest.raises(ConfigError, match="window"):
        agent.invoke({"messages": [HumanMessage("hello")]})
    model = make.model(seen)
    model.profile = {"max_input_tokens": 128_000}
    create_agent(model, [], middleware=[RouterMiddleware()]).invoke({"messages": [HumanMessage("hello")]})
    assert len(seen.calls) == 1


def test_a_mode_lasts_until_a_threshold_is_passed_by_a_tenth(make: Any) -> None:
    wide = ContextRouter(Settings(low=5, high=9, tokens_per_conversation=100, hysteresis=0.3, cost_ratio=0.0))
    agent = make.agent(
        Seen(), middleware=[RouterMiddleware(Model(100_000, price_in=3.0), router=wide)], checkpointer=InMemorySaver()
    )
    config: Any = {"configurable": {"thread_id": "1"}}
    modes = []
    for i in range(8):
        (event,) = _events(agent, _talk(1)[:1] if i == 0 else [HumanMessage(f"What of city{i}? {FILL}")], config=config)
        modes.append(event["mode"])
    assert modes[:2] == ["none", "full"]
    assert modes[-1] == "recent_plus_rag"
    fresh = make.agent(Seen(), middleware=[RouterMiddleware(Model(100_000, price_in=3.0), router=wide)])
    state = agent.get_state(config).values
    assert "city" not in json.dumps(state["remnant_route"])
    turn = modes.index("recent_plus_rag")
    history = state["messages"][: 2 * turn]
    assert _events(fresh, history[:-1])[0]["mode"] == "recent_plus_rag", "without a past it would have changed earlier"


@pytest.mark.parametrize("first", ["memory", "router"])
@pytest.mark.parametrize("awaited", [False, True])
async def test_it_works_beside_a_memory_in_either_order(make: Any, first: str, awaited: bool) -> None:
    memory = make.memory(scope="a")
    memory.memory.add(Record("city3 was founded by Ann"))
    router = RouterMiddleware(Model(100_000), router=SMALL)
    seen = Seen()
    middleware = [memory, router] if first == "memory" else [router, memory]
    agent = make.agent(seen, middleware=middleware, system_prompt="Be kind.")
    await _run(agent, [*_talk(20), HumanMessage("How many gates has city3?")], awaited)
    system = str(seen.last[0].text)
    assert system.startswith("Be kind.")
    assert "city3 was founded by Ann" in system
    assert len(seen.last) < 14
    (episode,) = make.episodes("a")
    assert episode.task == "How many gates has city3?"
    assert episode.steps[-1]["content"] == "done"


def test_summaries_are_kept(make: Any) -> None:
    seen = Seen()
    summary = SummarizationMiddleware(
        make.model(lambda _: "THE SUMMARY"), trigger=("messages", 30), keep=("messages", 12)
    )
    agent = make.agent(seen, middleware=[summary, RouterMiddleware(Model(100_000), router=SMALL)])
    agent.invoke({"messages": [*_talk(20), HumanMessage("How many gates has city17?")]})
    assert "THE SUMMARY" in _said(seen.last)


async def test_the_event_loop_goes_on(make: Any) -> None:
    longest, done = 0.0, asyncio.Event()

    async def tick() -> None:
        nonlocal longest
        while not done.is_set():
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - start)

    agent = make.agent(Seen(), middleware=[RouterMiddleware(Model(1_000_000), router=SMALL)])
    messages = [*_talk(400), HumanMessage("How many gates has city3?")]
    ticking = asyncio.create_task(tick())
    await agent.ainvoke({"messages": messages})
    done.set()
    await ticking
    assert longest < 1.0


async def test_runs_side_by_side_do_not_mix(make: Any) -> None:
    def answer(messages: Sequence[AnyMessage]) -> str:
        own = str(messages[-1].text).split()[-1]
        return own if all(own in str(m.text) for m in messages) else "mixed"

    router = RouterMiddleware(Model(100_000), router=SMALL)
    agent = make.agent(answer, middleware=[router])
    asked = [
        [*(HumanMessage(f"note {i} of user{n} {FILL}") for i in range(10)), HumanMessage(f"I am user{n}")]
        for n in range(12)
    ]
    results = await asyncio.gather(*(agent.ainvoke({"messages": messages}) for messages in asked))
    assert [r["messages"][-1].text for r in results] == [f"user{n}" for n in range(12)]


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.sampled_from(["gates", "gates?", "Would Ann enjoy it?", "city3"]), min_size=1, max_size=4),
    st.integers(0, 9),
)
def test_tenants_who_share_a_router_and_its_extractor_never_meet(questions: list[str], common: int) -> None:
    extractor = Extractor("city")
    router = RouterMiddleware(Model(100_000), router=SMALL, extractor=extractor)
    for question in questions:
        for tenant in ("ann", "bob"):
            seen = Seen()
            agent = create_agent(FunctionModel(answer=seen), [], middleware=[router])
            own = [HumanMessage(f"{tenant}-city{i} {FILL}") for i in range(common, 12)]
            shared = [HumanMessage(f"city{i} {FILL}") for i in range(common)]
            agent.invoke({"messages": [*shared, *own, HumanMessage(question)]})
            other = "bob" if tenant == "ann" else "ann"
            assert f"{other}-city" not in _said(seen.last)


@pytest.mark.parametrize("options", [{"position": "middle"}, {"extractor": 3}, {"model": 0}])
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RouterMiddleware(**{"model": 1000, **options})
