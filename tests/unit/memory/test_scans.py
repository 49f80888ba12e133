"""Which index a memory searches, the file it is kept in, and the bytes it takes."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remnant.errors import ConfigError
from remnant.index import AnnIndex, choose, sidecar
from remnant.memory import Event, Forget, HashEmbedder, Memory, Update

Make = Callable[..., Memory]
TEXTS = [
    f"note {i} about {word}"
    for i, word in enumerate(["tea", "milk", "bread", "wine", "salt", "oil", "rice", "corn"] * 4)
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch):
    """A graph is built from ten vectors on."""
    made = AnnIndex.__init__
    monkeypatch.setattr(AnnIndex, "__init__", lambda self, dim: made(self, dim, most_beside=10))


def _chosen(memory: Memory) -> list[Any]:
    seen: list[Any] = []

    def note(event: Event) -> None:
        if event.name == "index_chosen":
            seen.append((event.data["index"], event.data["vectors"], event.data["kept"]))

    memory.events.subscribe(note)
    return seen


def _index(memory: Memory) -> Any:
    ((_, held),) = list(memory.context.scans._held)
    return held.index


def _built(memory: Memory, path: Path) -> Path:
    index = _index(memory)
    assert index.wait(30)
    (kept,) = path.parent.glob(f"{path.name}.*.index")
    return kept


def _same(memory: Memory, other: Memory) -> None:
    for text in ("tea", "note 7", "breads and rice"):
        first, second = memory.recall(text, k=40), other.recall(text, k=40)
        assert {hit.id: hit.score for hit in first} == pytest.approx({hit.id: hit.score for hit in second}, abs=5e-3)


@pytest.mark.parametrize("index", ["exact", "ann", "lsh"])
def test_every_index_finds_the_same_in_a_small_memory(make: Make, index: str):
    memory, plain = make(embedder=HashEmbedder(), index=index), make(embedder=HashEmbedder())
    seen = _chosen(memory)
    ids = memory.add(TEXTS)
    _same(memory, plain)
    memory.apply([Forget(ids[1]), Update(ids[2], {"content": "teapots"})], "r", "a")
    memory.add("more tea")
    memory.forget(ids[3])
    _same(memory, plain)
    assert [name for name, _, _ in seen] == [index, index]
    assert memory.scoped("tenant-b").recall("tea") == []


def test_auto_follows_the_size(make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choose, "MANY", 20)
    memory = make(embedder=HashEmbedder())
    seen = _chosen(memory)
    ids = memory.add(TEXTS[:10])
    memory.recall("tea")
    memory.add(TEXTS[10:])
    memory.recall("tea")
    memory.apply([Forget(id) for id in ids] + [Forget(r.id) for r in memory.records()[10:25]], "r", "a")
    memory.recall("tea")
    assert seen == [("exact", 10, False), ("ann", 32, False), ("exact", 7, False)]


def test_the_kept_index_is_used_again_and_brought_up_to_date(make: Make, path: Path):
    memory = make(embedder=HashEmbedder(), index="ann")
    ids = memory.add(TEXTS)
    memory.recall("tea")
    kept = _built(memory, path)
    memory.apply([Forget(ids[1]), Update(ids[2], {"content": "teapots"})], "r", "a")
    memory.add("more tea")
    again, plain = make(embedder=HashEmbedder(), index="ann"), make(embedder=HashEmbedder())
    seen = _chosen(again)
    _same(again, plain)
    assert seen == [("ann", 32, True)]
    assert kept.name.count("tenant-a") == 0


@pytest.mark.parametrize("fault", ["damaged", "model", "count", "dim", "epoch", "later", "other index"])
def test_a_kept_index_that_does_not_fit_is_built_anew(make: Make, path: Path, fault: str):
    memory = make(embedder=HashEmbedder(), index="ann")
    memory.add(TEXTS)
    memory.recall("tea")
    kept = _built(memory, path)
    found = sidecar.read(kept)
    assert found is not None
    made_of, ids, blobs = found
    wrong = {"model": "m", "count": 31, "dim": 3, "epoch": 99, "later": 99, "other index": "lsh"}
    if fault == "damaged":
        kept.write_bytes(kept.read_bytes()[:-1])
    else:
        name = {"later": "change", "other index": "index"}.get(fault, fault)
        sidecar.write(kept, {**made_of, name: wrong[fault]}, ids, blobs)
    again = make(embedder=HashEmbedder(), index="ann")
    seen = _chosen(again)
    _same(again, make(embedder=HashEmbedder()))
    assert seen == [("ann", 32, False)]


def test_forgetting_deletes_the_kept_index_of_the_scope_alone(make: Make, path: Path):
    memory = make(embedder=HashEmbedder(), index="ann")
    other = memory.scoped("tenant-b")
    (id, *_) = memory.add(TEXTS)
    other.add(TEXTS)
    other.recall("tea")
    _built(memory, path)
    memory.recall("tea")
    for _, held in memory.context.scans._held:
        assert held.index is not None
        held.index.wait(30)  # type: ignore[attr-defined]
    assert len(list(path.parent.glob("*.index"))) == 2
    memory.forget(id)
    (kept,) = path.parent.glob("*.index")
    assert kept == memory.store.sidecar("tenant-b", HashEmbedder().model_id)  # type: ignore[attr-defined]


def test_a_graph_that_was_built_while_something_was_erased_is_not_kept(make: Make, path: Path, monkeypatch: Any):
    memory = make(embedder=HashEmbedder(), index="ann")
    (id, *_) = memory.add(TEXTS)
    written = threading.Event()
    write = sidecar.write

    def slow(*given: Any) -> None:
        monkeypatch.setattr(sidecar, "write", write)
        memory.forget(id)
        write(*given)
        written.set()

    monkeypatch.setattr(sidecar, "write", slow)
    memory.recall("tea")
    index = _index(memory)
    assert written.wait(30)
    index.wait(30)
    assert not list(path.parent.glob("*.index"))


def test_nothing_is_kept_beside_a_store_that_is_only_read_or_temporary(make: Make, path: Path, tmp_path: Path):
    make(embedder=HashEmbedder()).add(TEXTS)
    with Memory.open("x", store=_read_only(path), scope="tenant-a", embedder=HashEmbedder(), index="ann") as reader:
        assert reader.recall("tea")
        assert _index(reader).wait(30)
    with Memory.open(":memory:", scope="a", embedder=HashEmbedder(), index="ann") as memory:
        memory.add(TEXTS)
        assert memory.recall("tea")
        assert _index(memory).wait(30)
    assert not list(tmp_path.glob("*.index"))


def _read_only(path: Path) -> Any:
    from remnant.memory import SqliteStore

    return SqliteStore(path, read_only=True)


def test_indexes_of_many_scopes_stay_within_their_bytes(make: Make):
    memory = make(embedder=HashEmbedder(), cache_bytes=30_000)
    scans = memory.context.scans
    for number in range(12):
        tenant = memory.scoped(f"t{number}")
        tenant.add(TEXTS[:4])
        assert tenant.recall("tea")[0].text in TEXTS
        assert scans.nbytes <= 30_000
    assert 1 < len(list(scans._held)) < 12
    assert memory.scoped("t0").recall("milk")


def test_settings_are_checked(make: Make):
    with pytest.raises(ConfigError, match="unknown index 'exakt'"):
        make(index="exakt")
    with pytest.raises(ConfigError, match="cache_bytes"):
        make(cache_bytes=-1)


def test_many_threads_search_while_the_graph_is_built(make: Make):
    memory = make(embedder=HashEmbedder(64), index="ann")
    memory.add([f"{text} {i}" for i in range(10) for text in TEXTS])
    faults: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                text = f"fresh{number}x{turn}"
                memory.add(text)
                assert memory.recall(text, k=1)[0].text == text
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert _index(memory).wait(30)
