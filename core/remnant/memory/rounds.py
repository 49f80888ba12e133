"""What memory is without an earlier distillation: a late verdict takes back what its episode contributed, no more.

A record that others have written to since is not put back to an old version, which would lose their
part. Its history is told again without the rounds of that distillation: every other change is made anew on
what is left. A lesson that a withdrawn episode was the first to teach stays while another episode teaches it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from remnant.memory.context import Context
from remnant.memory.episode import Job
from remnant.memory.record import KEPT, Record
from remnant.memory.store import Version

BREAKER = "circuit breaker"
"""The actor that quarantines what does harm; like a strategy, and unlike a person, it is a rule."""

LEARNT = "learnt"
"""The payload field that maps an experience (an episode's or a group's id) to what it contributed to a record."""

History = Sequence[tuple[Version, Record]]
_Data = dict[str, Any]


def taken_back(c: Context, job: Job | None) -> dict[str, Record]:
    """What the records of a job's earlier result are without it, by id; those that a person changed are left alone."""
    if job is None or job.change is None:
        return {}
    found: dict[str, Record] = {}
    for _, after in c.store.changed(c.scope, job.change):
        _take_back(c, after.id, job.change, found)
    for id in [id for id, record in found.items() if record.status == "deleted"]:
        _unmerge(c, id, job, found)
    return found


def _take_back(c: Context, id: str, change: int, found: dict[str, Record]) -> None:
    history = c.store.versions(c.scope, id)
    record = without(history, change, _rules(c)) if history else None
    if record is not None and record.meaning() != history[-1][1].meaning():
        found[id] = record


def _unmerge(c: Context, id: str, job: Job, found: dict[str, Record]) -> None:
    """What a withdrawn record was merged into loses its part or, where the text is a blend, comes apart again."""
    history = c.store.versions(c.scope, id)
    moved = [i for i in range(1, len(history)) if history[i][1].status == "archived" != history[i - 1][1].status]
    for number in [history[i][0].number for i in moved[-1:]]:
        for before, made in c.store.changed(c.scope, number):
            stored = c.store.get(c.scope, [made.id]).get(made.id)
            if before is not None or id not in made.parents or stored is None or stored.status == "deleted":
                continue
            if job.key in (entries := _entries(stored)):
                left = {own: part for own, part in entries.items() if own != job.key}
                sources = tuple(source for source in stored.provenance if source.source_id not in job.episodes)
                found[made.id] = replace(stored, payload={**stored.payload, LEARNT: left}, provenance=sources)
                continue
            if without(c.store.versions(c.scope, made.id), number, _rules(c)) is None:
                continue
            found[made.id] = replace(stored, status="deleted")
            for other in made.parents:
                if other not in found:
                    _apart(c, other, number, found)
            _unmerge(c, made.id, job, found)


def _apart(c: Context, id: str, number: int, found: dict[str, Record]) -> None:
    """A record as it was before a merge, which may have been made from it as soon as it was added."""
    history = c.store.versions(c.scope, id)
    if len(history) == 1 and history[0][0].number == number:
        found[id] = replace(history[0][1], status="active")
    else:
        _take_back(c, id, number, found)


def _rules(c: Context) -> tuple[str, ...]:
    return (c.strategy.name, BREAKER)


def _entries(record: Record) -> Mapping[str, Any]:
    found = record.payload.get(LEARNT)
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}


def without(history: History, change: int, rules: Sequence[str]) -> Record | None:
    """A record without one distillation, or None if a person has changed it since.

    Args:
        history: every version with its change, oldest first.
        change: the last round of the distillation.
        rules: actors that are not persons.
    """
    told = _Told(history)
    rounds = told.chain(change)
    first = min(told.at[number] for number in rounds)
    data, kept = told.again(len(history), rounds)
    for at in kept:
        if at > first and history[at][0].actor not in rules and told.base(at) != _data(history[at][1]):
            return None
    record = Record.from_dict(data)
    orphan = 0 not in kept and not any(source.source_type == "episode" for source in record.provenance)
    return replace(record, status="deleted") if orphan else record


class _Told:
    """One record's history."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.at = {version.number: i for i, (version, _) in enumerate(history)}

    def chain(self, number: int) -> set[int]:
        """A change with the rounds that it took the place of; an undo stands for itself."""
        found: set[int] = set()
        while number in self.at:
            found.add(number)
            version = self._history[self.at[number]][0]
            number = 0 if _is_undo(version) else version.undoes
        return found

    def base(self, at: int) -> _Data | None:
        """What a version was made from: the one before it or, if it took something back, the history without that."""
        undone = self._history[at][0].undoes
        if undone in self.at:
            return self.again(at, self.chain(undone))[0]
        return _data(self._history[at - 1][1]) if at else None

    def again(self, end: int, dropped: set[int]) -> tuple[_Data, list[int]]:
        """The first versions told without some changes: the state, and which versions took part in it."""
        gone = set(dropped)
        for at in reversed(range(end)):
            version = self._history[at][0]
            if version.number not in gone and version.undoes:
                gone |= self.chain(version.undoes)
        kept = [at for at in range(end) if self._history[at][0].number not in gone]
        state = _data(self._history[0][1])
        if 0 not in kept:
            state = _unsaid(state)
        for at in kept:
            if at:
                state = cast("_Data", _moved(state, self.base(at), _data(self._history[at][1])))
        return state, kept


def _is_undo(version: Version) -> bool:
    return version.reason.startswith("undo of change")


def _data(record: Record) -> _Data:
    return {name: value for name, value in record.to_dict().items() if name not in KEPT - {"id"}}


def _unsaid(state: _Data) -> _Data:
    """A record nobody has taught yet: its words without its sources."""
    sources = [source for source in state["provenance"] if source["source_type"] != "episode"]
    return state | {"provenance": sources, "payload": {**state["payload"], LEARNT: {}}}


def _moved(state: object, base: object, after: object) -> object:
    """A state after a change that led from `base` to `after`: field by field; lists are ordered sets."""
    if base == after:
        return state
    if isinstance(state, Mapping) and isinstance(base, Mapping) and isinstance(after, Mapping):
        return _fields(cast("_Data", state), cast("_Data", base), cast("_Data", after))
    if isinstance(state, (list, tuple)) and isinstance(base, (list, tuple)) and isinstance(after, (list, tuple)):
        here, old, new = cast("list[Sequence[object]]", [state, base, after])
        left = [item for item in here if item not in old or item in new]
        return [*left, *(item for item in new if item not in old and item not in left)]
    return after


def _fields(state: _Data, base: _Data, after: _Data) -> _Data:
    result = {name: value for name, value in state.items() if name in after or name not in base}
    for name, value in after.items():
        if name not in base or name not in state:
            if name in base and base[name] == value:
                continue  # somebody else removed it; this change did not touch it
            result[name] = value
        else:
            result[name] = _moved(state[name], base[name], value)
    return result
