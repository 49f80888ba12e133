"""The boundary to models: structured answers and their repair, scripts, aliases, cost, the OpenAI adapter."""

import asyncio
import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from remnant.errors import ConfigError, MissingExtra
from remnant.memory import (
    Aliases,
    ChatModel,
    Embedder,
    HashEmbedder,
    Message,
    ModelError,
    OpenAIChatModel,
    ScriptedChatModel,
    ScriptError,
    StructuredError,
    astructured,
    structured,
)
from remnant.memory.shapes import json_schema, parse

ASK = [Message("user", "x")]


@dataclass(frozen=True)
class Item:
    title: str
    score: float = 0.0
    kind: Literal["a", "b"] = "a"
    note: str | None = None


@dataclass(frozen=True)
class Items:
    items: list[Item] = field(metadata={"max_items": 2})


GOOD = json.dumps({"items": [{"title": "t", "score": 1, "kind": "b", "note": None}]})
MADE = Items([Item("t", 1.0, "b")])


def test_schema_of_a_dataclass():
    schema = json_schema(Items)
    assert schema["properties"]["items"]["maxItems"] == 2
    item = schema["properties"]["items"]["items"]
    assert item["required"] == ["title"]
    assert item["properties"]["kind"] == {"enum": ["a", "b"]}
    with pytest.raises(ConfigError):
        json_schema(dict)


@pytest.mark.parametrize("text", [GOOD, f"```json\n{GOOD}\n```", f"Here: {GOOD} done.", f"  {GOOD}\n"])
def test_answers_are_read_from_prose_and_fences(text: str):
    assert parse(Items, text) == MADE


NONSENSE = [
    "",
    "sorry!",
    "{",
    "[]",
    "null",
    '{"items": {}}',
    '{"items": [{"title": 1}]}',
    '{"items": [{"title": "t", "score": true}]}',
    '{"items": [{"title": "t", "kind": "c"}]}',
    '{"items": [{"title": "t", "other": 1}]}',
    '{"items": [{}]}',
    json.dumps({"items": [{"title": "t"}] * 3}),
    "[" * 100_000,
    '{"items": [' * 5_000,
]


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_a_value_error(text: str):
    with pytest.raises(ValueError, match=r"\w"):
        parse(Items, text)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_wrong_answer_is_repaired(asynchronous: bool):
    model = ScriptedChatModel([(".", "sorry!"), (".", '{"items": [{"title": 1}]}'), (".", GOOD)], once=True)
    found = asyncio.run(astructured(model, ASK, Items)) if asynchronous else structured(model, ASK, Items)
    assert found == MADE
    assert "items[0].title: 1; accepted: string" in model.prompts[2]


def test_after_the_last_attempt_all_are_kept():
    with pytest.raises(StructuredError, match="after 2 attempts") as caught:
        structured(ScriptedChatModel([(".", "nope")]), ASK, Items, attempts=2)
    assert [reply for reply, _ in caught.value.attempts] == ["nope", "nope"]


def test_pydantic_models_work_as_well():
    pydantic = pytest.importorskip("pydantic")
    shape = pydantic.create_model("Shape", title=(str, ...))
    model = ScriptedChatModel([(".", "{}"), (".", '{"title": "t"}')], once=True)
    assert structured(model, ASK, shape).title == "t"


def test_a_script_is_strict():
    model = ScriptedChatModel([("tea", "green"), ("milk", lambda prompt: prompt.upper())], once=True)
    assert model.generate([Message("user", "tea?")]).text == "green"
    assert model.generate([Message("user", "milk?")]).text == "USER: MILK?"
    for prompt in ("tea?", "coffee?"):
        with pytest.raises(ScriptError, match="no line answers"):
            model.generate([Message("user", prompt)])


def test_aliases_map_back_and_cannot_be_invented():
    aliases = Aliases(["x", "y", "x"])
    assert [aliases.name(id) for id in ("x", "y")] == ["m1", "m2"]
    assert [aliases.id(name) for name in ("m1", " [M2] ", "m3", "x")] == ["x", "y", None, None]


def test_ours_are_what_the_protocols_ask_for():
    assert isinstance(ScriptedChatModel([]), ChatModel)
    assert isinstance(HashEmbedder(), Embedder)


def _client(text: str | None, calls: list[dict[str, Any]]) -> tuple[Any, Any]:
    usage = SimpleNamespace(prompt_tokens=7, completion_tokens=3)
    choices = [SimpleNamespace(message=SimpleNamespace(content=text))]
    answer = SimpleNamespace(choices=choices, usage=usage, model="served")

    def create(**request: Any) -> Any:
        calls.append(request)
        return answer

    async def acreate(**request: Any) -> Any:
        return create(**request)

    def client(function: Any) -> Any:
        return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=function)))

    return client(create), client(acreate)


def test_openai_adapter_sends_messages_and_counts_tokens():
    calls: list[dict[str, Any]] = []
    model = OpenAIChatModel("m", client=_client("hello", calls), native=True, temperature=0.0)
    done = model.generate([Message("system", "s"), Message("user", "u")], schema={"type": "object"}, max_tokens=5)
    assert (done.text, done.usage.input, done.usage.output, done.model_id) == ("hello", 7, 3, "served")
    assert calls[0]["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert calls[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert (calls[0]["temperature"], calls[0]["max_tokens"]) == (0.0, 5)
    assert asyncio.run(model.agenerate(ASK)).text == "hello"
    assert "response_format" not in calls[1]
    with pytest.raises(ModelError, match="without text"):
        OpenAIChatModel("m", client=_client(None, calls)).generate(ASK)


def test_openai_adapter_names_its_extra(monkeypatch: pytest.MonkeyPatch):
    import builtins

    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "openai":
            raise ModuleNotFoundError("no openai", name="openai")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"remnant\[openai\]"):
        OpenAIChatModel("m")
