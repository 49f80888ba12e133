"""Two scopes through every method: what one holds, the other neither sees nor changes."""

from __future__ import annotations

import inspect
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remnant.errors import RemnantError
from remnant.memory import Episode, Job, Record, RecordStore, Write
from remnant.memory.owner import owner
from remnant.memory.record import digest

VECTOR = array("f", [1, 0]).tobytes()
STATUSES = ("active", "archived", "deleted")
Call = Callable[[RecordStore, str, str], Any]


def _write(text: str, expected: int, id: str) -> Write:
    return Write(Record(text, id=id, place="p/q"), expected, text, digest(text), {"m": VECTOR})


def _commit(s: RecordStore, scope: str, id: str) -> Any:
    """With the version that the other scope has."""
    return s.commit(scope, [_write("stolen", 1, id)], actor="a", reason="r")


def _finish(s: RecordStore, scope: str, id: str) -> Any:
    return s.commit(scope, [], actor="a", reason="r", job=Job(id, _CLAIMS[s], (id,), None, 0))


_CLAIMS: dict[RecordStore, str] = {}
READS: dict[str, Call] = {
    "get": lambda s, scope, id: s.get(scope, [id]),
    "page": lambda s, scope, id: s.page(scope, statuses=STATUSES),
    "count": lambda s, scope, id: s.count(scope),
    "learnt": lambda s, scope, id: s.learnt(scope, id),
    "versions": lambda s, scope, id: s.versions(scope, id),
    "changed": lambda s, scope, id: [s.changed(scope, n) for n in range(1, 9)],
    "snapshot": lambda s, scope, id: s.snapshot(scope, 10**6),
    "changes": lambda s, scope, id: s.changes(scope),
    "change_at": lambda s, scope, id: s.change_at(scope, 1e12),
    "latest": lambda s, scope, id: s.latest(scope),
    "words": lambda s, scope, id: (s.words(scope, ["secret"], 9), s.words(scope, ["secret"], 9, "p")),
    "placed": lambda s, scope, id: s.placed(scope, "p", statuses=STATUSES),
    "places": lambda s, scope, id: s.places(scope, "p", statuses=STATUSES),
    "stamp": lambda s, scope, id: s.stamp(scope),
    "vectors": lambda s, scope, id: (s.vectors(scope, "m"), s.vectors(scope, "m", 0)),
    "unembedded": lambda s, scope, id: s.unembedded(scope, "x"),
    "dimension": lambda s, scope, id: s.dimension(scope, "m"),
    "episode": lambda s, scope, id: s.episode(scope, id),
    "episodes": lambda s, scope, id: s.episodes(scope),
    "abandoned": lambda s, scope, id: s.abandoned(scope),
    "pending": lambda s, scope, id: s.pending(scope),
    "jobs": lambda s, scope, id: s.jobs(scope),
    "uses": lambda s, scope, id: s.uses(scope, id),
    "harmful": lambda s, scope, id: s.harmful(scope),
}
WRITES: dict[str, Call] = {
    "commit": _commit,
    "put_vectors": lambda s, scope, id: s.put_vectors(scope, "m", [(id, 1, "d", VECTOR)]),
    "erase": lambda s, scope, id: s.erase(scope, [id]),
    "open_episode": lambda s, scope, id: s.open_episode(Episode(id, scope, "theirs"), owner()),
    "add_step": lambda s, scope, id: s.add_step(scope, f"{id}-open", {"x": 1}),
    "close_episode": lambda s, scope, id: s.close_episode(scope, f"{id}-open", "failure", "rule", queue=True),
    "reopen_episode": lambda s, scope, id: s.reopen_episode(scope, id, owner()),
    "queue_group": lambda s, scope, id: s.queue_group(scope, "team"),
    "revise": lambda s, scope, id: s.revise(scope, id, "failure", "user"),
    "claim": lambda s, scope, id: s.claim(scope, owner(), 60),
    "fail": lambda s, scope, id: s.fail(scope, Job(id, _CLAIMS[s], (id,), None, 0), "x", retry_in=None),
    "release": lambda s, scope, id: s.release(scope, Job(id, _CLAIMS[s], (id,), None, 0)),
    "shown": lambda s, scope, id: s.shown(scope, [id], f"{id}-open"),
    "used": lambda s, scope, id: s.used(scope, [id], f"{id}-open"),
    "absolve": lambda s, scope, id: s.absolve(scope, [id]),
}
NEITHER = {"scopes", "compact", "close"}
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=6)
VARIANTS = st.sampled_from(["{}x", "{} ", " {}", "{}/", "{}%", "%", "_", "{}'", "' OR '1'='1", "{}\0", "*", "{}{}"])


def test_every_method_is_here():
    methods = {name for name, _ in inspect.getmembers(RecordStore, inspect.isfunction) if not name.startswith("_")}
    assert methods == READS.keys() | WRITES.keys() | NEITHER


def _fill(store: RecordStore, scope: str, id: str) -> None:
    from remnant.memory import Provenance

    sources = (Provenance("episode", id),)
    record = Record("a secret", id=id, place="p/q", provenance=sources)
    store.commit(scope, [Write(record, 0, "a secret", "d", {"m": VECTOR})], actor="a", reason="secret")
    for name in (id, f"{id}-open"):
        store.open_episode(Episode(name, scope, "secret task"), owner())
        store.shown(scope, [id], name)
        store.used(scope, [id], name)
        store.add_step(scope, name, {"content": "secret"})
    store.open_episode(Episode(f"{id}-team", scope, "task", group="team"), owner())
    store.close_episode(scope, f"{id}-team", "success", "rule", queue=True)
    store.close_episode(scope, id, "success", "rule", queue=True)
    job = store.claim(scope, owner(), 60)
    assert job is not None
    _CLAIMS[store] = job.claim


def _told(store: RecordStore, scope: str, id: str) -> dict[str, Any]:
    return {name: call(store, scope, id) for name, call in READS.items()}


@pytest.fixture
def used_scopes() -> set[str]:
    return set()


def test_no_method_reaches_another_scope(shared: Any, used_scopes: set[str]):
    store = shared.store()
    nothing = _told(store, "nobody", "nothing")

    @settings(
        max_examples=15,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(scope=NAMES, variant=VARIANTS)
    def check(scope: str, variant: str) -> None:
        other = variant.replace("{}", scope)
        if other == scope or {scope, other} & used_scopes:
            return
        used_scopes.update((scope, other))
        _fill(store, scope, "id")
        before = _told(store, scope, "id")
        assert _told(store, other, "id") == nothing
        for call in (*WRITES.values(), _finish):
            try:
                call(store, other, "id")
            except RemnantError:
                continue
        assert _told(store, scope, "id") == before

    check()
    assert len(used_scopes) > 7


def test_a_filled_scope_answers_every_question(shared: Any):
    """Else the test above would prove nothing."""
    store = shared.store()
    nothing = _told(store, "nobody", "id")
    _fill(store, "a", "id")
    told = _told(store, "a", "id")
    silent = {name for name in READS if told[name] == nothing[name]}
    assert silent == {"abandoned", "harmful"}
