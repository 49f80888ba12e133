"""The contract of `Memory`: add, recall, change, take back, carry away."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from remnant.errors import ConfigError
from remnant.memory import Add, ConflictError, Forget, Memory, Merge, Record, Update, read_cube
from remnant.memory.record import new_id

Make = Callable[..., Memory]


def test_contract(path: Path, tmp_path: Path):
    mem = Memory.open(path, strategy="facts", scope="tenant-a")
    ids = mem.add(["a text", Record(content="another", trigger="when to use it", kind="fact")])
    hits = mem.recall("the text", k=10)
    assert [(hit.id, hit.text) for hit in hits] == [(ids[0], "a text")]
    assert mem.recall("when may I use it?")[0].id == ids[1]
    assert mem.forget(ids[0]).ids == (ids[0],)
    mem.undo(mem.apply([Forget(ids[1])], "not needed", "me"))
    assert mem.export(tmp_path / "cube.jsonl") == 1
    ep = mem.open_episode("task")
    mem.observe(ep.id, {"role": "user", "content": "I like oolong"})
    mem.close_episode(ep.id, verdict="success")
    assert mem.flush(timeout=10)
    assert mem.recall("oolong")[0].record.provenance[0].source_id == ep.id
    mem.close()


def test_a_scope_is_required():
    for scope in (None, "", " ", {}):
        with pytest.raises(ConfigError, match="scope"):
            Memory.open(":memory:", scope=scope)


def test_scopes_of_names_are_one_text():
    with Memory.open(":memory:", scope={"user": "u", "tenant": "a/b"}) as memory:
        assert memory.scope == "tenant=a%2Fb/user=u"


@pytest.mark.parametrize(
    "wrong", [{"strategy": "fact"}, {"wieght": 1}, {"weight": 2.0}, {"write": "x"}, {"secrets": "x"}]
)
def test_open_refuses_what_it_does_not_know(wrong: dict):
    with pytest.raises(ConfigError):
        Memory.open(":memory:", scope="a", **wrong)


def test_unknown_backend_is_named():
    with pytest.raises(ConfigError, match="backend"):
        Memory.open("mysql://host/x", scope="a")


def test_memory_outlives_its_process(make: Make):
    first = make()
    (id,) = first.add("kept")
    first.close()
    assert make().get(id).content == "kept"  # type: ignore[union-attr]


def test_limits_of_recall(memory: Memory):
    memory.add([f"tea number {number} " + "word " * number for number in range(20)])
    assert len(memory.recall("tea", k=3)) == 3
    hits = memory.recall("tea", k=20, budget_tokens=30)
    assert hits
    assert sum((len(hit.text.encode()) + 3) // 4 for hit in hits) <= 30
    assert memory.recall("tea", budget_tokens=0) == []
    assert memory.recall("nothing of the kind") == []
    assert memory.recall("") == []
    assert memory.recall("tea", kinds={"strategy"}) == []


@pytest.mark.parametrize(
    "query", ["what's C++?", "AND", "a-b:c", '"', "NEAR(a b)", "tea*", "words : tea", "\x00", "日本"]
)
def test_no_query_is_syntax(memory: Memory, query: str):
    memory.add(["tea", "日本語の本"])
    memory.recall(query)


def test_chinese_and_japanese_are_found_by_character(memory: Memory):
    memory.add(["彼は日本語を話す", "tea"])
    assert [hit.text for hit in memory.recall("日本")] == ["彼は日本語を話す"]


def test_only_what_is_true_now_is_recalled(make: Make):
    now = [100.0]
    memory = make(clock=lambda: now[0])
    memory.add([Record("Ada lives in Turin", valid_to=150.0), Record("Ada lives in Rome", valid_from=150.0)])
    assert [hit.text for hit in memory.recall("Ada lives")] == ["Ada lives in Turin"]
    now[0] = 150.0
    assert [hit.text for hit in memory.recall("Ada lives")] == ["Ada lives in Rome"]


def test_as_of_sees_the_past(make: Make):
    now = [100.0]
    memory = make(clock=lambda: now[0])
    (id,) = memory.add("the tea is green")
    now[0] = 200.0
    change = memory.apply([Update(id, {"content": "the tea is black"})], "news", "me")
    assert [hit.text for hit in memory.recall("tea")] == ["the tea is black"]
    assert [hit.text for hit in memory.recall("tea", as_of=150.0)] == ["the tea is green"]
    assert [hit.text for hit in memory.recall("tea", as_of=change.number - 1)] == ["the tea is green"]
    assert memory.recall("tea", as_of=50.0) == []
    assert [hit.text for hit in memory.recall("tea", as_of=change.number)] == ["the tea is black"]


def test_clock_that_jumps_back_keeps_the_order(make: Make):
    now = [1000.0]
    memory = make(clock=lambda: now[0])
    (id,) = memory.add("one")
    now[0] = 10.0
    memory.apply([Update(id, {"content": "two"})], "r", "a")
    times = [version.time for version, _ in memory.audit(id)]
    assert times == sorted(times)
    assert memory.recall("two", as_of=1000.0)


def test_a_batch_is_whole_or_nothing(memory: Memory):
    (id,) = memory.add("one")
    with pytest.raises(ConfigError, match="no record"):
        memory.apply([Update(id, {"content": "two"}), Forget("no such")], "r", "a")
    assert memory.get(id).content == "one"  # type: ignore[union-attr]
    assert len(memory.audit(id)) == 1


def test_later_operations_see_earlier_ones(memory: Memory):
    id = new_id()
    ops = [Add(Record("one", id=id)), Update(id, {"content": "two"}), Update(id, {"kind": "thought"})]
    memory.apply(ops, "r", "a")
    record = memory.get(id)
    assert record is not None
    assert (record.content, record.kind, record.version) == ("two", "thought", 1)


@pytest.mark.parametrize("changes", [{"id": "x"}, {"scope": "b"}, {"version": 9}, {"contents": "x"}, {"content": " "}])
def test_update_may_not_touch_what_is_the_stores(memory: Memory, changes: dict):
    (id,) = memory.add("one")
    with pytest.raises(ConfigError):
        memory.apply([Update(id, changes)], "r", "a")


def test_an_id_is_taken_once(memory: Memory):
    (id,) = memory.add("one")
    with pytest.raises(ConfigError, match="exists already"):
        memory.add(Record("two", id=id))


def test_merge_keeps_parents_and_undo_brings_them_back(memory: Memory):
    ids = memory.add(["Ada likes tea", "Ada likes green tea"])
    change = memory.apply([Merge(tuple(ids), Record("Ada likes tea, green above all"))], "same", "me")
    assert [hit.text for hit in memory.recall("Ada")] == ["Ada likes tea, green above all"]
    assert memory.recall("Ada")[0].record.parents == tuple(ids)
    memory.undo(change)
    assert {hit.id for hit in memory.recall("Ada")} == set(ids)
    with pytest.raises(ConfigError, match="two or more"):
        memory.apply([Merge((ids[0], ids[0]), Record("x"))], "r", "a")


def test_undo_refuses_to_lose_a_later_change(memory: Memory):
    (id,) = memory.add("one")
    first = memory.apply([Update(id, {"content": "two"})], "r", "a")
    memory.apply([Update(id, {"content": "three"})], "r", "a")
    with pytest.raises(ConflictError, match="undo the later one"):
        memory.undo(first)
    with pytest.raises(ConfigError, match="no change"):
        memory.undo(99)


def test_undo_can_be_undone(memory: Memory):
    (id,) = memory.add("one")
    change = memory.apply([Update(id, {"content": "two"})], "r", "a")
    memory.undo(memory.undo(change))
    assert memory.get(id).content == "two"  # type: ignore[union-attr]


def test_audit_and_diff_tell_who_and_what(memory: Memory):
    (id,) = memory.add("one")
    change = memory.apply([Update(id, {"content": "two"})], "news", "ada")
    assert [(version.actor, version.reason, record.content) for version, record in memory.audit(id)] == [
        ("user", "added", "one"),
        ("ada", "news", "two"),
    ]
    (only,) = memory.diff(change.number - 1)
    assert only.before is not None
    assert only.after is not None
    assert (only.id, only.before.content, only.after.content) == (id, "one", "two")
    assert memory.diff(0)[0].before is None
    assert memory.diff(change.number) == []
    assert memory.changes()[0].ids == (id,)


def test_cube_goes_there_and_back(make: Make, tmp_path: Path):
    memory, cube = make(), tmp_path / "cube.jsonl"
    ids = memory.add([Record("one\u2028two", payload={"a": [1]}, keywords=("k",)), "three"])
    assert memory.export(cube) == 2
    other = memory.scoped("tenant-b")
    assert set(other.import_(cube).added) == set(ids)
    for id in ids:
        assert other.get(id).meaning() == memory.get(id).meaning()  # type: ignore[union-attr]
    assert other.import_(cube).skipped == tuple(ids)
    other.apply([Update(ids[0], {"content": "changed"})], "r", "a")
    with pytest.raises(ConfigError, match="differs"):
        other.import_(cube)


def test_damaged_cube_is_refused_whole(memory: Memory, tmp_path: Path):
    cube = tmp_path / "cube.jsonl"
    memory.add(["one", "two"])
    memory.export(cube)
    lines = cube.read_text().splitlines(keepends=True)
    newer = json.dumps({**json.loads(lines[0]), "schema": 99}) + "\n"
    for damage in (
        lines[:-1],
        lines[:2] + lines[3:],
        [newer, *lines[1:]],
        ["x"],
        [],
        [lines[0].replace("a", "b"), *lines[1:]],
    ):
        cube.write_text("".join(damage))
        with pytest.raises(ConfigError):
            memory.scoped("b").import_(cube)
    cube.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ConfigError, match="not a cube"):
        read_cube(cube)
    assert memory.scoped("b").stats() == {"pending": 0}


def test_events_tell_ids_and_a_bad_subscriber_hurts_nobody(memory: Memory):
    seen: list[tuple[str, str]] = []
    memory.events.subscribe(lambda event: 1 / 0)  # type: ignore[arg-type, return-value]
    end = memory.events.subscribe(lambda event: seen.append((event.name, event.scope)))
    memory.add("one")
    end()
    memory.add("two")
    assert seen == [("applied", "tenant-a")]


def test_ids_sort_by_making():
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(set(ids))
    assert {len(id) for id in ids} == {26}
