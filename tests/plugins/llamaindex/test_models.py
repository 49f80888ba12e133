"""LlamaIndex's models as those of memory: sync and async, structured or not, with what they cost."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from llama_index.core import MockEmbedding
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
from llama_index.core.llms.mock import MockFunctionCallingLLM, MockLLM
from pydantic import BaseModel, ValidationError

from remnant.errors import MissingExtra
from remnant.memory import (
    ChatModel,
    Embedder,
    Message,
    ModelError,
    StructuredError,
    Usage,
    astructured,
    structured,
)
from remnant.memory.shapes import json_schema
from remnant_llamaindex import LlamaChatModel, LlamaEmbedder
from remnant_llamaindex._schema import model_of

ASKED = [Message("system", "be brief"), Message("user", "hello")]


@dataclass(frozen=True)
class Part:
    """A part of an answer."""

    name: str
    size: int | None


@dataclass(frozen=True)
class Reply:
    """All kinds of fields that strategies ask for."""

    label: Literal["yes", "no"]
    share: float
    sure: bool
    parts: tuple[Part, ...] = field(metadata={"max_items": 2})
    note: str = "-"


GOOD = {"label": "yes", "share": 0.5, "sure": True, "parts": [{"name": "a", "size": None}]}


def scripted(*replies: str, fails: Sequence[str] = ()) -> tuple[MockFunctionCallingLLM, list[Any]]:
    """A model that gives its replies in turn, and the (messages, options) that it was asked."""
    left, asked = list(replies), list[Any]()

    def respond(messages: Sequence[ChatMessage], **options: Any) -> ChatMessage:
        asked.append((list(messages), options))
        if any(name in options for name in fails):
            raise TypeError(f"unknown option {list(options)}")
        return ChatMessage(role="assistant", content=left.pop(0))

    return MockFunctionCallingLLM(response_generator=respond, is_chat_model=True), asked


async def ask(model: ChatModel, sync: bool, **options: Any) -> Any:
    return model.generate(ASKED, **options) if sync else await model.agenerate(ASKED, **options)


@pytest.mark.parametrize("sync", [True, False])
async def test_messages_and_answer_pass_through(sync: bool):
    llm, asked = scripted("hi")
    model = LlamaChatModel(llm)
    assert isinstance(model, ChatModel)
    done = await ask(model, sync, temperature=0.0)
    assert (done.text, done.usage.calls, done.model_id) == ("hi", 1, model.model_id)
    (messages, options) = asked[0]
    assert [(m.role.value, m.content) for m in messages] == [("system", "be brief"), ("user", "hello")]
    assert options == {"temperature": 0.0}


@pytest.mark.parametrize("sync", [True, False])
async def test_options_that_a_model_refuses_are_left_out_from_then_on(sync: bool):
    llm, asked = scripted("hi", "hi again", fails=["temperature"])
    model = LlamaChatModel(llm)
    for expected in ("hi", "hi again"):
        assert (await ask(model, sync, temperature=0.0)).text == expected
    assert [options for _, options in asked] == [{"temperature": 0.0}, {}, {}]


@pytest.mark.parametrize("sync", [True, False])
async def test_whatever_a_model_raises_is_a_model_error(sync: bool):
    llm, _ = scripted()
    with pytest.raises(ModelError, match="IndexError") as found:
        await ask(LlamaChatModel(llm), sync)
    assert isinstance(found.value.__cause__, IndexError)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("sync", [True, False])
async def test_structured_answers_are_repaired_whatever_the_model_can(native: bool, sync: bool):
    """LlamaIndex's own fakes raise ValidationError or ValueError from structured calls."""
    llm, _ = scripted("no idea", json.dumps({**GOOD, "label": "maybe"}), json.dumps(GOOD))
    model = LlamaChatModel(llm, native=native)
    done = structured(model, ASKED, Reply) if sync else await astructured(model, ASKED, Reply)
    assert done == Reply("yes", 0.5, True, (Part("a", None),))


def test_nonsense_to_the_end_keeps_every_attempt():
    llm, _ = scripted("a", "b", "c")
    with pytest.raises(StructuredError) as found:
        structured(LlamaChatModel(llm), ASKED, Reply)
    assert [reply for reply, _ in found.value.attempts] == ["a", "b", "c"]


class Native(MockLLM):
    """A model with structured output of its own."""

    def structured_predict(self, output_cls: Any, prompt: Any, *_: Any, **__: Any) -> Any:
        return output_cls.model_validate(GOOD)

    async def astructured_predict(self, output_cls: Any, prompt: Any, *_: Any, **__: Any) -> Any:
        return output_cls.model_validate(GOOD)


@pytest.mark.parametrize("sync", [True, False])
async def test_native_structured_output_is_used_where_it_is_wanted(sync: bool):
    model = LlamaChatModel(Native(max_tokens=3), native=True)
    done = structured(model, ASKED, Reply) if sync else await astructured(model, ASKED, Reply)
    assert done.parts == (Part("a", None),)
    assert "text" in (await ask(LlamaChatModel(Native(max_tokens=3)), sync, schema=json_schema(Reply))).text


def test_schema_as_a_model_accepts_and_refuses_the_same():
    shape: Any = model_of(json_schema(Reply))
    assert shape.model_validate(GOOD).parts[0].name == "a"
    for wrong in ({"label": "maybe"}, {"share": "much"}, {"parts": GOOD["parts"] * 3}, {"more": 1}, {"sure": None}):
        with pytest.raises(ValidationError):
            shape.model_validate({**GOOD, **wrong})


def test_schema_with_unknown_parts_is_left_to_text():
    class Inner(BaseModel):
        x: int

    class Outer(BaseModel):
        inner: Inner

    assert model_of(Outer.model_json_schema()) is None
    assert model_of({"type": "string"}) is None


class Counting(MockLLM):
    """A model that reports its tokens."""

    where: str = ""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="counting-1", is_chat_model=True)

    def chat(self, messages: Any, **_: Any) -> ChatResponse:
        counts = {"prompt_tokens": 7, "completion_tokens": 3}
        message = ChatMessage(role="assistant", content="hi")
        if self.where == "fields":
            return ChatResponse(message=message, additional_kwargs=counts)
        raw: Any = {"usage": {"input_tokens": 7, "output_tokens": 3}}
        if self.where == "object":
            raw = type("Raw", (), {"usage": type("Use", (), {})()})()
            vars(raw.usage).update(counts)
        return ChatResponse(message=message, raw=raw if self.where != "nowhere" else None)


@pytest.mark.parametrize(
    ("where", "expected"),
    [("fields", Usage(1, 7, 3)), ("mapping", Usage(1, 7, 3)), ("object", Usage(1, 7, 3)), ("nowhere", Usage(1))],
)
def test_cost_is_what_the_integration_reports(where: str, expected: Usage):
    done = LlamaChatModel(Counting(where)).generate(ASKED)
    assert (done.usage, done.model_id) == (expected, "counting-1")


class Letters(MockEmbedding):
    """Vectors by first letter; questions and documents differ."""

    def __init__(self) -> None:
        super().__init__(embed_dim=3, model_name="letters")

    def _get_text_embedding(self, text: str) -> list[float]:
        return [float(ord(text[0])), 0.0, 0.0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return [0.0, float(ord(query[0])), 0.0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embedding(text)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


async def test_embedding_keeps_questions_and_documents_apart():
    embedder = LlamaEmbedder(Letters())
    assert isinstance(embedder, Embedder)
    assert embedder.model_id == "MockEmbedding/letters"
    for kind, place in (("document", 0), ("query", 1)):
        for vectors in (embedder.embed(["a", "b"], kind=kind), await embedder.aembed(["a", "b"], kind=kind)):  # type: ignore[arg-type]
            assert [vector[place] for vector in vectors] == [97.0, 98.0]
    assert LlamaEmbedder(Letters(), model_id="mine").model_id == "mine"


async def test_memory_takes_llamaindexs_models_as_they_are(stage: Any):
    reply = {"thoughts": [{"head": "Ada", "relation": "takes", "tail": "tea", "text": "Ada takes tea."}]}
    llm, _ = scripted(json.dumps(reply))
    memory = stage.open("tim", llm=llm, embedder=Letters(), write="inline")
    await memory.aput_messages([ChatMessage(role="user", content="tea?"), ChatMessage(role="assistant", content="yes")])
    assert [record.content for record in memory.core.records()] == ["Ada takes tea."]
    assert memory.core.store.dimension("tenant-a", "MockEmbedding/letters") == 3
    assert memory.core.costs()["distil"].calls == 1


def test_missing_framework_is_named(monkeypatch: pytest.MonkeyPatch):
    import sys

    import remnant_llamaindex

    for name in [name for name in sys.modules if name.startswith(("llama_index", "remnant_llamaindex."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "llama_index", None)
    monkeypatch.delitem(vars(remnant_llamaindex), "ReorderNodes", raising=False)
    with pytest.raises(MissingExtra, match=r"pip install 'remnant\[llamaindex\]'"):
        _ = remnant_llamaindex.ReorderNodes
