"""What a store must do. Every method takes the scope and sees nothing outside it.

A store holds records with all their versions, vectors, the word index, the journal and the queue
of distillations. Each method that writes is one transaction. No method calls a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from remnant.memory.episode import Episode, Job
from remnant.memory.record import Outcome, Record


def _no_vectors() -> Mapping[str, bytes]:
    return {}


@dataclass(frozen=True)
class Write:
    """One record as it shall be.

    Args:
        record: the new state.
        expected: the version it replaces; 0 for a record that must not exist.
        words: the text that the word index holds.
        digest: names the text that is embedded; vectors of another text are dropped.
        vectors: embedder's `model_id` -> unit vector, float32, little endian.
    """

    record: Record
    expected: int
    words: str
    digest: str
    vectors: Mapping[str, bytes] = field(default_factory=_no_vectors)


@dataclass(frozen=True)
class Version:
    """One change of a scope.

    Args:
        number: grows with every change of the store; 0 means that nothing was changed.
        time: seconds since 1970; never before an earlier change, whatever the clock does.
        actor: who did it.
        reason: why; emptied when a record it touched is forgotten.
        ids: the records that were written.
        undoes: the change that this one took back, or 0.
    """

    number: int
    time: float
    actor: str
    reason: str
    ids: tuple[str, ...]
    undoes: int = 0


@dataclass(frozen=True)
class Receipt:
    """What `forget` erased; counts of rows, unless said otherwise.

    Args:
        ids: the records that are gone.
        versions: their stored versions.
        vectors: their vectors.
        words: their entries in the word index.
        steps: steps of the journal, of the episodes they came from.
        episodes: ids of those episodes; a stub without text is left of each.
        derived: ids of records made from them, which are kept; forget them too if they tell.
        clean: no byte of it is left in the files of the store's data. False: another process was reading, or the
            store cleans up at leisure; the next `forget` or `compact` may do so.
        remains: where bytes of it may still lie, in words: what no store on a server can reach, and what is not clean.
    """

    ids: tuple[str, ...]
    versions: int
    vectors: int
    words: int
    steps: int
    episodes: tuple[str, ...]
    derived: tuple[str, ...]
    clean: bool
    remains: tuple[str, ...] = ()


class RecordStore(Protocol):
    """A backend. Raises `StoreError` for its own faults and `ConflictError` for lost races."""

    def get(self, scope: str, ids: Sequence[str]) -> dict[str, Record]:
        """The current records with these ids, deleted ones included."""
        ...

    def scopes(self, *, limit: int = 1000) -> list[str]:
        """The scopes that hold a record, a change or an episode, sorted.

        The one question that is not asked within a scope: it is for whoever holds the whole store, as the command
        line does; no door of an agent asks it.
        """
        ...

    def page(
        self,
        scope: str,
        *,
        statuses: Sequence[str] = ("active",),
        after: str = "",
        limit: int = 1000,
        newest: bool = False,
    ) -> list[Record]:
        """Current records in order of id, after an id; with `newest` in the opposite order."""
        ...

    def count(self, scope: str) -> dict[str, int]:
        """How many records there are by status."""
        ...

    def learnt(self, scope: str, episode: str) -> list[str]:
        """Ids of the records, whatever their status, that name an episode among their sources; sorted."""
        ...

    def versions(self, scope: str, id: str) -> list[tuple[Version, Record]]:
        """Every version of a record with the change that made it, oldest first."""
        ...

    def changed(self, scope: str, number: int) -> list[tuple[Record | None, Record]]:
        """(before, after) of every record that a change wrote."""
        ...

    def snapshot(self, scope: str, number: int) -> list[Record]:
        """Every record as it was right after a change, whatever its status."""
        ...

    def changes(self, scope: str, *, limit: int = 1000) -> list[Version]:
        """The latest changes, newest first."""
        ...

    def change_at(self, scope: str, time: float) -> int:
        """The number of the last change at or before a time; 0 if there is none."""
        ...

    def latest(self, scope: str) -> int:
        """The number of the last change; 0 if there is none."""
        ...

    def commit(
        self,
        scope: str,
        writes: Sequence[Write],
        *,
        actor: str,
        reason: str,
        undoes: int = 0,
        job: Job | None = None,
    ) -> Version:
        """Write records in one transaction and, with a job, mark that job as done in the same one.

        Raises:
            ConflictError: a record has another version than expected, or the job was lost.
        """
        ...

    def words(self, scope: str, terms: Sequence[str], limit: int, place: str = "") -> list[tuple[str, float]]:
        """(id, BM25) of the active records that hold one of the terms, best first; of one place if it is named."""
        ...

    def placed(
        self, scope: str, place: str, *, statuses: Sequence[str] = ("active",), limit: int = -1, offset: int = 0
    ) -> list[str]:
        """Ids of the records at a place (not empty) and below it, the one changed last first; -1 is no limit."""
        ...

    def places(self, scope: str, place: str, *, statuses: Sequence[str] = ("active",)) -> list[str]:
        """The places, at this one (not empty) and below it, that hold a record; sorted."""
        ...

    def stamp(self, scope: str) -> tuple[int, int]:
        """(epoch, last change): vectors are the same while it is; a new epoch means all may differ."""
        ...

    def vectors(self, scope: str, model: str, since: int | None = None) -> list[tuple[str, bytes | None]]:
        """Vectors of the active records; with `since`, of records changed after that change, None if gone."""
        ...

    def unembedded(self, scope: str, model: str, limit: int = 64) -> list[Record]:
        """Active records that have no vector of this embedder."""
        ...

    def put_vectors(self, scope: str, model: str, rows: Sequence[tuple[str, int, str, bytes]]) -> None:
        """Add vectors (id, version, digest, vector) of records that still have that version."""
        ...

    def dimension(self, scope: str, model: str) -> int | None:
        """Size of the stored vectors of an embedder; None if there are none."""
        ...

    def erase(self, scope: str, ids: Sequence[str]) -> Receipt:
        """Remove records and all that shows what was in them, down to the bytes."""
        ...

    def compact(self) -> bool:
        """Rewrite the files without what was erased; False while somebody else is reading."""
        ...

    def open_episode(self, episode: Episode, owner: str) -> bool:
        """Journal a new episode; False if its id exists already."""
        ...

    def add_step(self, scope: str, episode: str, step: Mapping[str, Any]) -> int:
        """Append a step to an open episode; its number, from 0.

        Raises:
            ConfigError: there is no such open episode.
        """
        ...

    def close_episode(self, scope: str, episode: str, verdict: Outcome, source: str, *, queue: bool) -> bool:
        """Close, settle utility and queue the distillation; False if it was closed already."""
        ...

    def reopen_episode(self, scope: str, episode: str, owner: str) -> bool:
        """Open a closed episode again: utility is unsettled and its distillation called off; False if it is open."""
        ...

    def queue_group(self, scope: str, group: str) -> tuple[str, ...]:
        """Queue one distillation of a group's closed episodes; their ids."""
        ...

    def revise(self, scope: str, episode: str, verdict: Outcome, source: str) -> None:
        """Set another verdict, settle utility anew and queue another round of distillation."""
        ...

    def episode(self, scope: str, id: str) -> Episode | None:
        """An episode with its steps."""
        ...

    def episodes(self, scope: str, *, limit: int = 1000) -> list[Episode]:
        """Episodes without their steps, newest first."""
        ...

    def abandoned(self, scope: str) -> list[str]:
        """Ids of open episodes whose process is gone."""
        ...

    def claim(self, scope: str, owner: str, lease: float) -> Job | None:
        """Take the next distillation, queued or left by somebody who is gone."""
        ...

    def fail(self, scope: str, job: Job, error: str, *, retry_in: float | None) -> None:
        """Give a distillation back: again after some seconds, or never if None."""
        ...

    def release(self, scope: str, job: Job) -> None:
        """Give a distillation back unharmed."""
        ...

    def pending(self, scope: str) -> int:
        """Distillations that are queued or running."""
        ...

    def jobs(self, scope: str) -> list[tuple[str, str, int, str]]:
        """(key, state, failed attempts, last error) of every distillation."""
        ...

    def shown(self, scope: str, ids: Sequence[str], episode: str) -> None:
        """Count records as retrieved, and note that an episode saw them."""
        ...

    def used(self, scope: str, ids: Sequence[str], episode: str) -> None:
        """Note that an open episode really used these records."""
        ...

    def uses(self, scope: str, episode: str) -> list[tuple[str, bool]]:
        """(id, whether its use was declared) of the records that an episode was shown."""
        ...

    def harmful(self, scope: str) -> list[str]:
        """Active records that did harm in half of at least three uses."""
        ...

    def absolve(self, scope: str, ids: Sequence[str]) -> None:
        """Set the counters of uses back to zero."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...
