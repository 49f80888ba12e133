"""Episodes, the queue of distillations and the counters of use, in every backend."""

from collections.abc import Callable
from typing import Any

import pytest

from remnant.errors import ConfigError
from remnant.memory import Episode, JobLost, RecordStore
from remnant.memory.owner import owner

A, B = "tenant-a", "tenant-b"
Put = Callable[..., Any]
GONE = f"{owner().rpartition(':')[0]}:0"  # this process's number, but another start


def _open(store: RecordStore, id: str, group: str = "", scope: str = A, at: float = 1.0) -> None:
    assert store.open_episode(
        Episode(id, scope, f"task {id}", group=group, opened_at=at, metadata={"k": "\0"}), owner()
    )


def _closed(store: RecordStore, *ids: str, group: str = "", scope: str = A) -> None:
    for id in ids:
        _open(store, id, group, scope)
        assert store.close_episode(scope, id, "success", "rule", queue=True)


def test_an_episode(store: RecordStore):
    _open(store, "e1")
    assert not store.open_episode(Episode("e1", A, "another"), owner())
    assert [store.add_step(A, "e1", {"content": f"half \ud83d {n} \0"}) for n in range(3)] == [0, 1, 2]
    found = store.episode(A, "e1")
    assert found is not None
    assert (found.task, found.verdict, found.closed_at, found.metadata) == ("task e1", "unknown", None, {"k": "\0"})
    assert [step["content"] for step in found.steps] == [f"half \ud83d {n} \0" for n in range(3)]
    assert store.close_episode(A, "e1", "failure", "judge", queue=True)
    assert not store.close_episode(A, "e1", "success", "rule", queue=True)
    found = store.episode(A, "e1")
    assert found is not None
    assert (found.verdict, found.source, found.closed_at is not None) == ("failure", "judge", True)
    with pytest.raises(ConfigError, match="is closed"):
        store.add_step(A, "e1", {})
    for scope, id in ((A, "none"), (B, "e1")):
        assert store.episode(scope, id) is None
        with pytest.raises(ConfigError, match=r"exist|no episode"):
            store.add_step(scope, id, {})
        with pytest.raises(ConfigError, match="no episode"):
            store.close_episode(scope, id, "success", "rule", queue=True)
        with pytest.raises(ConfigError, match="exist"):
            store.revise(scope, id, "success", "user")


def test_episodes_newest_first(store: RecordStore):
    for n in range(4):
        _open(store, f"e{n}", at=float(n % 2))
    assert [episode.id for episode in store.episodes(A)] == ["e3", "e1", "e2", "e0"]
    assert [episode.id for episode in store.episodes(A, limit=2)] == ["e3", "e1"]


def test_what_a_process_left_open(store: RecordStore):
    _open(store, "mine")
    store.open_episode(Episode("left", A, "task"), GONE)
    store.open_episode(Episode("far", A, "task"), "another-machine:1:1")
    assert store.abandoned(A) == ["left"]
    store.close_episode(A, "left", "unknown", "recovery", queue=True)
    assert store.abandoned(A) == []


def test_the_queue(store: RecordStore):
    _closed(store, "e1", "e2")
    _closed(store, "g1", "g2", group="team")
    assert [job[:2] for job in store.jobs(A)] == [("e1", "queued"), ("e2", "queued")]
    assert store.queue_group(A, "team") == ("g1", "g2")
    assert store.queue_group(A, "nobody") == ()
    assert store.pending(A) == 3
    first, second, third = (store.claim(A, owner(), 60) for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.key, second.key, third.episodes) == ("e1", "e2", ("g1", "g2"))
    assert store.claim(A, owner(), 60) is None
    store.release(A, first)
    again = store.claim(A, owner(), 60)
    assert again is not None
    assert (again.key, again.attempts, again.claim != first.claim) == ("e1", 0, True)
    store.release(A, first)  # no longer its own: nothing happens
    assert store.claim(A, owner(), 60) is None
    store.fail(A, again, "no answer \0", retry_in=None)
    store.fail(A, second, "later", retry_in=1000.0)
    assert store.claim(A, owner(), 60) is None
    assert store.jobs(A) == [
        ("e1", "failed", 1, "no answer \0"),
        ("e2", "queued", 1, "later"),
        ("team", "running", 0, ""),
    ]
    assert store.pending(A) == 2
    assert store.claim(B, owner(), 60) is None


def test_a_distillation_counts_once(store: RecordStore, write: Callable[..., Any]):
    _closed(store, "e1")
    job = store.claim(A, owner(), 60)
    assert job is not None
    done = store.commit(A, [write("r1", "lesson")], actor="s", reason="r", job=job)
    assert store.jobs(A) == [("e1", "done", 0, "")]
    with pytest.raises(JobLost):
        store.commit(A, [write("r2", "lesson")], actor="s", reason="r", job=job)
    assert list(store.get(A, ["r1", "r2"])) == ["r1"]
    assert store.latest(A) == done.number
    store.revise(A, "e1", "failure", "user")
    again = store.claim(A, owner(), 60)
    assert again is not None
    assert again.change == done.number
    empty = store.commit(A, [], actor="s", reason="r", job=again)
    assert (empty.number, store.latest(A), store.jobs(A)[0][1]) == (0, done.number, "done")


def test_a_lost_lease(backend: Any, write: Callable[..., Any]):
    now = [1000.0]
    store = backend.store(clock=lambda: now[0])
    _closed(store, "e1")
    slow = store.claim(A, "another-machine:1:1", 60)
    now[0] = 1059.0
    assert store.claim(A, owner(), 60) is None
    now[0] = 1061.0
    quick = store.claim(A, owner(), 60)
    assert slow is not None
    assert quick is not None
    with pytest.raises(JobLost):
        store.commit(A, [write("r1", "slow")], actor="s", reason="r", job=slow)
    store.fail(A, slow, "too late", retry_in=None)
    store.commit(A, [write("r2", "quick")], actor="s", reason="r", job=quick)
    assert list(store.get(A, ["r1", "r2"])) == ["r2"]
    assert store.jobs(A) == [("e1", "done", 0, "")]


@pytest.mark.parametrize(("holder", "later"), [(GONE, 0.0), ("another-machine:1:1", -10_000.0)], ids=["gone", "jumped"])
def test_a_lease_ends_with_its_process_or_when_the_clock_jumped(backend: Any, holder: str, later: float):
    now = [10_000.0]
    store = backend.store(clock=lambda: now[0])
    _closed(store, "e1")
    first = store.claim(A, holder, 60)
    now[0] += later
    second = store.claim(A, owner(), 60)
    assert first is not None
    assert second is not None
    assert (first.key, second.key, first.claim != second.claim) == ("e1", "e1", True)


def test_reopening_calls_the_distillation_off(store: RecordStore, write: Callable[..., Any]):
    _closed(store, "e1")
    job = store.claim(A, owner(), 60)
    assert store.reopen_episode(A, "e1", owner())
    assert not store.reopen_episode(A, "e1", owner())
    with pytest.raises(JobLost):
        store.commit(A, [write("r1", "x")], actor="s", reason="r", job=job)
    assert store.add_step(A, "e1", {"more": 1}) == 0
    assert store.close_episode(A, "e1", "failure", "rule", queue=True)
    assert store.pending(A) == 1
    with pytest.raises(ConfigError, match="no episode"):
        store.reopen_episode(A, "none", owner())


def test_counters_of_use(store: RecordStore, put: Put):
    put(store, *((f"r{n}", "tea") for n in range(3)))
    for n in range(3):
        _open(store, f"e{n}")
        store.shown(A, ["r0", "r1", "none"], f"e{n}")
        if n:
            store.used(A, ["r0"], f"e{n}")
        store.close_episode(A, f"e{n}", "failure" if n else "success", "rule", queue=False)
    assert store.uses(A, "e0") == [("none", False), ("r0", False), ("r1", False)]
    assert store.uses(A, "e1") == [("none", False), ("r0", True), ("r1", False)]
    records = store.get(A, ["r0", "r1", "r2"])
    counts = {id: (u.retrieved, u.used, u.helped, u.harmed) for id, u in ((r.id, r.utility) for r in records.values())}
    assert counts == {"r0": (3, 3, 1, 2), "r1": (3, 1, 1, 0), "r2": (0, 0, 0, 0)}
    assert records["r0"].utility.last_used > 0
    assert store.harmful(A) == ["r0"]
    store.revise(A, "e1", "success", "user")
    assert store.harmful(A) == []
    assert store.get(A, ["r0"])["r0"].utility.helped == 2
    store.reopen_episode(A, "e2", owner())
    utility = store.get(A, ["r0"])["r0"].utility
    assert (utility.used, utility.helped, utility.harmed) == (2, 2, 0)
    store.absolve(A, ["r0", "r1"])
    utility = store.get(A, ["r0"])["r0"].utility
    assert (utility.retrieved, utility.used, utility.helped, utility.harmed) == (3, 0, 0, 0)
    with pytest.raises(ConfigError, match="not open"):
        store.used(A, ["r0"], "e1")
    store.close_episode(A, "e2", "unknown", "rule", queue=False)
    assert store.get(A, ["r0"])["r0"].utility.used == 1
