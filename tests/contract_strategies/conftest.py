"""Every registered strategy, on a memory of its own, with a model that answers any schema."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from remnant.memory import Completion, Memory, Message, Strategy, Usage
from remnant.memory.record import estimate_tokens
from remnant.plugins import collect

WORDS = ("alder", "birch", "cedar", "ebony", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan", "spruce", "yew")


class SchemaModel:
    """Answers every prompt with data of the shape it asks for; the same prompt gets the same answer.

    Its prompts and their schemas are kept, so that a test can see what was asked and a script can be written from it.

    Args:
        answer: replies instead, from (call number, schema); None fills the schema.
        prefix: begins every text of an answer.
        items: in every list of an answer, as far as the schema lets.
    """

    model_id = "schema"

    def __init__(self, answer: Callable[[int, Mapping[str, Any]], str] | None = None, *, prefix: str = "") -> None:
        self._answer, self._prefix = answer, prefix
        self.prompts: list[str] = []
        self.schemas: list[Mapping[str, Any]] = []

    def generate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        prompt = "\n".join(f"{message.role}: {message.text}" for message in messages)
        assert schema is not None, "every call of a strategy asks for a shape"
        self.prompts.append(prompt)
        self.schemas.append(schema)
        text = self._answer(len(self.prompts), schema) if self._answer else json.dumps(self._filled(schema, prompt))
        return Completion(text, Usage(1, estimate_tokens(prompt), estimate_tokens(text)), self.model_id)

    async def agenerate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        return self.generate(messages, schema=schema, **options)

    def _filled(self, schema: Mapping[str, Any], seed: str) -> Any:
        if "enum" in schema:
            return schema["enum"][0]
        if "anyOf" in schema:
            return self._filled(schema["anyOf"][0], seed)
        if schema["type"] == "object":
            return {name: self._filled(part, f"{seed}/{name}") for name, part in schema["properties"].items()}
        if schema["type"] == "array":
            count = min(2, schema.get("maxItems", 2))
            return [self._filled(schema["items"], f"{seed}/{number}") for number in range(count)]
        plain: dict[str, Any] = {"number": 0.9, "integer": 1, "boolean": True}
        return plain.get(schema["type"], self._text(seed))

    def _text(self, seed: str) -> str:
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
        words = [WORDS[number // len(WORDS) ** place % len(WORDS)] for place in range(6)]
        return f"{self._prefix}{' '.join(words)}"


class Clock:
    """A clock that moves on by itself, so that nothing waits for a retry."""

    def __init__(self) -> None:
        self._seconds = itertools.count(1_700_000_000)

    def __call__(self) -> float:
        return float(next(self._seconds))


def strategies() -> list[type[Any]]:
    return [found for _, found in collect("remnant_strategies")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", strategies(), ids=lambda found: found.name)


@pytest.fixture
def strategy(kind: type[Any]) -> Strategy:
    return kind()


@pytest.fixture
def schema_model() -> type[SchemaModel]:
    return SchemaModel


@pytest.fixture
def make(kind: type[Any], tmp_path: Path) -> Iterator[Callable[..., Memory]]:
    """Open memories with the strategy on one file; distillation runs as episodes close."""
    opened: list[Memory] = []

    def make(llm: Any = None, strategy: Any = None, **settings: Any) -> Memory:
        given = {"scope": "tenant-a", "write": "inline", "strict": True, "clock": Clock(), **settings}
        memory = Memory.open(tmp_path / f"{kind.name}.db", strategy or kind(), llm=llm, **given)
        opened.append(memory)
        return memory

    yield make
    for memory in opened:
        memory.close()


@pytest.fixture
def run() -> Callable[..., str]:
    """Run one episode to its end: (memory, task, verdict, steps) -> its id."""

    def run(memory: Memory, task: str = "put the oak cups away", verdict: Any = "success", *steps: Any) -> str:
        episode = memory.open_episode(task)
        for step in steps or ({"role": "assistant", "content": "opened the cupboard and put the cups in"},):
            memory.observe(episode.id, dict(step))
        memory.close_episode(episode.id, verdict)
        return episode.id

    return run


@pytest.fixture
def state(tmp_path: Path) -> Callable[[Memory], dict[str, Any]]:
    """What an export of a memory holds, without the counters and stamps that only the store writes."""
    from remnant.memory import read_cube

    def state(memory: Memory) -> dict[str, Any]:
        memory.export(tmp_path / "state.jsonl")
        return {record.id: record.meaning() for record in read_cube(tmp_path / "state.jsonl").records}

    return state


@pytest.fixture
def fences() -> Callable[[str], list[str]]:
    """The delimiters of a rendered block."""
    return lambda text: re.findall(r"^(memory-[0-9a-f]{16})$", text, re.MULTILINE)
