"""LangChain's chat models and embeddings as what a memory asks for.

A memory's own calls are tagged `nostream`: made inside a run they would otherwise leak their tokens
into `stream_mode="messages"`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import Runnable, RunnableConfig

from remnant.errors import ConfigError
from remnant.memory.errors import ModelError
from remnant.memory.late import LateModel
from remnant.memory.llm import ChatModel, Completion, Embedder, Message, Usage

CONFIG: RunnableConfig = {"tags": ["nostream", "remnant"], "run_name": "remnant"}
"""With every call of a memory's model: its tokens are not streamed, its runs are named in a trace."""

_ROLES: dict[str, type[BaseMessage]] = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}


class LangChainChatModel:
    """A LangChain chat model as the model of a memory.

    Args:
        model: answers messages with a message.
        native: use the model's own structured output where a schema is given and it has one; its answers are
            checked and repaired all the same.
    """

    def __init__(self, model: Runnable[Any, Any], *, native: bool = False) -> None:
        """See the class."""
        self.model_id = _named(model)
        self._model, self._native = model, native
        self._bare = False  # it refused options such as a temperature: ask without them from then on

    def generate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """See `ChatModel`.

        Raises:
            ModelError: whatever the model raises.
        """
        sent = _sent(messages)
        try:
            if schema is not None and self._native:
                try:
                    return self._parsed(self._shaped(schema).invoke(sent, CONFIG))
                except Exception:
                    self._native = False
            if options and not self._bare:
                try:
                    return self._completion(self._model.invoke(sent, CONFIG, **options))
                except Exception:
                    answer = self._completion(self._model.invoke(sent, CONFIG))
                    self._bare = True
                    return answer
            return self._completion(self._model.invoke(sent, CONFIG))
        except Exception as error:
            raise self._fault(error) from error

    async def agenerate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """See `generate`."""
        sent = _sent(messages)
        try:
            if schema is not None and self._native:
                try:
                    return self._parsed(await self._shaped(schema).ainvoke(sent, CONFIG))
                except Exception:
                    self._native = False
            if options and not self._bare:
                try:
                    return self._completion(await self._model.ainvoke(sent, CONFIG, **options))
                except Exception:
                    answer = self._completion(await self._model.ainvoke(sent, CONFIG))
                    self._bare = True
                    return answer
            return self._completion(await self._model.ainvoke(sent, CONFIG))
        except Exception as error:
            raise self._fault(error) from error

    def _shaped(self, schema: Mapping[str, Any]) -> Any:
        named = {"title": "answer", "description": "The answer.", **schema}
        model: Any = self._model  # whatever has none falls back
        return model.with_structured_output(named, include_raw=True)

    def _parsed(self, answer: Any) -> Completion:
        """A parse failure is data here: the raw text goes to the repair."""
        raw = self._completion(answer["raw"])
        return raw if answer["parsed"] is None else Completion(json.dumps(answer["parsed"]), raw.usage, raw.model_id)

    def _completion(self, answer: BaseMessage) -> Completion:
        used: Any = getattr(answer, "usage_metadata", None) or {}
        usage = Usage(1, int(used.get("input_tokens", 0)), int(used.get("output_tokens", 0)))
        name = answer.response_metadata.get("model_name")
        return Completion(str(answer.text), usage, name if isinstance(name, str) and name else self.model_id)

    def _fault(self, error: Exception) -> ModelError:
        return ModelError(f"{self.model_id}: {type(error).__name__}: {error}"[:500])


class AgentModel(LateModel):
    """The agent's own model, known from its first call on; until then distillation waits."""

    def __init__(self) -> None:
        """Not known yet."""
        super().__init__("the agent has not called its model yet", "pass llm= to have one from the start")
        self._of: Runnable[Any, Any] | None = None

    def meet(self, model: Any) -> bool:
        """Use the model of a request from now on; whether it is the first."""
        first = self.found is None
        if isinstance(model, Runnable) and model is not self._of:
            self.found, self._of = LangChainChatModel(model), model
        return first and self.found is not None


class LangChainEmbedder:
    """LangChain's embeddings as the embedder of a memory.

    Args:
        embeddings: make the vectors.
        model_id: names them: vectors of different names are never compared. Left out, the class and the
            model's name.
    """

    def __init__(self, embeddings: Embeddings, *, model_id: str | None = None) -> None:
        """See the class."""
        self._embeddings = embeddings
        self.model_id = model_id or _named(embeddings)

    def embed(self, texts: Sequence[str], *, kind: Literal["query", "document"]) -> list[list[float]]:
        """See `Embedder`."""
        if kind == "query":
            return [self._embeddings.embed_query(text) for text in texts]
        return self._embeddings.embed_documents(list(texts))

    async def aembed(self, texts: Sequence[str], *, kind: Literal["query", "document"]) -> list[list[float]]:
        """See `Embedder`."""
        if kind == "query":
            return list(await asyncio.gather(*(self._embeddings.aembed_query(text) for text in texts)))
        return await self._embeddings.aembed_documents(list(texts))


def as_llm(model: ChatModel | Runnable[Any, Any] | str | None) -> ChatModel | None:
    """A memory's chat model out of one of LangChain's, its name such as `openai:gpt-5`, or one that is one.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(model, str):
        from langchain.chat_models import init_chat_model

        model = init_chat_model(model)
    if isinstance(model, Runnable):
        return LangChainChatModel(model)
    if model is None or isinstance(model, ChatModel):
        return model
    accepted = "a chat model of LangChain, its name, or an object with generate and agenerate"
    raise ConfigError(f"llm {model!r}", accepted=accepted)


def as_embedder(embedder: Embedder | Embeddings | None) -> Embedder | None:
    """A memory's embedder out of LangChain's embeddings, or one that is one.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(embedder, Embeddings):
        return LangChainEmbedder(embedder)
    if embedder is None or isinstance(embedder, Embedder):
        return embedder
    raise ConfigError(f"embedder {embedder!r}", accepted="embeddings of LangChain, or an object with embed and aembed")


def _sent(messages: Sequence[Message]) -> list[BaseMessage]:
    return [_ROLES[message.role](content=message.text) for message in messages]


def _named(model: object) -> str:
    """The class and, where it has one, the name of its model."""
    for attribute in ("model_name", "model", "model_id", "deployment", "repo_id"):
        name = getattr(model, attribute, None)
        if isinstance(name, str) and name:
            return f"{type(model).__name__}:{name}"
    return type(model).__name__
