"""Meaning: ranking with an embedder, one that fails, one that changed; and the Python word index."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from remnant.memory import EmbedderError, HashEmbedder, Memory, Record, StoreError, Update

Make = Callable[..., Memory]


class Failing(HashEmbedder):
    down = True

    def embed(self, texts: Sequence[str], *, kind: Any) -> list[list[float]]:
        if self.down:
            raise ConnectionError("no answer")
        return super().embed(texts, kind=kind)


class Renamed(HashEmbedder):
    def __init__(self, dim: int, name: str) -> None:
        super().__init__(dim)
        self.model_id = name


def test_meaning_finds_what_words_do_not(make: Make):
    memory = make(embedder=HashEmbedder())
    ids = memory.add(["photographers", "weather"])
    assert memory.recall("photogenic", k=1)[0].id == ids[0]
    assert memory.recall("photogenic", k=1)[0].parts["words"] == 0.0
    assert make().recall("weathervane") == []


def test_weight_is_a_setting(make: Make):
    texts = ["tea", "teapots teapot teas"]
    make(embedder=HashEmbedder()).add(texts)
    for weight in (0.0, 0.5, 1.0):
        hits = make(embedder=HashEmbedder(), weight=weight).recall("tea")
        for hit in hits if weight else []:
            expected = weight * hit.parts["dense"] + (1 - weight) * hit.parts["words"]
            assert hit.score == pytest.approx(expected)


def test_vectors_follow_changes_by_others(make: Make):
    reader, writer = make(embedder=HashEmbedder()), make(embedder=HashEmbedder())
    ids = writer.add([f"note {number}" for number in range(5)])
    assert reader.recall("xylophonist", k=1)
    writer.apply([Update(ids[3], {"content": "xylophones"})], "r", "a")
    assert reader.recall("xylophonist", k=1)[0].id == ids[3]
    (new,) = writer.add("xylophonists")
    assert reader.recall("xylophonist", k=1)[0].id == new
    writer.forget(new)
    assert reader.recall("xylophonist", k=1)[0].id == ids[3]


def test_failing_embedder_loses_nothing(make: Make):
    embedder = Failing()
    memory = make(embedder=embedder, strict=False)
    seen: list[str] = []
    memory.events.subscribe(lambda event: seen.append(event.name))
    (id,) = memory.add("tea is green")
    assert memory.recall("green tea")[0].id == id
    assert seen.count("embed_failed") == 2
    embedder.down = False
    assert (memory.reindex(), memory.reindex()) == (1, 0)
    assert memory.recall("greenish", k=1)[0].parts["dense"] >= 0


def test_other_size_is_a_typed_error_and_wipes_nothing(make: Make):
    memory = make(embedder=Renamed(32, "m"))
    (id,) = memory.add("tea")
    other = make(embedder=Renamed(64, "m"))
    for act in (lambda: other.recall("tea"), lambda: other.add("more")):
        with pytest.raises(EmbedderError, match=r"gives 64 numbers.*32"):
            act()
    assert memory.recall("tea")[0].id == id
    newer = make(embedder=Renamed(64, "n"))
    assert newer.recall("tea")[0].id == id  # by words
    assert newer.reindex() == 1
    assert newer.recall("teas")[0].id == id
    assert memory.recall("teas")[0].id == id  # the old vectors are still there


def test_without_fts5_words_are_ranked_in_python(make: Make):
    memory = make()
    ids = memory.add([Record("tea is green"), Record("milk is white"), Record("tea tea tea")])
    expected = memory.recall("green tea")
    memory.store._files.fts5 = False  # type: ignore[attr-defined]
    assert [hit.id for hit in memory.recall("green tea")] == [hit.id for hit in expected]
    assert memory.recall("green tea")[0].id == ids[0]


def test_reads_fail_open_unless_strict(make: Make):
    memory = make(strict=False)
    memory.add("tea")
    seen: list[str] = []
    memory.events.subscribe(lambda event: seen.append(event.name))
    memory.close()
    assert memory.recall("tea") == []
    assert seen == ["recall_failed"]
    strict = make()
    strict.close()
    with pytest.raises(StoreError, match="closed"):
        strict.recall("tea")
