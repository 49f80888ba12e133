"""Records in every backend: versions, changes, words and vectors."""

from array import array
from collections.abc import Callable
from typing import Any

import pytest

from remnant.errors import ConfigError
from remnant.memory import ConflictError, EmbedderError, HashEmbedder, Provenance, Record, RecordStore, StoreError
from remnant.memory.postgres import words as server_words

A, B = "tenant-a", "tenant-b"
ODD = ["a\0b", "half \ud83d pair", "\ufdd0 mark \ufdd00000", 'it\'s "quoted" \\ %s {x} $1', "😀 emoji", "\u2028 line"]
Put = Callable[..., Any]


def test_what_is_written_is_read(store: RecordStore, put: Put, write: Callable[..., Any]):
    first = put(store, ("r1", "tea"), ("r2", "milk"))
    second = put(store, write("r1", "black tea", 1, kind="thought", payload={"n": [1, {"x": None}]}))
    assert (first.number, second.number) == (store.changes(A)[1].number, store.latest(A))
    assert (first.ids, second.ids) == (("r1", "r2"), ("r1",))
    record = store.get(A, ["r2", "none", "r1", "r1"])["r1"]
    assert list(store.get(A, ["r2", "none", "r1", "r1"])) == ["r2", "r1"]
    assert (record.content, record.version, record.scope, record.payload) == (
        "black tea",
        2,
        A,
        {"n": [1, {"x": None}]},
    )
    assert (record.created_at, record.observed_at) == (first.time, second.time)
    history = store.versions(A, "r1")
    assert [(v.number, v.ids, r.content, r.version) for v, r in history] == [
        (first.number, ("r1",), "tea", 1), (second.number, ("r1",), "black tea", 2),
    ]  # fmt: skip
    assert [(b and b.content, a.content) for b, a in store.changed(A, first.number)] == [(None, "tea"), (None, "milk")]
    assert [(b and b.content, a.content) for b, a in store.changed(A, second.number)] == [("tea", "black tea")]
    assert {r.id: r.content for r in store.snapshot(A, first.number)} == {"r1": "tea", "r2": "milk"}
    assert {r.id: r.content for r in store.snapshot(A, second.number)} == {"r1": "black tea", "r2": "milk"}
    assert store.snapshot(A, 0) == []
    assert [store.change_at(A, t) for t in (first.time - 1, first.time, second.time + 1)][::2] == [0, second.number]
    assert store.stamp(A)[1] == second.number


def test_a_lost_race_changes_nothing(store: RecordStore, put: Put, write: Callable[..., Any]):
    put(store, ("r1", "tea"))
    before = store.stamp(A), store.changes(A), store.count(A)
    for bad in (write("r1", "x"), write("r1", "x", 2), write("r2", "x", 1)):
        with pytest.raises(ConflictError, match=r"version|exist"):
            put(store, write("r9", "other"), bad)
        assert (store.stamp(A), store.changes(A), store.count(A)) == before
    assert store.get(A, ["r1", "r9"])["r1"].content == "tea"


def test_one_record_twice_in_one_change(store: RecordStore, put: Put, write: Callable[..., Any]):
    change = put(store, write("r1", "tea"), write("r1", "green tea", 1))
    assert store.get(A, ["r1"])["r1"].version == 2
    assert [r.content for _, r in store.versions(A, "r1")] == ["tea", "green tea"]
    assert change.ids == ("r1", "r1")
    assert [id for id, _ in store.words(A, ["green"], 9)] == ["r1"]


def test_pages(store: RecordStore, put: Put, write: Callable[..., Any]):
    statuses = ["active", "archived", "deleted"]
    put(store, *(write(f"r{n}", "tea", status=statuses[n % 3]) for n in range(9)))
    ids = lambda **kw: [r.id for r in store.page(A, **kw)]  # noqa: E731
    assert ids() == ["r0", "r3", "r6"]
    assert ids(newest=True) == ["r6", "r3", "r0"]
    assert ids(statuses=statuses, after="r3", limit=2) == ["r4", "r5"]
    assert ids(statuses=statuses, after="r3", limit=2, newest=True) == ["r2", "r1"]
    assert ids(statuses=("archived", "deleted"), limit=3) == ["r1", "r2", "r4"]
    assert ids(statuses=()) == []
    assert store.count(A) == {"active": 3, "archived": 3, "deleted": 3}


def test_ids_are_ordered_by_code_points(store: RecordStore, put: Put):
    ids = ["a", "B", "_", "ä", "Z", "a b", "a-b", "ab", "😀", "\uffee"]
    put(store, *((id, "tea") for id in ids))
    assert [record.id for record in store.page(A)] == sorted(ids)
    assert [record.id for record in store.page(A, after="a b")] == [id for id in sorted(ids) if id > "a b"]


def test_time_never_goes_back(backend: Any, put: Put):
    now = [1000.0]
    store = backend.store(clock=lambda: now[0])
    first = put(store, ("r1", "tea"))
    now[0] = 10.0
    second = put(store, ("r2", "milk"))
    now[0] = 2000.0
    third = put(store, ("r3", "beer"))
    assert [first.time, second.time, third.time] == [1000.0, 1000.0, 2000.0]
    assert first.number < second.number < third.number
    assert [store.change_at(A, t) for t in (999.0, 1000.0, 1500.0, 2000.0)] == [
        0,
        second.number,
        second.number,
        third.number,
    ]
    assert put(store, ("r4", "rum"), scope=B).time == 2000.0


@pytest.mark.parametrize("text", ODD)
def test_odd_text_comes_back_as_it_was(store: RecordStore, put: Put, write: Callable[..., Any], text: str):
    sources = (Provenance("episode", "e1", author="x"),)
    put(store, write("r1", f"{text} tea", payload={"k": text}, trigger=text, provenance=sources))
    record = store.get(A, ["r1"])["r1"]
    assert (record.content, record.payload, record.trigger) == (f"{text} tea", {"k": text}, text)
    assert [id for id, _ in store.words(A, ["tea"], 5)] == ["r1"]
    assert store.learnt(A, "e1") == ["r1"]


@pytest.mark.parametrize("name", [text for text in ODD if "\ud83d" not in text] + ["", " ", "a" * 900])
def test_odd_names(store: RecordStore, put: Put, name: str):
    put(store, (name or "r", "tea"), scope=name, reason=name)
    put(store, ("r2", "tea"), scope=f"{name} ")
    assert list(store.get(name, [name or "r", "r2"])) == [name or "r"]
    assert [v.reason for v in store.changes(name)] == [name]
    assert [id for id, _ in store.words(name, ["tea"], 5)] == [name or "r"]
    if name:
        assert sorted(store.scopes()) == sorted([name, f"{name} "])


def test_scopes_are_listed(store: RecordStore, put: Put):
    for scope in ("b", "a", "c"):
        put(store, ("r1", "tea"), scope=scope)
    assert store.scopes() == ["a", "b", "c"]
    assert store.scopes(limit=2) == ["a", "b"]


def test_words(store: RecordStore, put: Put, write: Callable[..., Any]):
    put(
        store,
        ("r1", "The café serves green tea"),
        ("r2", "Cats are running in the GREEN garden"),
        ("r3", "東京で緑茶を飲む"),
        ("r4", "tea tea tea and more tea"),
        write("r5", "tea in the past", status="archived"),
    )
    find = lambda *terms: [id for id, _ in store.words(A, terms, 9)]  # noqa: E731
    assert find("cafe") == find("café") == ["r1"]
    assert find("cat", "run") == ["r2"]
    assert find("茶") == ["r3"]
    assert find("tea") == ["r4", "r1"]
    assert find("garden", "green") == ["r2", "r1"]
    assert find("nothing") == find() == []
    for odd in ("'", "|", "&", "!", "a:*", "<->", "\\", '"', "x' | 'green", "\0"):
        assert find(odd, "café") == ["r1"] or odd == "x' | 'green"
    put(store, write("r1", "coffee", 1))
    assert find("café") == []
    assert find("coffee") == ["r1"]
    scores = [score for _, score in store.words(A, ["tea", "garden"], 9)]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0


def test_a_server_ranks_documents_with_rare_words(server: Any, put: Put, monkeypatch: pytest.MonkeyPatch):
    store = server.store()
    texts = {f"r{n:03}": f"common note w{n % 40} v{n % 7} number{n}" for n in range(300)}
    put(store, *texts.items())
    asked = (["common", "w3", "number43"], ["w3", "v3"], ["common"], ["v1"], ["number5", "number299", "absent"])
    full = [store.words(A, terms, 20) for terms in asked]
    monkeypatch.setattr(server_words, "MOST_RANKED", 20)
    few = [store.words(A, terms, 5) for terms in asked]
    assert few[0] == full[0][:5]
    assert few[1] == full[1][:5]
    assert {id for id, _ in few[4]} == {"r005", "r299"}
    assert all(len(found) == 5 for found in few[:4])
    assert all(int(id[1:]) % 7 == 1 for id, _ in few[3])
    put(store, *((f"s{n:03}", f"w3 more{n}") for n in range(60)))  # what is known of common words is counted anew
    assert few[1] != store.words(A, ["w3", "v3"], 5)


def test_a_long_record_is_found_by_its_first_words(store: RecordStore, put: Put):
    text = "needle " + " ".join(f"w{n}" for n in range(200_000)) + " " + "x" * 5000
    put(store, ("r1", text), ("r2", "é" * 3000 + " thimble"), ("r3", "ab " * 100_000))
    assert store.get(A, ["r1"])["r1"].content == text
    assert [id for id, _ in store.words(A, ["needle"], 5)] == ["r1"]
    assert [id for id, _ in store.words(A, ["thimble"], 5)] == ["r2"]
    assert [id for id, _ in store.words(A, ["ab"], 5)] == ["r3"]


def test_places(store: RecordStore, put: Put, write: Callable[..., Any]):
    places = ["a", "a/b", "a/b/c", "ab", "a0", "a-b", ""]
    for n, place in enumerate(places):
        put(store, write(f"r{n}", f"tea n{n}", place=place))
    assert store.placed(A, "a") == ["r2", "r1", "r0"]
    assert store.placed(A, "a", limit=1, offset=1) == ["r1"]
    assert store.places(A, "a") == ["a", "a/b", "a/b/c"]
    assert store.placed(A, "a", statuses=("deleted",)) == []
    assert sorted(id for id, _ in store.words(A, ["tea"], 9, "a/b")) == ["r1", "r2"]
    assert [id for id, _ in store.words(A, ["n2"], 9, "a")] == ["r2"]
    assert store.words(A, ["n0"], 9, "a/b") == []
    assert store.words(B, ["tea"], 9, "a") == []


def _vector(*numbers: float) -> bytes:
    return array("f", numbers).tobytes()


def test_vectors(store: RecordStore, put: Put, write: Callable[..., Any]):
    one, two = _vector(1, 0, 0), _vector(0.1, -0.2, 3e-9)
    first = put(store, write("r1", "tea", vectors={"m": one}), write("r2", "milk", vectors={"m": two, "n": one[:4]}))
    assert store.vectors(A, "m") == [("r1", one), ("r2", two)]
    assert (store.dimension(A, "m"), store.dimension(A, "n"), store.dimension(A, "x")) == (3, 1, None)
    assert store.vectors(A, "m", first.number) == []
    assert sorted(store.vectors(A, "m", 0)) == [("r1", one), ("r2", two)]
    put(store, write("r1", "tea", 1, kind="thought"))  # the same text keeps its vector
    assert store.vectors(A, "m", first.number) == [("r1", one)]
    last = put(store, write("r1", "coffee", 2), write("r3", "rum", vectors={"m": two}))
    assert store.vectors(A, "m") == [("r2", two), ("r3", two)]
    assert sorted(store.vectors(A, "m", last.number - 1)) == [("r1", None), ("r3", two)]
    put(store, write("r2", "milk", 1, status="deleted"))
    assert store.vectors(A, "m", last.number) == [("r2", None)]
    assert [record.id for record in store.unembedded(A, "m")] == ["r1"]
    epoch = store.stamp(A)[0]
    store.put_vectors(A, "m", [("r1", 3, "d", one), ("r3", 7, "d", one), ("none", 1, "d", one)])
    assert store.vectors(A, "m") == [("r1", one), ("r3", two)]
    assert store.stamp(A)[0] != epoch
    assert store.unembedded(A, "m") == []
    assert len(store.unembedded(A, "n", 1)) == 1


def test_vectors_of_another_size_are_refused(backend: Any):
    small, large = HashEmbedder(16), HashEmbedder(24)
    large.model_id = small.model_id
    memory = backend.memory(embedder=small)
    (id,) = memory.add("tea")
    other = backend.memory(embedder=large, store=memory.store)
    for act in (lambda: other.add("more"), lambda: other.recall("tea")):
        with pytest.raises(EmbedderError, match=r"24 numbers.*16"):
            act()
    assert memory.recall("tea")[0].id == id
    assert memory.store.count(A) == {"active": 1}


def test_reading_only(shared: Any, put: Put):
    with pytest.raises(StoreError):
        shared.store(read_only=True)
    put(shared.store(), ("r1", "tea"))
    store = shared.store(read_only=True)
    assert store.words(A, ["tea"], 5)
    assert store.get(A, ["r1"])
    with pytest.raises(StoreError):
        put(store, ("r2", "milk"))


def test_a_closed_store_says_so(store: RecordStore, put: Put):
    put(store, ("r1", "tea"))
    store.close()
    store.close()
    for act in (lambda: store.get(A, ["r1"]), lambda: put(store, ("r2", "milk"))):
        with pytest.raises(StoreError, match="closed"):
            act()


def test_unknown_options_are_refused(backend: Any):
    with pytest.raises(ConfigError, match="cache"):
        backend.store(cache=1)
    with pytest.raises(ConfigError, match="record"):
        Record.from_dict({"content": "x", "colour": "red"})
