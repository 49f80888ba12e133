"""The memory of an agent: `Memory`, what every door of Remnant stands on."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from remnant.errors import ConfigError, unknown
from remnant.index.choose import AUTO, check_index
from remnant.memory import cube
from remnant.memory.change import Difference, apply_steps, differences, embed_missing, undo_steps
from remnant.memory.context import Context, Steps, drive
from remnant.memory.dedupe import CLOSE, add_once_steps, consolidate_steps
from remnant.memory.episode import Episode, check_verdict
from remnant.memory.errors import StoreError
from remnant.memory.events import Events
from remnant.memory.llm import ChatModel, Embedder, Usage
from remnant.memory.ops import Add, Op, Update
from remnant.memory.owner import ANYBODY, owner
from remnant.memory.recall import AsOf
from remnant.memory.record import Hit, Outcome, Record, check_scope
from remnant.memory.rounds import BREAKER
from remnant.memory.scans import MOST_BYTES, Scans
from remnant.memory.store import Receipt, RecordStore, Version
from remnant.memory.strategy import Strategy, find_strategy
from remnant.memory.twins import AsyncTwins
from remnant.memory.widen import NARROW, Widen, widening
from remnant.memory.worker import Worker, distil_next, wait_until
from remnant.progress import Progress, silent

Write = Literal["background", "inline", "manual"]

_SETTINGS = ("weight", "secrets", "clock", "count_tokens", "strict", "index", "cache_bytes", "widen")
_STORE_SETTINGS = ("synchronous", "schema")
_OPTIONS = {"sqlite": ("clock", "synchronous"), "postgresql": ("clock", "schema", "size", "wait", "vacuum")}


class Memory(AsyncTwins):
    """What an agent remembers, in one scope of one store; safe to share between threads.

    Made by `Memory.open`. Every method with work to do has an async twin with `a` before its name.
    """

    def __init__(self, context: Context, worker: Worker | None, write: Write, recover: bool = True) -> None:
        """See `open`."""
        super().__init__(context)
        self._worker = worker
        self._write: Write = write
        self._recovers = recover
        if recover:
            self._recover()

    @classmethod
    def open(
        cls,
        path_or_url: str | Path,
        strategy: str | Strategy = "facts",
        *,
        scope: str | Mapping[str, str] | None = None,
        llm: ChatModel | None = None,
        embedder: Embedder | None = None,
        write: Write = "background",
        store: RecordStore | None = None,
        recover: bool = True,
        **settings: Any,
    ) -> Memory:
        """Open a memory; a file that does not exist is created.

        Args:
            path_or_url: a file, `:memory:`, `sqlite:///file` or `postgresql://user@host:port/database`.
            strategy: its name or an object.
            scope: whose memory: a name, or names such as `{"tenant": "a", "user": "u"}`. Nothing is
                readable or writable outside it.
            llm: the model that distils; None leaves what a strategy can do without.
            embedder: None searches by words only.
            write: when closed episodes are distilled: in a `background` thread, `inline` as they
                are closed, or `manual`, on `flush`.
            store: a backend of one's own, or one from `open_store`; the path is then only a name.
            recover: close the episodes of processes that are gone. A tool that only looks leaves them.
            settings: `weight`, `secrets`, `clock`, `count_tokens`, `strict`, `index` of `Context`; `cache_bytes`, the
                memory that vectors may take (1 GiB; see `remnant.memory.scans`); `widen`, which may be True
                or a `Widen`; `synchronous` of a file (`normal` or `full`), `schema` of a server.

        Raises:
            ConfigError: no scope, an unknown strategy or setting.
            StoreError: the file cannot be opened or is not ours.
        """
        accepted = (
            "weight",
            "secrets",
            "clock",
            "count_tokens",
            "strict",
            "index",
            "cache_bytes",
            "widen",
            *_STORE_SETTINGS,
        )
        for name in settings:
            if name not in accepted:
                raise unknown("setting", name, accepted)
        if write not in ("background", "inline", "manual"):
            raise unknown("write", write, ("background", "inline", "manual"))
        if not 0.0 <= settings.get("weight", 0.5) <= 1.0:
            raise ConfigError(f"weight {settings['weight']}", accepted="0 to 1")
        if settings.get("secrets", "redact") not in ("redact", "refuse", "keep"):
            raise unknown("secrets", str(settings["secrets"]), ("redact", "refuse", "keep"))
        check_index(settings.get("index", AUTO))
        if settings.get("cache_bytes", 0) < 0:
            raise ConfigError(f"cache_bytes {settings['cache_bytes']}", accepted="0 or more")
        settings["scans"] = Scans(settings.pop("cache_bytes", MOST_BYTES))
        settings["widen"] = widening(settings.get("widen"), NARROW)
        checked, found = check_scope(scope), find_strategy(strategy)
        for_store = {name: settings.pop(name) for name in _STORE_SETTINGS if name in settings}
        clock = {"clock": settings["clock"]} if "clock" in settings else {}
        backend = store or open_store(path_or_url, **clock, **for_store)
        context = Context(backend, checked, found, llm, embedder, **settings)
        made = cls(context, Worker() if write == "background" else None, write, recover)
        atexit.register(_at_exit, weakref.ref(made))
        return made

    def scoped(self, scope: str | Mapping[str, str]) -> Memory:
        """The same memory for another scope: one store, worker and set of subscribers."""
        return Memory(replace(self._c, scope=check_scope(scope)), self._worker, self._write, self._recovers)

    @property
    def context(self) -> Context:
        """What it works with; for drivers above it, such as `remnant.memory.scaling`."""
        return self._c

    @property
    def scope(self) -> str:
        """Whose memory this is."""
        return self._c.scope

    @property
    def strategy(self) -> Strategy:
        """How it learns."""
        return self._c.strategy

    @property
    def store(self) -> RecordStore:
        """Where it lies."""
        return self._c.store

    @property
    def events(self) -> Events:
        """What happens in it: `memory.events.subscribe(print)`."""
        return self._c.events

    def costs(self) -> dict[str, Usage]:
        """What the calls of its model cost since it was opened, by operation."""
        return self._c.costs.by_operation()

    def stats(self) -> dict[str, int]:
        """How many records there are by status, and distillations that wait."""
        return {**self._c.store.count(self.scope), "pending": self._c.store.pending(self.scope)}

    def recall(
        self,
        query: str | Episode,
        k: int = 10,
        budget_tokens: int | None = None,
        as_of: AsOf = None,
        *,
        kinds: Collection[str] | None = None,
        episode: str | None = None,
        place: str = "",
        widen: bool | Widen | None = None,
    ) -> list[Hit]:
        """What memory knows about a question, best first.

        Reads fail open: a fault of the store gives nothing and the event `recall_failed`, unless
        the memory was opened with `strict=True`. An embedder that fails leaves the words.

        Args:
            query: a question, or an episode whose task is one.
            k: hits at most.
            budget_tokens: tokens of all hits together at most.
            as_of: as it was after a change (an integer) or at a time; the past is found by words.
            kinds: only records of these kinds.
            episode: the id of the episode that is shown the hits, so that they are judged by its end.
            place: only records at this place and below it, such as `notes/ann`; see `Record`.
            widen: follow links from what was found to its neighbours and to records that share rare names with
                it, within the same `k` and tokens; a `Widen` sets the share of each link. None is the memory's own
                setting.

        Raises:
            EmbedderError: the vectors have another size than those stored under the same name.
        """
        steps = self._recall_steps(query, k, budget_tokens, as_of, kinds, episode, place, widen)
        return drive(steps, self._c.embedder)

    def render(self, hits: Sequence[Hit]) -> str:
        """The hits as text for a prompt: data, never instructions; empty for no hits."""
        return self._c.strategy.render(hits)

    def get(self, id: str) -> Record | None:
        """One record, whatever its status; None if there is none."""
        return self._c.store.get(self.scope, [id]).get(id)

    def records(self, *, statuses: Sequence[str] = ("active",), after: str = "", limit: int = 1000) -> list[Record]:
        """Records in order of id."""
        return self._c.store.page(self.scope, statuses=statuses, after=after, limit=limit)

    def add(self, items: str | Record | Iterable[str | Record], *, once: bool = False) -> list[str]:
        """Remember texts or records; their ids, in order.

        Args:
            items: texts or records.
            once: a text that is here already, but for case and spacing, is not added: the record that holds it
                gets the new one's sources, and its id is returned.
        """
        return drive(add_steps(self._c, items, once), self._c.embedder)

    def consolidate(self, similarity: float | None = CLOSE, *, actor: str = "user") -> Version:
        """Make one of records that say the same, with the sources of all; the others are archived, and `undo` works.

        Reads every active record of the scope, and compares every vector with every other.

        Args:
            similarity: cosine from which on texts are nearly equal (without an embedder: share of common words), if
                they agree in numbers, names and negations as well; None merges equal texts only.
            actor: who asked for it.

        Returns:
            The change; its number is 0 if there was nothing to merge.

        Raises:
            ConfigError: a similarity outside 0 to 1.
        """
        return drive(consolidate_steps(self._c, similarity, actor), self._c.embedder)

    def apply(self, ops: Sequence[Op], reason: str, actor: str) -> Version:
        """Carry out operations in one transaction; all or none, versioned, and to be undone.

        Raises:
            ConfigError: an id is unknown, or a record would not be valid.
            ConflictError: others kept changing the same records.
        """
        return drive(apply_steps(self._c, ops, reason, actor), self._c.embedder)

    def undo(self, change: int | Version, actor: str = "user") -> Version:
        """Take a change back, as a change of its own (which can be undone as well).

        Raises:
            ConfigError: there is no such change.
            ConflictError: a record is no longer as that change left it; a later change that was
                itself taken back does not count.
        """
        number = change.number if isinstance(change, Version) else change
        return drive(undo_steps(self._c, number, actor), self._c.embedder)

    def diff(self, first: int, second: int | None = None) -> list[Difference]:
        """What differs between memory after one change and after another, or now."""
        return differences(self._c, first, self._c.store.latest(self.scope) if second is None else second)

    def audit(self, id: str) -> list[tuple[Version, Record]]:
        """Every version of a record, oldest first, with who made it, when and why."""
        return self._c.store.versions(self.scope, id)

    def changes(self, limit: int = 100) -> list[Version]:
        """The latest changes, newest first."""
        return self._c.store.changes(self.scope, limit=limit)

    def forget(self, ids: str | Iterable[str]) -> Receipt:
        """Erase records for good, with all that shows what was in them; cannot be undone.

        Ids that are not here are left out of the receipt, which lists what went.
        """
        wanted = [ids] if isinstance(ids, str) else list(ids)
        receipt = self._c.store.erase(self.scope, wanted)
        self._c.emit("forgotten", ids=list(receipt.ids), clean=receipt.clean)
        return receipt

    def approve(self, ids: str | Iterable[str], actor: str = "user") -> Version:
        """Let quarantined records be recalled; their counters of use begin anew."""
        wanted = [ids] if isinstance(ids, str) else list(ids)
        self._c.store.absolve(self.scope, wanted)
        return self.apply([Update(id, {"status": "active"}) for id in wanted], "approved", actor)

    def reindex(self) -> int:
        """Embed the records that have no vector of the present embedder; how many there were."""
        return drive(embed_missing(self._c), self._c.embedder)

    def export(self, path: str | Path, progress: Progress = silent) -> int:
        """Write the records of this scope to a cube file; how many."""
        return cube.write_cube(self._c, Path(path), progress)

    def import_(self, path: str | Path, progress: Progress = silent) -> cube.Imported:
        """Bring in the records of a cube file, into this scope and in one transaction.

        Args:
            path: a file that `export` wrote.
            progress: told the lines that are read, and then that they are written.

        Raises:
            ConfigError: the file is damaged, or an id is here with another meaning.
        """
        read = cube.read_cube(Path(path), progress)
        records, skipped = cube.new_records(self._c, read)
        progress(0, len(records), "writing")
        ids = self.apply([Add(record) for record in records], f"import of {Path(path).name}", "import").ids
        return cube.Imported(ids, tuple(skipped))

    def open_episode(
        self,
        task: str,
        *,
        id: str | None = None,
        group: str = "",
        metadata: Mapping[str, Any] | None = None,
        resumable: bool = False,
    ) -> Episode:
        """Begin to journal a run. An id that exists already gives that episode back.

        Args:
            task: what was asked.
            id: names the episode; left out, a new id.
            group: the group of rollouts it belongs to.
            metadata: the opener's own data.
            resumable: another process may go on with the run, so that the end of this one does not end the
                episode; one that nobody has ended within a week is closed all the same.
        """
        return self._open_episode(task, id, group, metadata, resumable)

    def reopen_episode(self, episode_id: str, *, resumable: bool = False) -> bool:
        """Go on with a run that had counted as over, such as one that failed and is tried again.

        Closing it again distils it anew; what was learnt from its earlier end is then taken back.

        Returns:
            False if it is open anyway.

        Raises:
            ConfigError: there is no such episode.
        """
        return self._c.store.reopen_episode(self.scope, episode_id, ANYBODY if resumable else owner())

    def observe(self, episode_id: str, step: Mapping[str, Any]) -> int:
        """Journal one step, as JSON data; it is on disk when this returns. Its number, from 0.

        A step with `"injected": true` is what memory itself put into the prompt: kept, never learnt from.

        Raises:
            ConfigError: there is no such open episode.
        """
        return self._observe(episode_id, step)

    def used(self, episode_id: str, ids: Sequence[str]) -> None:
        """Say which of the recalled records an open episode really used; without it, all count."""
        self._c.store.used(self.scope, ids, episode_id)

    def close_episode(self, episode_id: str, verdict: Outcome = "unknown", source: str = "rule") -> None:
        """End a run and queue its distillation; closing it again changes nothing.

        Raises:
            ConfigError: there is no such episode, or no such verdict.
        """
        if self._c.store.close_episode(self.scope, episode_id, check_verdict(verdict), source, queue=True):
            self._closed(episode_id)

    def close_group(self, group: str) -> None:
        """Queue one distillation over all closed episodes of a group of rollouts."""
        if ids := self._c.store.queue_group(self.scope, group):
            self._c.emit("queued", key=group, episodes=list(ids))
            self._distil()

    def feedback(
        self,
        episode_id: str,
        success: bool | None = None,
        *,
        verdict: Outcome | None = None,
        source: str = "user",
    ) -> None:
        """A later verdict on a closed episode: what was learnt is taken back and learnt anew.

        Raises:
            ConfigError: neither or both of `success` and `verdict`, or no such closed episode.
        """
        if (success is None) == (verdict is None):
            raise ConfigError("feedback without one verdict", accepted="success=True, success=False or verdict=...")
        outcome = check_verdict(verdict or ("success" if success else "failure"))
        self._c.store.revise(self.scope, episode_id, outcome, source)
        self._closed(episode_id)

    def flush(self, timeout: float = 60.0) -> bool:
        """Wait until every closed episode of this scope is distilled or given up.

        Returns:
            False if some were not within the time (seconds).
        """
        if self._worker is not None:
            self._worker.kick(self._c)
            return wait_until(lambda: not self._c.store.pending(self.scope), timeout)
        return wait_until(lambda: not distil_next(self._c) and not self._c.store.pending(self.scope), timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Stop the worker after the distillation at hand and close the store; the rest waits in it.

        Memories made by `scoped` share both, so closing one closes all.
        """
        if self._worker is not None:
            self._worker.close(timeout)
        self._c.scans.close()
        self._c.store.close()

    def __enter__(self) -> Memory:
        """Itself; closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _closed(self, episode_id: str) -> None:
        self._c.emit("closed", episode=episode_id)
        if harmful := self._c.store.harmful(self.scope):
            held: list[Op] = [Update(id, {"status": "quarantined"}) for id in harmful]
            self.apply(held, "did harm in half of its uses or more", BREAKER)
        self._distil()

    def _distil(self) -> None:
        if self._worker is not None:
            self._worker.kick(self._c)
        while self._write == "inline" and distil_next(self._c):
            pass

    def _recover(self) -> None:
        """Close what a process that is gone left open, and go on with what it left queued."""
        try:
            for id in self._c.store.abandoned(self.scope):
                self._c.store.close_episode(self.scope, id, "unknown", "recovery", queue=True)
            if self._worker is not None and self._c.store.pending(self.scope):
                self._worker.kick(self._c)
        except StoreError as error:  # a file that can only be read can still be recalled from
            self._c.emit("recover_failed", error=str(error))


def add_steps(c: Context, items: str | Record | Iterable[str | Record], once: bool) -> Steps[list[str]]:
    """See `Memory.add`."""
    several = [items] if isinstance(items, (str, Record)) else items
    records = [item if isinstance(item, Record) else Record(item) for item in several]
    if once or not records:
        return (yield from add_once_steps(c, records))
    return list((yield from apply_steps(c, [Add(record) for record in records], "added", "user")).ids)


def open_store(path_or_url: str | Path, *, read_only: bool = False, **options: Any) -> RecordStore:
    """Open the store that a path or an address names, as `Memory.open` does.

    Args:
        path_or_url: a file, `:memory:`, `sqlite:///file` or `postgresql://user@host:port/database`.
        read_only: nothing is created, migrated or written.
        options: of `SqliteStore` or `PostgresStore`, for example `clock`.

    Raises:
        ConfigError: no backend has that address, or it has no such option.
        MissingExtra: what the backend needs is not installed.
        StoreError: it cannot be opened, or is not ours.
    """
    text = str(path_or_url)
    scheme, found, rest = text.partition("://")
    if found and scheme not in ("sqlite", "postgres", "postgresql"):
        raise unknown("backend", scheme, ("sqlite", "postgresql"), do="name a file, or an address of one of these")
    accepted = _OPTIONS["postgresql" if found and scheme != "sqlite" else "sqlite"]
    for name in options:
        if name not in accepted:
            raise unknown("setting of this store", name, accepted)
    if found and scheme != "sqlite":
        from remnant.memory.postgres import PostgresStore

        return PostgresStore(text, read_only=read_only, **options)
    from remnant.memory.sqlite import SqliteStore

    return SqliteStore(rest.removeprefix("/") if found else text, read_only=read_only, **options)


def _at_exit(reference: weakref.ref[Memory]) -> None:
    memory = reference()
    if memory is not None:
        memory.close(timeout=5.0)
