"""The one record of agent memory: text, when to use it, where it came from, and how it has done.

A record is a value. The store sets `id`, `scope`, `version`, `created_at`, `observed_at` and
`utility`; every other field is the writer's. Times are seconds since 1970, UTC.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, cast, get_args

from remnant.errors import ConfigError, unknown

Status = Literal["active", "archived", "deleted", "quarantined"]
Trust = Literal["system", "user", "agent", "tool", "web"]
Outcome = Literal["success", "failure", "unknown"]

STATUSES: tuple[str, ...] = get_args(Status)
TRUSTS: tuple[str, ...] = get_args(Trust)
OUTCOMES: tuple[str, ...] = get_args(Outcome)
KEPT = frozenset({"id", "scope", "version", "created_at", "observed_at", "utility"})
"""Fields that the store sets; an operation may not."""

_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_lock = threading.Lock()
_last = 0


@dataclass(frozen=True)
class Provenance:
    """Where a record came from.

    Args:
        source_type: `episode`, `record`, `person`, `document`, `import`, ...
        source_id: the id of that source, for example an episode's.
        author: who wrote it: a person, a strategy, a tool.
        model_id: the model that distilled it, if one did.
        prompt_version: the version of the prompt that asked for it.
        time: when it was taken from the source; 0 where unknown.
    """

    source_type: str
    source_id: str = ""
    author: str = ""
    model_id: str = ""
    prompt_version: str = ""
    time: float = 0.0


@dataclass(frozen=True)
class Utility:
    """How a record has done; the store only ever adds to these counters.

    Args:
        retrieved: times it was shown to an episode.
        used: closed episodes that used it.
        helped: of those, the successes.
        harmed: of those, the failures.
        last_used: when it was used last; 0 is never.
    """

    retrieved: int = 0
    used: int = 0
    helped: int = 0
    harmed: int = 0
    last_used: float = 0.0


def _no_payload() -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Record:
    """One thing remembered.

    Args:
        content: what is shown to the model.
        trigger: what the record is found by, such as a situation; empty means by its content.
        kind: `fact`, `strategy`, `concept`, `thought`, `experience`, `message`, ...; free.
        payload: further fields of the kind, as JSON.
        keywords: words that find it besides its text.
        trust: where its words come from; decides what may be injected.
        outcome: of the episode it was learnt from.
        confidence: fraction of 1.
        provenance: its sources.
        parents: ids of the records it was made from.
        valid_from: when it began to be true; None means always.
        valid_to: when it ceased to be true (exclusive); None means not yet.
        status: only `active` records are recalled.
        place: a path inside the scope, such as `notes/ann`, that a recall may be limited to; empty is nowhere.

    Raises:
        ConfigError: empty content, an unknown status, trust or outcome, a bad interval or place.

    Source: `MemoryItem` of the specification of agent memory, 1.1.
    """

    content: str
    trigger: str = ""
    kind: str = "fact"
    payload: Mapping[str, Any] = field(default_factory=_no_payload)
    keywords: tuple[str, ...] = ()
    trust: Trust = "user"
    outcome: Outcome = "unknown"
    confidence: float = 1.0
    provenance: tuple[Provenance, ...] = ()
    parents: tuple[str, ...] = ()
    valid_from: float | None = None
    valid_to: float | None = None
    status: Status = "active"
    place: str = ""
    id: str = ""
    scope: str = ""
    version: int = 0
    created_at: float = 0.0
    observed_at: float = 0.0
    utility: Utility = Utility()

    def __post_init__(self) -> None:
        """Refuse what no store should hold."""
        if not isinstance(cast(object, self.content), str) or not self.content.strip():
            raise ConfigError(f"a record with content {self.content!r}", accepted="text that is not empty")
        for name, given, accepted in (
            ("status", self.status, STATUSES),
            ("trust", self.trust, TRUSTS),
            ("outcome", self.outcome, OUTCOMES),
        ):
            if given not in accepted:
                raise unknown(name, given, accepted)
        if not 0.0 <= self.confidence <= 1.0:
            raise ConfigError(f"confidence {self.confidence}", accepted="0 to 1")
        if self.valid_from is not None and self.valid_to is not None and self.valid_to < self.valid_from:
            raise ConfigError(f"valid to {self.valid_to}, before it is valid", accepted=f"{self.valid_from} or later")
        if self.place and not all(self.place.split("/")):
            raise ConfigError(f"place {self.place!r}", accepted="labels with one slash between two of them")

    def lies_in(self, place: str) -> bool:
        """Whether the record is at a place or below it; everything lies in the empty place."""
        return not place or self.place == place or self.place.startswith(f"{place}/")

    def valid_at(self, moment: float) -> bool:
        """Whether the record is true at a moment."""
        return (self.valid_from is None or self.valid_from <= moment) and (
            self.valid_to is None or moment < self.valid_to
        )

    def meaning(self) -> tuple[Any, ...]:
        """All that the writer set: what two equal states of a record have in common."""
        data = self.to_dict()
        return tuple((name, repr(data[name])) for name in sorted(data) if name not in KEPT)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON data."""
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        data["provenance"] = [vars(source) for source in self.provenance]
        data["utility"] = vars(self.utility)
        data["payload"] = dict(self.payload)
        return data | {"keywords": list(self.keywords), "parents": list(self.parents)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """The record that `to_dict` wrote.

        Raises:
            ConfigError: a field is missing, unknown or malformed.
        """
        given = dict(data)
        try:
            given["provenance"] = tuple(Provenance(**source) for source in given.get("provenance", ()))
            given["utility"] = Utility(**given.get("utility", {}))
            given["keywords"] = tuple(given.get("keywords", ()))
            given["parents"] = tuple(given.get("parents", ()))
            return cls(**given)
        except TypeError as error:
            raise ConfigError(f"not a record: {error}", accepted=(item.name for item in fields(cls))) from error


@dataclass(frozen=True)
class Hit:
    """A record that answers a query.

    Args:
        id: the record's id.
        text: what would be shown: its content.
        score: higher is better; comparable within one recall only.
        record: the whole record.
        parts: what the score was made of: `words`, `dense`.
    """

    id: str
    text: str
    score: float
    record: Record
    parts: Mapping[str, float]


def changed(record: Record, changes: Mapping[str, Any]) -> Record:
    """A record with some of the writer's fields replaced.

    Raises:
        ConfigError: a field does not exist, or is the store's.
    """
    accepted = {item.name for item in fields(Record)} - KEPT
    for name in changes:
        if name not in accepted:
            raise unknown("field", name, accepted)
    return replace(record, **changes)


def new_id(now: float | None = None) -> str:
    """A new ULID: 48 bits of milliseconds, 80 random bits, 26 characters that sort by time of making."""
    global _last
    number = (max(0, int((time.time() if now is None else now) * 1000)) & (1 << 48) - 1) << 80
    with _lock:
        same = _last >> 80 == number >> 80
        number = _last + 1 if same else number | int.from_bytes(os.urandom(10), "big") >> 1
        _last = number
    return "".join(_BASE32[number >> shift & 31] for shift in range(125, -1, -5))


def digest(text: str) -> str:
    """A short name for a text, equal for equal texts."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def estimate_tokens(text: str) -> int:
    """Tokens of a text, for budgets, with no tokenizer: a token per four bytes, rounded up."""
    return (len(text.encode("utf-8", "surrogatepass")) + 3) // 4


DEFAULT_SCOPE = "default"
"""The scope that a host's plugin takes where nobody named one: a file of one's own. The core itself wants a name."""


def check_scope(scope: str | Mapping[str, str] | None) -> str:
    """The scope as one string; a mapping becomes `agent=a/tenant=t`, sorted by name.

    Raises:
        ConfigError: there is no scope; nothing falls back to a shared one.
    """
    if isinstance(scope, Mapping):
        scope = "/".join(f"{name}={_escaped(scope[name])}" for name in sorted(scope) if scope[name])
    if not isinstance(scope, str) or not scope.strip():
        raise ConfigError(f"scope {scope!r}", accepted="a name, or names such as {'tenant': 'a', 'user': 'u'}")
    return scope


def place_of(labels: Iterable[str]) -> str:
    """Labels as a place, whatever characters they hold.

    Example: place_of(["notes", "a/b"]) -> "notes/a%2Fb"
    """
    return "/".join(map(_escaped, labels))


def labels_of(place: str) -> tuple[str, ...]:
    """The labels that `place_of` was given."""
    parts = place.split("/") if place else []
    return tuple(part.replace("%3D", "=").replace("%2F", "/").replace("%25", "%") for part in parts)


def _escaped(value: str) -> str:
    return value.replace("%", "%25").replace("/", "%2F").replace("=", "%3D")
