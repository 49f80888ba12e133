"""Models to plug in: a strict script and a hashing embedder that need nothing, and any OpenAI-compatible endpoint."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from remnant.lazy import needs
from remnant.memory.errors import ModelError, ScriptError
from remnant.memory.llm import Completion, Message, Usage
from remnant.memory.record import estimate_tokens

Reply = str | Callable[[str], str]


class ScriptedChatModel:
    """A model that answers by a script; a prompt that no line answers is an error, never a guess.

    Args:
        script: (pattern, reply) lines. The first line whose pattern is found in the prompt answers,
            the prompt being all messages joined. A reply may be a function of the prompt.
        once: a line answers once and is then used up, so that a script is a sequence.

    Raises:
        ScriptError: by `generate`: no line is left that answers.
    """

    model_id = "scripted"

    def __init__(self, script: Sequence[tuple[str, Reply]], *, once: bool = False) -> None:
        """See the class."""
        self._lines = [(re.compile(pattern, re.DOTALL), reply) for pattern, reply in script]
        self._once = once
        self._lock = threading.Lock()
        self.prompts: list[str] = []

    def generate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """See `ChatModel`."""
        prompt = "\n".join(f"{message.role}: {message.text}" for message in messages)
        with self._lock:
            self.prompts.append(prompt)
            found = next((line for line in self._lines if line[0].search(prompt)), None)
            if found is None:
                raise ScriptError(f"no line answers {prompt[-200:]!r}", do="add a line to the script")
            if self._once:
                self._lines.remove(found)
        text = found[1] if isinstance(found[1], str) else found[1](prompt)
        return Completion(text, Usage(1, estimate_tokens(prompt), estimate_tokens(text)), self.model_id)

    async def agenerate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """See `ChatModel`."""
        return self.generate(messages, schema=schema, **options)


class HashEmbedder:
    """Vectors of hashed character trigrams: no model, the same everywhere; finds spelling, not meaning.

    Args:
        dim: numbers per vector.
    """

    def __init__(self, dim: int = 256) -> None:
        """See the class."""
        self.dim = dim
        self.model_id = f"hash-{dim}"

    def embed(self, texts: Sequence[str], *, kind: Literal["query", "document"]) -> list[list[float]]:
        """See `Embedder`."""
        return [self._vector(text) for text in texts]

    async def aembed(self, texts: Sequence[str], *, kind: Literal["query", "document"]) -> list[list[float]]:
        """See `Embedder`."""
        return self.embed(texts, kind=kind)

    def _vector(self, text: str) -> list[float]:
        vector = [0.0] * self.dim
        for word in re.findall(r"\w+", text.lower()):
            padded = f" {word} "
            for start in range(len(padded) - 2):
                piece = padded[start : start + 3].encode("utf-8", "surrogatepass")
                number = int.from_bytes(hashlib.blake2b(piece, digest_size=8).digest(), "big")
                vector[number % self.dim] += 1.0 if number >> 63 else -1.0
        return vector


class OpenAIChatModel:
    """Any endpoint that speaks OpenAI's chat protocol, vLLM's server among them.

    Args:
        model: the model's name at the endpoint.
        base_url: the endpoint; None is the package's own default.
        api_key: None reads the package's environment variable.
        native: send JSON Schemas as `response_format`; leave off where the endpoint refuses it.
        client: (sync, async) clients to use, instead of making them.
        options: passed with every call, such as `temperature`.

    Raises:
        MissingExtra: the package `openai` is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        native: bool = False,
        client: tuple[Any, Any] | None = None,
        **options: Any,
    ) -> None:
        """See the class."""
        self.model_id = model
        self._native, self._options = native, options
        self._client, self._async = client or _clients(base_url, api_key)

    def generate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """See `ChatModel`."""
        return _completion(self._client.chat.completions.create(**self._request(messages, schema, options)))

    async def agenerate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """See `ChatModel`."""
        return _completion(await self._async.chat.completions.create(**self._request(messages, schema, options)))

    def _request(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        sent = [{"role": message.role, "content": message.text} for message in messages]
        request: dict[str, Any] = {"model": self.model_id, "messages": sent, **self._options, **options}
        if schema is not None and self._native:
            form = {"name": "answer", "schema": dict(schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": form}
        return request


def _clients(base_url: str | None, api_key: str | None) -> tuple[Any, Any]:
    with needs("openai", wanted_by="remnant.memory.OpenAIChatModel"):
        import openai  # pyright: ignore[reportMissingImports]
    package: Any = openai
    return package.OpenAI(base_url=base_url, api_key=api_key), package.AsyncOpenAI(base_url=base_url, api_key=api_key)


def _completion(answer: Any) -> Completion:
    text = answer.choices[0].message.content if answer.choices else None
    if not isinstance(text, str):
        raise ModelError(f"{answer.model} answered without text")
    usage = answer.usage
    counted = Usage(1, usage.prompt_tokens, usage.completion_tokens) if usage else Usage(1)
    return Completion(text, counted, answer.model)
