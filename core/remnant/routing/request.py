"""What the router is asked: the history, the question, the model, the limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from types import MappingProxyType
from typing import Any

from remnant.errors import ConfigError
from remnant.routing.settings import TIERS

_RELIABLE = {"weak": 0.25, "mid": 0.5, "top": 0.75}  # of the window, where nothing was measured
_CHARACTERS_PER_TOKEN = 4


class QueryType(str, Enum):
    """What a question asks for, as ConvoMem divides them."""

    USER_FACT = "user_fact"
    ASSISTANT_FACT = "assistant_fact"
    CHANGING = "changing"
    TEMPORAL = "temporal"
    PREFERENCE = "preference"
    IMPLICIT = "implicit"
    MULTI_HOP = "multi_hop"
    ABSTAIN_PROBE = "abstain_probe"
    UNKNOWN = "unknown"


def count_tokens(text: str) -> int:
    """Tokens of a text, estimated at four characters each, rounded up."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


def not_negative(thing: object, *but: str) -> None:
    """Refuse a negative, infinite or NaN number in any field of a dataclass.

    Args:
        thing: an instance of a dataclass.
        but: fields to leave alone.

    Raises:
        ConfigError: names the field and its value.
    """
    for item in fields(thing):  # type: ignore[arg-type]
        value = getattr(thing, item.name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and item.name not in but and not 0 <= value < math.inf:
            raise ConfigError(f"{item.name} {value}", accepted="a number, 0 or more")


@dataclass(frozen=True)
class Model:
    """A language model, as far as routing needs it.

    Args:
        window: tokens that fit, prompt and answer together.
        max_reliable_tokens: longest prompt at which it was measured to stay accurate (`reliable_length`);
            None takes 0.25, 0.5 or 0.75 of the window by tier.
        price_in: USD per million tokens read.
        price_cached_in: USD per million tokens read from a prefix cache; None is `price_in`.
        price_out: USD per million tokens written.
        prefill_tok_s: tokens read per second.
        decode_tok_s: tokens written per second.
        ttft_s: seconds before the first token, without reading.
        tier: weak, mid or top.
        name: looked up in `Settings.models`.

    Raises:
        ConfigError: a number is out of range or the tier unknown.
    """

    window: int
    max_reliable_tokens: int | None = None
    price_in: float = 0.0
    price_cached_in: float | None = None
    price_out: float = 0.0
    prefill_tok_s: float = 5000.0
    decode_tok_s: float = 80.0
    ttft_s: float = 0.5
    tier: str = "mid"
    name: str = ""

    def __post_init__(self) -> None:
        """Refuse impossible models."""
        not_negative(self)
        if self.window < 1 or not self.prefill_tok_s or not self.decode_tok_s:
            raise ConfigError(
                f"window {self.window}, speeds {self.prefill_tok_s} and {self.decode_tok_s}", accepted="above 0"
            )
        if self.tier not in TIERS:
            raise ConfigError(f"tier {self.tier!r}", accepted=TIERS)

    @property
    def reliable_tokens(self) -> int:
        """Tokens of the longest prompt we trust it with; never above the window."""
        if self.max_reliable_tokens is None:
            return int(self.window * _RELIABLE[self.tier])  # powers of two: exact
        return min(self.max_reliable_tokens, self.window)


@dataclass(frozen=True)
class Budgets:
    """The most one answer may cost.

    Args:
        usd: USD; None is no limit.
        latency_s: seconds; None is no limit.
    """

    usd: float | None = None
    latency_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse negative limits."""
        not_negative(self)


@dataclass(frozen=True)
class Cache:
    """The provider's prefix cache.

    Args:
        prefix_cached_tokens: tokens of the history that it holds.
        ttl_left_s: seconds until it drops them; 0 is nothing cached.
        version: the store's version it was filled from; another one than the request's is nothing cached.
    """

    prefix_cached_tokens: int = 0
    ttl_left_s: float = 0.0
    version: str = ""

    def __post_init__(self) -> None:
        """Refuse negative numbers."""
        not_negative(self)


def _no_recall() -> Mapping[int, float]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Index:
    """The index that retrieval would use.

    Args:
        ready: whether it can be searched.
        items: units in it; 0 is unknown.
        recall_at: k -> measured fraction of the evidence found among the first k units.
        unit_tokens: mean tokens of a unit; 0 takes history tokens per item.
        usd_query: USD of one search (embedding the question, reranking).
        usd_ingest: USD of taking in what is not in it yet; shared among the calls expected.
        search_s: seconds of one search.
        rerank_s: seconds of reranking.
        unindexed_tokens: tokens of conversations it does not hold yet; they go into the prompt verbatim.
    """

    ready: bool = False
    items: int = 0
    recall_at: Mapping[int, float] = field(default_factory=_no_recall)
    unit_tokens: float = 0.0
    usd_query: float = 0.0
    usd_ingest: float = 0.0
    search_s: float = 0.02
    rerank_s: float = 0.0
    unindexed_tokens: int = 0

    def __post_init__(self) -> None:
        """Refuse negative numbers and recalls that are no fraction."""
        not_negative(self)
        if any(k < 1 or not 0 <= recall <= 1 for k, recall in self.recall_at.items()):
            raise ConfigError(f"recall_at {dict(self.recall_at)}", accepted="k >= 1 -> a fraction of 1")


@dataclass(frozen=True)
class Request:
    """One question and everything that bears on how to answer it.

    Args:
        query: the question.
        n_conversations: conversations in the history.
        history_tokens: tokens of the history.
        model: the reader.
        query_type: what it asks for; UNKNOWN is classified.
        tokens_new_since_cache: tokens added since the prefix cache was filled.
        est_evidence: messages that hold the answer, 1-6; None is unknown.
        extractor: the model that reads blocks; None is the reader.
        budgets: limits of one answer.
        cache: the prefix cache.
        index: the index.
        allow_full: False never sends the whole history; True allows it beyond the upper threshold too, where
            its prefix is cached; None follows the policy.
        allow_blocks: False where nothing can read blocks one by one.
        calls_expected: questions among which the cost of taking in is shared.
        output_tokens: tokens reserved for the answer.
        store_version: version of the store; a cache of another version does not count.

    Raises:
        ConfigError: a number is out of range, or tokens without a conversation.
    """

    query: str
    n_conversations: int
    history_tokens: int
    model: Model
    query_type: QueryType = QueryType.UNKNOWN
    tokens_new_since_cache: int = 0
    est_evidence: int | None = None
    extractor: Model | None = None
    budgets: Budgets = Budgets()
    cache: Cache = Cache()
    index: Index = Index()
    allow_full: bool | None = None
    allow_blocks: bool = True
    calls_expected: int = 1
    output_tokens: int = 300
    store_version: str = ""

    def __post_init__(self) -> None:
        """Refuse impossible requests."""
        not_negative(self)
        if self.calls_expected < 1:
            raise ConfigError(f"calls_expected {self.calls_expected}", accepted="1 or more")
        if self.est_evidence is not None and not 1 <= self.est_evidence <= 6:
            raise ConfigError(f"est_evidence {self.est_evidence}", accepted="1 to 6, or None")
        if self.history_tokens and not self.n_conversations:
            raise ConfigError(f"{self.history_tokens} tokens in 0 conversations", accepted="1 conversation or more")
        if not isinstance(self.query_type, QueryType):  # pyright: ignore[reportUnnecessaryIsInstance]
            object.__setattr__(self, "query_type", query_type(self.query_type))

    @property
    def query_tokens(self) -> int:
        """Tokens of the question, estimated."""
        return count_tokens(self.query)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the history that a prefix cache of this very store serves now."""
        live = self.cache.ttl_left_s > 0 and self.cache.version == self.store_version
        old = max(0, self.history_tokens - self.tokens_new_since_cache)
        return min(self.cache.prefix_cached_tokens, old) if live else 0


def query_type(name: Any) -> QueryType:
    """A query type from its name.

    Raises:
        ConfigError: no type has that name.
    """
    try:
        return QueryType(name)
    except ValueError:
        raise ConfigError(f"query type {name!r}", accepted=[kind.value for kind in QueryType]) from None
