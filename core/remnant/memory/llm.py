"""The boundary to models: two small protocols, structured answers with repair, ids as aliases, cost."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from remnant.memory.errors import StructuredError
from remnant.memory.shapes import json_schema, parse

T = TypeVar("T")


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Usage:
    """What calls cost.

    Args:
        calls: how many.
        input: tokens read.
        output: tokens written.
    """

    calls: int = 0
    input: int = 0
    output: int = 0

    def __add__(self, other: Usage) -> Usage:
        """The sum of both."""
        return Usage(self.calls + other.calls, self.input + other.input, self.output + other.output)


@dataclass(frozen=True)
class Completion:
    """A model's answer with what it cost; `calls` of its usage is 1."""

    text: str
    usage: Usage = Usage(1)
    model_id: str = ""


@runtime_checkable
class ChatModel(Protocol):
    """A chat model. `schema` is a hint: an adapter may use native structured output for it.

    One that is not there yet says so by an attribute `ready`, which is then False: distillation waits for it.
    """

    model_id: str

    def generate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """Answer the messages."""
        ...

    async def agenerate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """Answer the messages without blocking."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors of one size; vectors of different `model_id` are never compared."""

    model_id: str

    def embed(self, texts: Sequence[str], *, kind: Literal["query", "document"]) -> Sequence[Sequence[float]]:
        """One vector per text."""
        ...

    async def aembed(self, texts: Sequence[str], *, kind: Literal["query", "document"]) -> Sequence[Sequence[float]]:
        """One vector per text, without blocking."""
        ...


def structured(
    model: ChatModel, messages: Sequence[Message], shape: type[T], *, attempts: int = 3, **options: Any
) -> T:
    """Ask for an answer of a given shape; a wrong answer goes back to the model with what is wrong.

    Args:
        model: the model.
        messages: the conversation; the wish for JSON is appended.
        shape: a dataclass (see `remnant.memory.shapes`) or a pydantic model.
        attempts: calls at most.
        options: passed to the model.

    Raises:
        StructuredError: no attempt was valid; it keeps them all.
    """
    asking = _attempts(messages, shape, attempts)
    sent = next(asking)
    while True:
        completion = model.generate(sent, schema=json_schema(shape), **options)
        try:
            sent = asking.send(completion.text)
        except StopIteration as done:
            return done.value


async def astructured(
    model: ChatModel, messages: Sequence[Message], shape: type[T], *, attempts: int = 3, **options: Any
) -> T:
    """`structured` without blocking."""
    asking = _attempts(messages, shape, attempts)
    sent = next(asking)
    while True:
        completion = await model.agenerate(sent, schema=json_schema(shape), **options)
        try:
            sent = asking.send(completion.text)
        except StopIteration as done:
            return done.value


def _attempts(messages: Sequence[Message], shape: type[T], attempts: int) -> Generator[list[Message], str, T]:
    wish = "Reply with one JSON object for this JSON Schema and nothing else:\n" + json.dumps(json_schema(shape))
    sent, log = [*messages, Message("user", wish)], list[tuple[str, str]]()
    for _ in range(attempts):
        reply = yield sent
        try:
            return parse(shape, reply)
        except ValueError as error:
            log.append((reply, str(error)))
            repair = f"That was not valid: {error}. Send the corrected JSON only."
            sent = [*sent, Message("assistant", reply), Message("user", repair)]
    raise StructuredError(log)


class Aliases:
    """Short names for ids, so that a model can neither see nor invent a record's id.

    Args:
        ids: what is named, in order.
        prefix: the letter of the names.

    Example: Aliases(["01ABC"]).name("01ABC") -> "m1"
    """

    def __init__(self, ids: Iterable[str], prefix: str = "m") -> None:
        """See the class."""
        self._names = {id: f"{prefix}{number}" for number, id in enumerate(dict.fromkeys(ids), 1)}
        self._ids = {name: id for id, name in self._names.items()}

    def name(self, id: str) -> str:
        """The alias of an id that was given."""
        return self._names[id]

    def id(self, name: str) -> str | None:
        """The id behind an alias; None for one that a model made up."""
        return self._ids.get(name.strip().strip("[]").lower())


class Costs:
    """What the model calls of each operation cost; safe under threads."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._lock = threading.Lock()
        self._by: dict[str, Usage] = {}

    def add(self, operation: str, usage: Usage) -> None:
        """Count calls for an operation."""
        with self._lock:
            self._by[operation] = self._by.get(operation, Usage()) + usage

    def by_operation(self) -> dict[str, Usage]:
        """The sums so far."""
        with self._lock:
            return dict(self._by)


class Metered:
    """A chat model whose calls are counted for one operation.

    Args:
        model: answers.
        costs: where its usage is added.
        operation: for what.
    """

    def __init__(self, model: ChatModel, costs: Costs, operation: str) -> None:
        """See the class."""
        self.model_id = model.model_id
        self._model, self._costs, self._operation = model, costs, operation

    def generate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """See `ChatModel`."""
        done = self._model.generate(messages, schema=schema, **options)
        self._costs.add(self._operation, done.usage)
        return done

    async def agenerate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """See `ChatModel`."""
        done = await self._model.agenerate(messages, schema=schema, **options)
        self._costs.add(self._operation, done.usage)
        return done
