"""What strategies share: a call of the model as data, the common answers to the four functions, and marks on records.

A record that episodes taught says which ones in `payload["learnt"]`: experience -> what it contributed. A
late verdict takes an episode's entry out again (see `remnant.memory.rounds`), and the last one takes the record along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, cast

from remnant.memory.episode import Episode
from remnant.memory.errors import StructuredError
from remnant.memory.guard import render_data
from remnant.memory.llm import ChatModel, Message, structured
from remnant.memory.ops import Op, Update
from remnant.memory.record import Hit, Provenance, Record
from remnant.memory.rounds import LEARNT
from remnant.memory.strategy import DistilContext, IndexText, Query

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One thing that a strategy asks a model; the strategy's version changes with any of it.

    Args:
        name: of the call, within its strategy.
        prompt: the system message.
        shape: a dataclass; its JSON Schema goes along.
        temperature: None leaves it to the model.
        attempts: calls at most; a wrong answer goes back with what is wrong.
    """

    name: str
    prompt: str
    shape: type[T]
    temperature: float | None = None
    attempts: int = 3

    def ask(self, model: ChatModel, told: str) -> T:
        """The model's answer about a text.

        Raises:
            StructuredError: no attempt was valid.
        """
        options: dict[str, Any] = {} if self.temperature is None else {"temperature": self.temperature}
        asked = [Message("system", self.prompt), Message("user", told)]
        return structured(model, asked, self.shape, attempts=self.attempts, **options)

    def try_ask(self, model: ChatModel, told: str) -> T | None:
        """The model's answer, or None for nonsense: for calls that nothing depends on."""
        try:
            return self.ask(model, told)
        except StructuredError:
            return None


class Base:
    """What a strategy does unless it says otherwise: found by all its text, chosen as ranked, shown as data."""

    name: ClassVar[str]
    version: ClassVar[str]
    calls: ClassVar[tuple[Call[Any], ...]] = ()

    def index_text(self, record: Record) -> IndexText:
        """Trigger and content; a record's keywords are words that find it as well."""
        return indexed(" ".join(part for part in (record.trigger, record.content) if part), record)

    def select(self, query: Query, hits: Sequence[Hit]) -> Sequence[Hit]:
        """As ranked."""
        return hits

    def render(self, hits: Sequence[Hit]) -> str:
        """A block of data; empty for no hits."""
        return render_data(hits)

    def written_by(self, model: ChatModel) -> tuple[Provenance, ...]:
        """The source of a record that a model wrote for this strategy."""
        return (Provenance("model", "", self.name, model.model_id, f"{self.name}-{self.version}"),)


def indexed(meaning: str, record: Record) -> IndexText:
    """A meaning with the record's keywords as further words."""
    return IndexText(" ".join((meaning, *record.keywords)), meaning)


def experience(episodes: Sequence[Episode]) -> str:
    """The name of what is distilled together: a group's, or the episode's id."""
    return (len(episodes) > 1 and episodes[0].group) or episodes[0].id


def learnt(record: Record) -> dict[str, Any]:
    """Experience -> what it contributed; empty for a record that no episode taught."""
    found = record.payload.get(LEARNT)
    return dict(cast("Mapping[str, Any]", found)) if isinstance(found, Mapping) else {}


def also_learnt(record: Record, own: str, part: Mapping[str, Any] | None = None) -> Update:
    """The record was learnt again: an entry per experience, not a counter, so that a second round changes nothing."""
    entries = {**learnt(record), own: dict(part or {})}
    return Update(record.id, {"payload": {**record.payload, LEARNT: entries}})


def known(context: DistilContext, text: str, k: int, kind: str) -> list[Record]:
    """Stored records of a kind near a text, nearest first."""
    hits = context.recall(text, k) if text.strip() else []
    return [hit.record for hit in hits if hit.record.kind == kind]


def once_each(ops: Sequence[Op]) -> list[Op]:
    """Operations without a second one on the same record."""
    taken: set[str] = set()
    kept: list[Op] = []
    for op in ops:
        if isinstance(op, Update):
            if op.id in taken:
                continue
            taken.add(op.id)
        kept.append(op)
    return kept
