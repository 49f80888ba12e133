"""LangChain's models and embeddings as those of a memory."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool

from remnant.errors import ConfigError
from remnant.memory import Message, ModelError, StructuredError, astructured, structured
from remnant_langchain import LangChainChatModel, LangChainEmbedder
from remnant_langchain.models import AgentModel, as_llm


@dataclass(frozen=True)
class Answer:
    word: str


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Any:
    def ask(model: Any, shape: Any = Answer, **options: Any) -> Any:
        sent = [Message("system", "be brief"), Message("user", "a word?")]
        if request.param == "sync":
            return structured(model, sent, shape, **options)
        return asyncio.run(astructured(model, sent, shape, **options))

    return ask


class Model:
    """A chat model that answers by a list, with what it was asked."""

    def __init__(self, make: Any, replies: list[Any]) -> None:
        self.asked: list[Any] = []
        left = iter(replies)

        def answer(messages: Any) -> Any:
            self.asked.append(messages)
            reply = next(left)
            if isinstance(reply, Exception):
                raise reply
            return reply

        self.model = make.model(answer)


def test_a_wrong_answer_is_repaired(make, ask):
    found = Model(make, ["no json", '{"word": 3}', '{"word": "tea"}'])
    assert ask(LangChainChatModel(found.model)) == Answer("tea")
    assert [message.type for message in found.asked[2]] == ["system", "human", "human", "ai", "human", "ai", "human"]
    with pytest.raises(StructuredError):
        ask(LangChainChatModel(Model(make, ["no"] * 3).model))


def test_faults_are_of_our_kind(make, ask):
    with pytest.raises(ModelError, match="TimeoutError: late"):
        ask(LangChainChatModel(Model(make, [TimeoutError("late")] * 2).model))


def test_cost_and_name(make):
    usage: Any = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    said = AIMessage("tea", usage_metadata=usage, response_metadata={"model_name": "m-1"})
    done = LangChainChatModel(Model(make, [said]).model).generate([Message("user", "q")])
    assert (done.text, done.usage.calls, done.usage.input, done.usage.output) == ("tea", 1, 7, 2)
    assert done.model_id == "m-1"


def test_a_model_that_refuses_options_is_asked_without(make, ask):
    """As models do that take no temperature."""
    seen: list[dict[str, Any]] = []

    class Strict(type(make.model(None))):
        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **rest: Any) -> Any:
            seen.append(rest)
            if "temperature" in rest:
                raise ValueError("unsupported value: temperature")
            return super()._generate(messages)

    model = LangChainChatModel(Strict(answer=lambda _: '{"word": "tea"}'))
    assert ask(model, temperature=0.0) == ask(model, temperature=0.0) == Answer("tea")
    assert seen == [{"temperature": 0.0}, {}, {}]


def test_native_structured_output(make, ask):
    schemas: list[Any] = []

    class Native(type(make.model(None))):
        def with_structured_output(self, schema: Any, *, include_raw: bool = False, **_: Any) -> Any:
            schemas.append(schema)
            return RunnableLambda(lambda _: {"raw": AIMessage("x"), "parsed": {"word": "tea"}, "parsing_error": None})

    assert ask(LangChainChatModel(Native(answer=None), native=True)) == Answer("tea")
    assert schemas[0]["properties"]["word"] == {"type": "string"}
    assert schemas[0]["title"]


def test_without_it_the_text_does(make, ask):
    """The base class has none and raises; a reply that it cannot parse is repaired like any other."""
    assert ask(LangChainChatModel(make.model(lambda _: '{"word": "tea"}'), native=True)) == Answer("tea")

    class Unparsed(type(make.model(None))):
        def with_structured_output(self, *_: Any, **__: Any) -> Any:
            return RunnableLambda(lambda _: {"raw": AIMessage('{"word": "tea"}'), "parsed": None})

    assert ask(LangChainChatModel(Unparsed(answer=None), native=True)) == Answer("tea")


def test_the_agents_model_is_met_later(make):
    late = AgentModel()
    assert not late.ready
    with pytest.raises(ModelError, match="not called"):
        late.generate([Message("user", "q")])
    assert late.meet(make.model(lambda _: "tea"))
    assert late.ready
    assert late.generate([Message("user", "q")]).text == "tea"
    assert asyncio.run(late.agenerate([Message("user", "q")])).text == "tea"


def test_what_is_no_model(make):
    assert as_llm(None) is None
    with pytest.raises(ConfigError, match="chat model"):
        as_llm(3)  # pyright: ignore[reportArgumentType]


def test_embeddings():
    fake = DeterministicFakeEmbedding(size=8)
    embedder = LangChainEmbedder(fake)
    assert embedder.model_id == "DeterministicFakeEmbedding"
    assert embedder.embed(["a", "b"], kind="document") == fake.embed_documents(["a", "b"])
    assert asyncio.run(embedder.aembed(["a"], kind="query")) == [fake.embed_query("a")]
    assert LangChainEmbedder(fake, model_id="mine").model_id == "mine"


def test_a_memory_searches_by_them(make, run):
    middleware = make.memory(embedder=DeterministicFakeEmbedding(size=8))
    middleware.memory.add(["tea without milk", "coffee"])
    seen: list[str] = []
    agent = make.agent(lambda messages: seen.append(messages[0].text) or "done", [], [middleware])
    run(agent, "tea without milk")
    assert "tea without milk" in seen[0]
    assert "coffee" in seen[0]  # no word of the question finds it, a vector does


def test_its_tokens_are_not_streamed_from_inside_a_run(make):
    """Called in a tool, in the run's own context, as nothing of ours does but somebody's strategy may."""
    judge = LangChainChatModel(make.model(lambda _: "secret judge"))

    @tool
    def judged() -> str:
        """Asks the judge."""
        return f"{len(judge.generate([Message('user', 'q')]).text)} letters"

    asked = AIMessage("", tool_calls=[{"name": "judged", "args": {}, "id": "1"}])
    agent = make.agent(lambda messages: asked if messages[-1].type == "human" else "done", [judged])
    parts = list(agent.stream({"messages": [("user", "q")]}, stream_mode="messages"))
    assert "secret" not in "".join(part.text for part, _ in parts)
    assert "12 letters" in "".join(part.text for part, _ in parts)
