"""LlamaIndex's models as those of `remnant.memory`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llama_index.core import Settings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, ChatResponse

from remnant.memory import Completion, Message, ModelError, Usage
from remnant.memory.late import LateModel
from remnant_llamaindex._schema import model_of

_COUNTS = (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens"))


class LlamaChatModel:
    """An LLM of LlamaIndex as a `remnant.memory.ChatModel`.

    What a model refuses (structured answers, options such as a temperature) is left out from then on.

    Args:
        llm: answers.
        native: ask for structured answers through `as_structured_llm` where a schema is given. What that does
            not give is asked for as text, and read and repaired as any other answer.
    """

    def __init__(self, llm: BaseLLM, *, native: bool = False) -> None:
        """See the class."""
        self.model_id = llm.metadata.model_name or llm.class_name()
        self._llm = llm
        self._refused: set[str] = set() if native else {"native"}

    def generate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """See `ChatModel`.

        Raises:
            ModelError: whatever the model raises.
        """
        sent, tried, fault = _sent(messages), list[str](), ModelError(f"{self.model_id} was not asked")
        for way, llm, given in self._ways(schema, options):
            try:
                return self._taken(llm.chat(sent, **given), tried)
            except Exception as error:  # whatever a vendor's client raises: the next way may do
                fault = self._fault(error)
            tried.append(way)
        raise fault

    async def agenerate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """See `generate`."""
        sent, tried, fault = _sent(messages), list[str](), ModelError(f"{self.model_id} was not asked")
        for way, llm, given in self._ways(schema, options):
            try:
                return self._taken(await llm.achat(sent, **given), tried)
            except Exception as error:  # see generate
                fault = self._fault(error)
            tried.append(way)
        raise fault

    def _ways(self, schema: Mapping[str, Any] | None, options: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """(name, model, options) of each way to ask, best first."""
        ways: list[tuple[str, Any, Any]] = []
        shape = model_of(schema) if schema is not None and "native" not in self._refused else None
        if shape is not None and hasattr(self._llm, "as_structured_llm"):
            structured: Any = self._llm
            ways.append(("native", structured.as_structured_llm(shape), {}))
        if options and "options" not in self._refused:
            ways.append(("options", self._llm, options))
        return [*ways, ("plain", self._llm, {})]

    def _taken(self, response: ChatResponse, tried: Sequence[str]) -> Completion:
        text = response.message.content
        if not isinstance(text, str):
            raise ModelError("an answer without text")
        self._refused.update(tried)
        return Completion(text, _usage(response), self.model_id)

    def _fault(self, error: Exception) -> ModelError:
        fault = ModelError(f"{self.model_id}: {type(error).__name__}: {error}"[:500])
        fault.__cause__ = error
        return fault


class AgentModel(LateModel):
    """`Settings.llm` if somebody set it, or the model of the first tracked agent; until then distillation waits.

    `Settings.llm` is not read before: reading it makes a model of a vendor.
    """

    def __init__(self) -> None:
        """Not known yet."""
        super().__init__("no model is known yet", "pass llm=, set Settings.llm, or track a run")

    def look(self) -> LlamaChatModel | None:
        """What somebody set as `Settings.llm`."""
        llm = getattr(Settings, "_llm", None)
        return LlamaChatModel(llm) if isinstance(llm, BaseLLM) else None

    def meet(self, llm: object) -> bool:
        """Use this model if it is one and none was known; whether it was the first."""
        if self.found is not None or not isinstance(llm, BaseLLM):
            return False
        self.found = LlamaChatModel(llm)
        return True


class LlamaEmbedder:
    """An embedding of LlamaIndex as a `remnant.memory.Embedder`.

    Args:
        embedding: makes the vectors.
        model_id: names them in the store; vectors of different names are never compared. None takes the
            embedding's class and model name.
    """

    def __init__(self, embedding: BaseEmbedding, *, model_id: str | None = None) -> None:
        """See the class."""
        self._embedding = embedding
        self.model_id = model_id or f"{embedding.class_name()}/{embedding.model_name}"

    def embed(self, texts: Sequence[str], *, kind: Literal["query", "document"]) -> list[list[float]]:
        """See `Embedder`."""
        if kind == "query":
            return [self._embedding.get_query_embedding(text) for text in texts]
        return self._embedding.get_text_embedding_batch(list(texts))

    async def aembed(self, texts: Sequence[str], *, kind: Literal["query", "document"]) -> list[list[float]]:
        """See `Embedder`."""
        if kind == "query":
            return [await self._embedding.aget_query_embedding(text) for text in texts]
        return await self._embedding.aget_text_embedding_batch(list(texts))


def _sent(messages: Sequence[Message]) -> list[ChatMessage]:
    return [ChatMessage(role=message.role, content=message.text) for message in messages]


def _usage(response: ChatResponse) -> Usage:
    """Tokens as the integration reports them, in its own fields or in the vendor's raw answer; 0 where it does not."""
    raw: Any = response.raw
    told: Any = raw.get("usage") if isinstance(raw, Mapping) else getattr(raw, "usage", None)
    told = told if isinstance(told, Mapping) else getattr(told, "__dict__", {})
    for source in (response.additional_kwargs, told):
        for read, written in _COUNTS:
            if isinstance(source.get(read), int):
                return Usage(1, source[read], source.get(written) or 0)
    return Usage(1)
