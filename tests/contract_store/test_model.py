"""Random histories against a plain model: what is applied, taken back, erased and looked at as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from remnant.errors import ConfigError
from remnant.memory import (
    Add,
    ConflictError,
    Forget,
    HashEmbedder,
    Memory,
    Merge,
    Op,
    Record,
    RecordStore,
    Update,
    Version,
)

State = dict[str, tuple[str, str]]
"""id -> (content, status)."""

SCOPES = st.sampled_from(["a", "b"])
PICK = st.integers(0, 99)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(str.strip)
_run = itertools.count()


class Model:
    """One scope as plain Python has it."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.now: State = {}
        self.past: dict[int, State] = {0: {}}
        self.changes: dict[int, dict[str, tuple[tuple[str, str] | None, tuple[str, str]]]] = {}

    def live(self) -> list[str]:
        return sorted(id for id, (_, status) in self.now.items() if status != "deleted")

    def record(self, change: Version, after: State) -> None:
        assert set(change.ids) == set(after)
        assert change.number > max(self.past)
        self.changes[change.number] = {id: (self.now.get(id), state) for id, state in after.items()}
        self.now = {**self.now, **after}
        self.past[change.number] = dict(self.now)

    def apply(self, ops: list[Op], after: Callable[[Version], State]) -> None:
        change = self.memory.apply(ops, "r", "a")
        self.record(change, after(change))

    def erase(self, id: str) -> None:
        receipt = self.memory.forget(id)
        assert receipt.ids == (id,)
        self.now.pop(id)
        for state in self.past.values():
            state.pop(id, None)
        for rows in self.changes.values():
            rows.pop(id, None)


class Histories(RuleBasedStateMachine):
    """Two scopes of one store; each step is checked against the model."""

    store: RecordStore

    def __init__(self) -> None:
        super().__init__()
        run = next(_run)
        self.models = {name: Model(self._memory(f"{name}{run}")) for name in ("a", "b")}

    def _memory(self, scope: str) -> Memory:
        return Memory.open(
            "", store=self.store, scope=scope, write="manual", strict=True, secrets="keep", embedder=HashEmbedder(8)
        )

    @rule(scope=SCOPES, texts=st.lists(TEXT, min_size=1, max_size=3))
    def add(self, scope: str, texts: list[str]) -> None:
        model = self.models[scope]
        model.apply(
            [Add(Record(text)) for text in texts],
            lambda v: {i: (t, "active") for i, t in zip(v.ids, texts, strict=True)},
        )

    @rule(scope=SCOPES, pick=PICK, text=TEXT)
    def update(self, scope: str, pick: int, text: str) -> None:
        model = self.models[scope]
        if live := model.live():
            id = live[pick % len(live)]
            status = model.now[id][1]
            model.apply([Update(id, {"content": text})], lambda v: {id: (text, status)})

    @rule(scope=SCOPES, pick=PICK)
    def put_away(self, scope: str, pick: int) -> None:
        model = self.models[scope]
        if live := model.live():
            id = live[pick % len(live)]
            text = model.now[id][0]
            model.apply([Forget(id)], lambda v: {id: (text, "deleted")})

    @rule(scope=SCOPES, pick=PICK, text=TEXT)
    def merge(self, scope: str, pick: int, text: str) -> None:
        model = self.models[scope]
        if len(live := model.live()) > 1:
            first = live.pop(pick % len(live))
            second = live[pick % len(live)]
            archived = {id: (model.now[id][0], "archived") for id in (first, second)}
            model.apply(
                [Merge((first, second), Record(text))],
                lambda v: {**archived, **{id: (text, "active") for id in v.ids if id not in archived}},
            )

    @rule(scope=SCOPES, pick=PICK)
    def undo(self, scope: str, pick: int) -> None:
        model = self.models[scope]
        numbers = sorted(model.changes)
        if not numbers:
            return
        rows = model.changes[number := numbers[pick % len(numbers)]]
        if not rows:
            with pytest.raises(ConfigError, match="no change"):
                model.memory.undo(number)
        elif any(model.now[id] != after for id, (_, after) in rows.items()):
            with pytest.raises(ConflictError):
                model.memory.undo(number)
        else:
            undone = {id: before or (after[0], "deleted") for id, (before, after) in rows.items()}
            model.record(model.memory.undo(number), undone)

    @rule(scope=SCOPES, pick=PICK)
    def erase(self, scope: str, pick: int) -> None:
        model = self.models[scope]
        if model.now:
            model.erase(sorted(model.now)[pick % len(model.now)])

    @rule(scope=SCOPES, first=PICK, second=PICK)
    def look_back(self, scope: str, first: int, second: int) -> None:
        model = self.models[scope]
        numbers = sorted(model.past)
        a, b = numbers[first % len(numbers)], numbers[second % len(numbers)]
        assert _state(model.memory.store.snapshot(model.memory.scope, a)) == model.past[a]
        before, after = (_not_deleted(model.past[n]) for n in (a, b))
        found = {d.id: (_of(d.before), _of(d.after)) for d in model.memory.diff(a, b)}
        ids = before.keys() | after.keys()
        assert found == {i: (before.get(i), after.get(i)) for i in ids if before.get(i) != after.get(i)}
        words = " ".join(text for text, _ in model.past[a].values())
        active = {id for id, (_, status) in model.past[a].items() if status == "active"}
        assert {hit.id for hit in model.memory.recall(words, k=99, as_of=a)} <= active

    @invariant()
    def what_is_there_is_what_the_model_has(self) -> None:
        for model in self.models.values():
            store, scope = model.memory.store, model.memory.scope
            everything = store.page(scope, statuses=("active", "archived", "quarantined", "deleted"))
            assert _state(everything) == model.now
            active = {id for id, (_, status) in model.now.items() if status == "active"}
            assert {id for id, _ in store.vectors(scope, HashEmbedder(8).model_id)} == active
            assert {hit.id for hit in model.memory.recall("x", k=99)} == active
            assert [v.number for v in store.changes(scope)] == sorted(model.changes, reverse=True)
            assert all(len(store.versions(scope, r.id)) == r.version for r in everything)


def _of(record: Record | None) -> tuple[str, str] | None:
    return (record.content, record.status) if record else None


def _state(records: list[Record]) -> State:
    return {record.id: (record.content, record.status) for record in records}


def _not_deleted(state: State) -> State:
    return {id: value for id, value in state.items() if value[1] != "deleted"}


def test_histories(shared: Any):
    machine: Any = type("Histories", (Histories,), {"store": shared.store()})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    limits = settings(max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=checks)
    run_state_machine_as_test(machine, settings=limits)
