"""Real agents of LlamaIndex with scripted models, over a memory on a real file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING or find_spec("llama_index") is not None:
    from llama_index.core.agent.workflow import AgentWorkflow, CodeActAgent, FunctionAgent, ReActAgent
    from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
    from llama_index.core.llms.mock import MockFunctionCallingLLM
    from llama_index.core.tools import FunctionTool

    from remnant.memory import Episode, Memory
    from remnant_llamaindex import RemnantMemory
else:  # needs the extra llamaindex
    collect_ignore_glob = ["test_*.py"]

KINDS = ("function", "workflow", "react", "code")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """LlamaIndex looks at every attribute of its agents, deprecated ones of pydantic among them."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))


class Stage:
    """Opens memories on one file and agents with scripts; keeps what their models read."""

    kinds = KINDS

    def __init__(self, path: Path) -> None:
        """Nothing is open yet."""
        self.path = path
        self.prompts: list[list[tuple[str, str]]] = []
        self._opened: list[Any] = []

    def open(self, strategy: Any = "facts", **settings: Any) -> RemnantMemory:
        """A memory in tenant-a without a model, that distils on `flush` only."""
        given = {"scope": "tenant-a", "llm": False, "write": "manual", **settings}
        memory = RemnantMemory.open(self.path, strategy, **given)
        self._opened.append(memory.core)
        return memory

    def core(self, **settings: Any) -> Memory:
        """The core's memory on the same file, without any host."""
        memory = Memory.open(self.path, **{"scope": "tenant-a", "write": "manual", **settings})
        self._opened.append(memory)
        return memory

    def close(self) -> None:
        """Close all of them."""
        for memory in self._opened:
            memory.close()

    def llm(self, answer: Callable[[Sequence[ChatMessage]], Any]) -> MockFunctionCallingLLM:
        """A model that answers by a function of the messages."""

        def respond(messages: Sequence[ChatMessage], **_: Any) -> Any:
            self.prompts.append([(message.role.value, message.content or "") for message in messages])
            return answer(messages)

        return MockFunctionCallingLLM(response_generator=respond, is_chat_model=True)

    def agent(self, answer: Any, *tools: Any, kind: str = "function", **options: Any) -> Any:
        """An agent whose tools are called `add`, `add2`, ... and whose model answers by a function."""
        made = [FunctionTool.from_defaults(tool, name=f"add{n or ''}") for n, tool in enumerate(tools or (add,))]
        llm = answer if isinstance(answer, MockFunctionCallingLLM) else self.llm(answer)
        if kind == "react":
            return ReActAgent(tools=made, llm=llm, **options)
        if kind == "code":
            return CodeActAgent(code_execute_fn=run_code, tools=made, llm=llm, **options)
        agent = FunctionAgent(name="Agent", description="adds", tools=made, llm=llm, **options)
        return AgentWorkflow(agents=[agent], root_agent="Agent") if kind == "workflow" else agent

    def shown(self, text: str) -> bool:
        """Whether any prompt held a text."""
        return any(text in content for prompt in self.prompts for _, content in prompt)

    @staticmethod
    def episode(memory: RemnantMemory, id: str = "") -> Episode:
        """The episode of a memory's last turn, as it is stored."""
        found = memory.core.store.episode(memory.core.scope, id or memory.episode)
        assert found is not None
        return found

    @staticmethod
    def once(kind: str, answer: str = "three") -> Callable[[Sequence[ChatMessage]], ChatMessage]:
        """A model that calls the tool once and then answers, in the manner of a kind of agent."""

        def react(messages: Sequence[ChatMessage]) -> ChatMessage:
            if "Observation" in (messages[-1].content or ""):
                return say(f"Thought: I can answer\nAnswer: {answer}")
            return say('Thought: I need a tool\nAction: add\nAction Input: {"a": 1, "b": 2}')

        def code(messages: Sequence[ChatMessage]) -> ChatMessage:
            ran = "Result of executing" in (messages[-1].content or "")
            return say(answer if ran else "Let me compute. <execute>print(add(1, 2))</execute>")

        def function(messages: Sequence[ChatMessage]) -> ChatMessage:
            last = max(place for place, message in enumerate(messages) if message.role == "user")
            done = any(message.role == "tool" for message in messages[last:])
            return say(answer) if done else call()

        return {"react": react, "code": code}.get(kind, function)


def say(text: str) -> ChatMessage:
    """What an assistant says."""
    return ChatMessage(role="assistant", content=text)


def call(name: str = "add", **arguments: Any) -> ChatMessage:
    """An assistant's wish for a tool."""
    block = ToolCallBlock(tool_call_id="1", tool_name=name, tool_kwargs=arguments or {"a": 1, "b": 2})
    return ChatMessage(role="assistant", blocks=[block])


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


def run_code(code: str) -> str:
    """Run code, as far as this test needs it."""
    return "3"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path / "memory.db")
    yield stage
    stage.close()


@pytest.fixture
def say_() -> Callable[[str], ChatMessage]:
    return say


@pytest.fixture
def call_() -> Callable[..., ChatMessage]:
    return call
