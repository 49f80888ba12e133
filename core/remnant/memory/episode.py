"""What an agent did: an episode, its steps as they were observed, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from remnant.errors import unknown
from remnant.memory.record import OUTCOMES, Outcome

JobState = Literal["queued", "running", "done", "failed"]


def _nothing() -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Episode:
    """One run of an agent on one task.

    Args:
        id: names the episode; distillation happens once per id.
        scope: whose memory it belongs to.
        task: what was asked.
        steps: what was observed, in order; each is JSON data.
        verdict: how it ended; `unknown` while open.
        source: who said so: `rule`, `judge`, `user`, `exception`, `limit`, `recovery`, ...
        group: the group of rollouts it belongs to; empty if none.
        opened_at: seconds since 1970.
        closed_at: None while open.
        metadata: the opener's own data.
        erased: its task and steps were forgotten; only this stub is left.
    """

    id: str
    scope: str
    task: str
    steps: tuple[Mapping[str, Any], ...] = ()
    verdict: Outcome = "unknown"
    source: str = ""
    group: str = ""
    opened_at: float = 0.0
    closed_at: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=_nothing)
    erased: bool = False


@dataclass(frozen=True)
class Job:
    """A distillation to be done: one episode, or one group of them.

    Args:
        key: the episode's or the group's id; the effect happens once per key and round.
        claim: the token of whoever does it; only that one can finish it.
        episodes: ids of the episodes.
        change: the change that an earlier round left, to be taken back; None in the first round.
        attempts: rounds that failed so far.
    """

    key: str
    claim: str
    episodes: tuple[str, ...]
    change: int | None
    attempts: int


def check_verdict(verdict: str) -> Outcome:
    """The verdict, if it is one.

    Raises:
        ConfigError: it is none of success, failure, unknown.
    """
    for outcome in OUTCOMES:
        if verdict == outcome:
            return outcome  # pyright: ignore[reportReturnType]
    raise unknown("verdict", str(verdict), OUTCOMES)
