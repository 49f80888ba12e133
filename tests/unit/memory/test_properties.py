"""Properties over random histories: every change can be taken back; no scope sees another."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remnant.memory import Add, Forget, HashEmbedder, Memory, Merge, Op, Record, Update

TEXT = st.text(min_size=1, max_size=30).filter(str.strip)
STEP = st.tuples(st.sampled_from(["add", "update", "merge", "forget"]), st.integers(0, 99), st.integers(0, 99), TEXT)


def _state(memory: Memory) -> dict[str, object]:
    statuses = ("active", "archived", "quarantined")
    return {record.id: record.meaning() for record in memory.records(statuses=statuses)}


def _ops(memory: Memory, batch: list[tuple[str, int, int, str]]) -> list[Op]:
    """A batch that is valid: each record is touched once."""
    free, ops = list(_state(memory)), list[Op]()
    for kind, first, second, text in batch:
        if kind == "add" or len(free) < 2:
            ops.append(Add(Record(text)))
        elif kind == "merge":
            a = free.pop(first % len(free))
            ops.append(Merge((a, free.pop(second % len(free))), Record(text, trigger="merged")))
        elif kind == "update":
            ops.append(Update(free.pop(first % len(free)), {"content": text, "kind": "thought"}))
        else:
            ops.append(Forget(free.pop(first % len(free))))
    return ops


def _found(memory: Memory) -> set[str]:
    """What can be read through words, which must be what is active."""
    return {id for record in memory.records() for id, _ in memory.store.words(memory.scope, [record.id.lower()], 99)}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(st.lists(STEP, min_size=1, max_size=4), min_size=1, max_size=5), st.booleans())
def test_what_is_applied_can_be_taken_back(batches: list[list[tuple[str, int, int, str]]], dense: bool):
    with (
        tempfile.TemporaryDirectory() as folder,
        Memory.open(
            Path(folder) / "m.db", scope="a", write="manual", embedder=HashEmbedder(16) if dense else None
        ) as memory,
    ):
        states, changes = [_state(memory)], []
        for batch in batches:
            changes.append(memory.apply(_ops(memory, batch), "r", "a"))
            states.append(_state(memory))
        undone = []
        for change, before in zip(reversed(changes), reversed(states[:-1]), strict=True):
            undone.append(memory.undo(change))
            assert _state(memory) == before
        for undo, after in zip(reversed(undone), states[1:], strict=True):
            memory.undo(undo)
            assert _state(memory) == after
        c = memory.store._files.get()  # type: ignore[attr-defined]
        c.execute("INSERT INTO word_index (word_index, rank) VALUES ('integrity-check', 1)")
        assert not dense or memory.reindex() == 0


SCOPES = ("a", "b", "a/b", "A", "a ", "%", "a' OR 1=1 --", "x*", '"')


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(st.tuples(st.sampled_from(SCOPES), TEXT), min_size=2, max_size=8), TEXT, st.booleans())
def test_no_scope_sees_another(items: list[tuple[str, str]], query: str, dense: bool):
    embedder = HashEmbedder(16) if dense else None
    with (
        tempfile.TemporaryDirectory() as folder,
        Memory.open(Path(folder) / "m.db", scope="a", write="inline", embedder=embedder, strict=True) as root,
    ):
        own: dict[str, set[str]] = {scope: set() for scope in SCOPES}
        for scope, text in items:
            memory = root.scoped(scope)
            own[scope] |= set(memory.add(f"shared {text}"))
            episode = memory.open_episode(text)
            memory.observe(episode.id, {"role": "user", "content": f"shared {text}"})
            memory.close_episode(episode.id, "success")
            own[scope] |= {record.id for record in memory.records()}
        everything = set().union(*own.values())
        for scope in SCOPES:
            memory = root.scoped(scope)
            for text in (query, "shared", *(text for _, text in items)):
                assert {hit.id for hit in memory.recall(text, k=99)} <= own[scope]
                assert {hit.id for hit in memory.recall(text, k=99, as_of=0)} == set()
            assert {hit.id for hit in memory.recall("shared", k=99)} == own[scope]
            assert {record.id for record in memory.records()} == own[scope]
            foreign = sorted(everything - own[scope])
            assert memory.store.get(scope, foreign) == {}
            assert all(memory.audit(id) == [] for id in foreign)
            assert set().union(*(change.ids for change in memory.changes()), set()) <= own[scope]
            assert all(episode.scope == scope for episode in memory.store.episodes(scope))
            assert memory.forget(foreign[:1]).ids == ()
