"""Agents of the real framework around scripted models, on real files."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain", reason="pip install 'remnant[langchain]'")

from langchain.agents import create_agent
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from remnant.memory import Add, Completion, Episode, IndexText, Record
from remnant_langchain import MemoryMiddleware


class FunctionModel(BaseChatModel):
    """A chat model that answers by a function of the messages; safe under threads."""

    answer: Any

    @property
    def _llm_type(self) -> str:
        return "function"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **rest: Any) -> ChatResult:
        said = self.answer(messages)
        message = AIMessage(said) if isinstance(said, str) else said
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **rest: Any) -> Any:
        message = self._generate(messages).generations[0].message
        words = str(message.text).split(" ") if message.text else [""]
        for place, word in enumerate(words):
            calls = getattr(message, "tool_calls", []) if place == 0 else []
            chunk = AIMessageChunk(
                content=word if place == 0 else f" {word}",
                tool_call_chunks=[
                    {"name": c["name"], "args": json.dumps(c["args"]), "id": c["id"], "index": i}
                    for i, c in enumerate(calls)
                ],
            )
            yield ChatGenerationChunk(message=chunk)

    def bind_tools(self, tools: Any, **rest: Any) -> Any:
        return self


class Echo:
    """A strategy that keeps of each episode its task and its last step, without a model."""

    name, version = "echo", "1"

    def index_text(self, record: Record) -> IndexText:
        return IndexText(f"{record.trigger} {record.content}", record.content)

    def select(self, query: Any, hits: Any) -> Any:
        return hits

    def render(self, hits: Any) -> str:
        return "MEMORY:\n" + "\n".join(hit.text for hit in hits) if hits else ""

    def distil(self, episodes: Any, context: Any) -> list[Any]:
        return [
            Add(Record(f"{e.task} -> {e.steps[-1]['content']}", trigger=e.task, trust="agent"))
            for e in episodes
            if e.steps and e.steps[-1]["content"]
        ]


class Silent:
    """A memory's model that nobody may ask."""

    model_id = "silent"

    def generate(self, messages: Any, **rest: Any) -> Completion:
        raise AssertionError("the memory's model was asked")

    async def agenerate(self, messages: Any, **rest: Any) -> Completion:
        raise AssertionError("the memory's model was asked")


def call(name: str, id: str = "1", **arguments: Any) -> AIMessage:
    """A model's answer that asks for a tool."""
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": id}])


class Maker:
    """Makes middlewares and agents on one file, and reads what was stored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made: list[MemoryMiddleware] = []

    def memory(self, **settings: Any) -> MemoryMiddleware:
        """A middleware; strategy `Echo`, nothing is learnt before `flush`, and no model is asked."""
        given = {"strategy": Echo(), "llm": Silent(), "write": "manual", **settings}
        made = MemoryMiddleware(given.pop("path", self.path), **given)
        self.made.append(made)
        return made

    @staticmethod
    def model(answer: Any) -> FunctionModel:
        """A chat model around a function of the messages."""
        return FunctionModel(answer=answer)

    @staticmethod
    def agent(answer: Any, tools: Any = (), middleware: Any = (), **settings: Any) -> Any:
        """An agent around a function of the messages."""
        return create_agent(FunctionModel(answer=answer), list(tools), middleware=list(middleware), **settings)

    def episodes(self, scope: str = "default") -> list[Episode]:
        """Every episode with its steps, oldest first."""
        store = self.made[0].memory.store
        found = [store.episode(scope, stub.id) for stub in reversed(store.episodes(scope))]
        return [episode for episode in found if episode is not None]

    def episode(self, scope: str = "default") -> Episode:
        """The only episode."""
        (found,) = self.episodes(scope)
        return found


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Maker]:
    maker = Maker(tmp_path / "agent.db")
    yield maker
    for middleware in maker.made:
        middleware.memory.close()


@pytest.fixture
def tool_call() -> Callable[..., AIMessage]:
    return call


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs an agent, by `invoke` and by `ainvoke`."""

    def sync(agent: Any, text: Any, config: Any = None, **rest: Any) -> Any:
        return agent.invoke({"messages": [("user", text)]} if isinstance(text, str) else text, config, **rest)

    def through_loop(agent: Any, text: Any, config: Any = None, **rest: Any) -> Any:
        given = {"messages": [("user", text)]} if isinstance(text, str) else text
        return asyncio.run(agent.ainvoke(given, config, **rest))

    return sync if request.param == "sync" else through_loop
