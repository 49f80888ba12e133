"""What a memory strategy is: four functions and a name. Everything else is the same for all.

A strategy is a class with `name`, registered through the hook `remnant_strategies`; it is made
without arguments when it is named, or handed over as an object. It holds no state of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

from remnant.errors import ConfigError, unknown
from remnant.memory.episode import Episode
from remnant.memory.llm import ChatModel
from remnant.memory.ops import Op
from remnant.memory.record import Hit, Record


class IndexText(NamedTuple):
    """The two texts that find a record; `words` may hold dates and names that `meaning` leaves out."""

    words: str
    meaning: str


def _nothing(_: object) -> list[Hit]:
    return []


def _no_hits(_: str, __: int) -> list[Hit]:
    return []


def _nobody(_: object) -> list[Record]:
    return []


def _none() -> Mapping[str, Record]:
    return {}


@dataclass(frozen=True)
class Query:
    """What is asked of memory.

    Args:
        text: the question or task.
        k: hits at most.
        budget_tokens: tokens of all hits together at most; None is unlimited.
        count_tokens: counts the tokens of a text.
        model: the memory's chat model, for strategies that select with it; may be None. In async code it is
            called in a thread, so that the event loop stays free.
        more: (n) -> n further hits at most that may be shown too though nothing found them, in order of id,
            with score 0: for strategies that let a model look through a whole small memory.
    """

    text: str
    k: int
    budget_tokens: int | None
    count_tokens: Callable[[str], int]
    model: ChatModel | None = None
    more: Callable[[int], Sequence[Hit]] = _nothing


@dataclass(frozen=True)
class DistilContext:
    """What a strategy may use while it distils; all of it is bound to the scope.

    A late verdict distils an episode anew. Memory is then seen as it will be once the earlier result is
    taken back, so a strategy need not know that there was one.

    Args:
        scope: whose memory.
        model: the memory's chat model, metered; None if the memory has none.
        recall: (query, k) -> hits, before the strategy's own `select`.
        now: seconds since 1970.
        seen: (episode id) -> the active records that count for it: those it declared as used or, with none
            declared, all that it was shown; with their counters of use.
        embed: texts -> unit vectors; None if the memory has no embedder.
        taken_back: the records that an earlier result changed, by id, as they are without it; a strategy
            that keeps parts of several episodes in one record writes its text anew here.
        by_words: `recall` without the embedder.
    """

    scope: str
    model: ChatModel | None
    recall: Callable[[str, int], list[Hit]]
    now: float
    seen: Callable[[str], list[Record]] = _nobody
    embed: Callable[[Sequence[str]], list[Sequence[float]]] | None = None
    taken_back: Mapping[str, Record] = field(default_factory=_none)
    by_words: Callable[[str, int], list[Hit]] = _no_hits


class Strategy(Protocol):
    """How experience becomes memory, and memory a prompt.

    Attributes:
        name: the name it is registered under.
        version: changes when its prompts or its records change.
    """

    name: str
    version: str

    def index_text(self, record: Record) -> IndexText:
        """The texts that a record is found by; pure."""
        ...

    def select(self, query: Query, hits: Sequence[Hit]) -> Sequence[Hit]:
        """Choose among candidates, best first; the limits of the query are enforced afterwards.

        A fault of the model may be raised: recall then goes on with the candidates as they were ranked.
        """
        ...

    def render(self, hits: Sequence[Hit]) -> str:
        """What is put into the prompt; empty for no hits, and data rather than instructions."""
        ...

    def distil(self, episodes: Sequence[Episode], context: DistilContext) -> Sequence[Op]:
        """Operations that keep what one episode, or a group of rollouts, has taught.

        Runs in a worker, perhaps more than once for one episode; only one result is applied.
        """
        ...


def within(query: Query, hits: Sequence[Hit]) -> list[Hit]:
    """The first hits that fit the number and the tokens asked for; one too long is passed over."""
    kept: list[Hit] = []
    left = query.budget_tokens
    for hit in hits:
        cost = query.count_tokens(hit.text) if left is not None else 0
        if len(kept) < query.k and (left is None or cost <= left):
            kept.append(hit)
            left = None if left is None else left - cost
    return kept


def find_strategy(strategy: str | Strategy) -> Strategy:
    """The strategy with a name, made without arguments; an object passes unchanged.

    Raises:
        ConfigError: nothing has that name, or the object lacks one of the four functions.
    """
    if not isinstance(strategy, str):
        missing = [part for part in _PARTS if not hasattr(strategy, part)]
        if missing:
            raise ConfigError(f"{strategy!r} has no {missing[0]}", accepted="a strategy's name, or an object", do="")
        return strategy
    from remnant.plugins import collect

    found = {item.name: item for _, item in collect("remnant_strategies")}
    if strategy not in found:
        raise unknown("strategy", strategy, found)
    return cast("Strategy", found[strategy]())


_PARTS = ("name", "version", "index_text", "select", "render", "distil")
