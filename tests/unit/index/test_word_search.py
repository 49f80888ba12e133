"""Words of a large file: few documents are ranked, and none that holds a rare word is lost."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from remnant.memory import Memory
from remnant.memory.sqlite import words as search

WORDS = [f"word{i}" for i in range(60)]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    """400 documents; `word0` is in most of them, `word59` in few."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, [1 / (i + 1) for i in range(60)], k=8)) for _ in range(400)]
    with Memory.open(tmp_path / "m.db", scope="a", write="manual", strict=True) as made:
        made.add([f"{text} unique{number}" for number, text in enumerate(texts)])
        yield made


def _both(memory: Memory, monkeypatch: pytest.MonkeyPatch, words: list[str], limit: int, most: int):
    whole = memory.store.words("a", words, 400)
    monkeypatch.setattr(search, "MOST_RANKED", most)
    return dict(whole), memory.store.words("a", words, limit)


def test_every_document_with_a_rare_word_is_found_with_the_score_of_a_whole_ranking(memory, monkeypatch):
    for common in (["word0"], ["word0", "word1", "word2"], ["word3", "word4"]):
        terms = [*common, "unique7", "unique250"]
        whole, part = _both(memory, monkeypatch, terms, 5, 20)
        monkeypatch.setattr(search, "MOST_RANKED", 1000)
        rare = {r.id for r in memory.records() if {"unique7", "unique250"} & set(r.content.split())}
        assert {id for id, _ in part[:2]} == rare
        for id in rare:
            assert dict(part)[id] == pytest.approx(whole[id], abs=1e-4)


def test_too_few_rare_matches_are_filled_up(memory, monkeypatch):
    whole, part = _both(memory, monkeypatch, ["unique7", "word0"], 10, 20)
    assert len(part) == 10
    assert set(dict(part)) <= set(whole)
    assert [score for _, score in part] == sorted((score for _, score in part), reverse=True)


def test_without_a_rare_word_all_are_ranked(memory, monkeypatch):
    for terms in (["word0"], ["word0", "word1"], ["word3", "word4"], ["absent", "word3"]):
        whole, part = _both(memory, monkeypatch, terms, 10, 20)
        monkeypatch.setattr(search, "MOST_RANKED", 1000)
        best = sorted(whole.values(), reverse=True)[:10]
        assert [score for _, score in part] == pytest.approx(best, abs=1e-4)


def test_another_scope_in_the_file_changes_nothing_that_is_found(memory, monkeypatch):
    other = memory.scoped("b")
    other.add([f"word0 unique7 other{number}" for number in range(100)])
    monkeypatch.setattr(search, "MOST_RANKED", 20)
    found = memory.store.words("a", ["word0", "unique7"], 5)
    best = memory.get(found[0][0])
    assert best is not None
    assert "unique7" in best.content.split()
    assert {id for id, _ in found} <= {r.id for r in memory.records()}
    assert {id for id, _ in other.store.words("b", ["word0", "unique7"], 5)} <= {r.id for r in other.records()}


def test_a_word_everywhere_is_counted_anew_as_the_file_grows(memory, monkeypatch):
    monkeypatch.setattr(search, "MOST_RANKED", 20)
    memory.store.words("a", ["word0", "unique7"], 5)
    assert memory.store._words._everywhere["word0"] == (400, True)  # type: ignore[attr-defined]
    memory.add([f"something else {number}" for number in range(700)])
    memory.store.words("a", ["word0", "unique7"], 5)
    assert memory.store._words._everywhere["word0"] == (1100, False)  # type: ignore[attr-defined]
