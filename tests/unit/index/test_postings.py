"""BM25 over postings, in Python and in numpy, against the formula spelt out."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.index import postings as module
from remnant.index.postings import Fresh, Part, Postings, ranked

WORD = st.sampled_from("abcde")
TEXTS = st.dictionaries(st.integers(1, 30), st.lists(WORD, min_size=1, max_size=8), max_size=12)


def _spelt_out(documents: dict[int, list[str]], words: list[str]) -> dict[int, float]:
    mean = sum(map(len, documents.values())) / max(1, len(documents))
    scores: dict[int, float] = {}
    for word in words:
        holders = [number for number, text in documents.items() if word in text]
        idf = max(1e-6, math.log((len(documents) - len(holders) + 0.5) / (len(holders) + 0.5)))
        for n in holders:
            often, length = documents[n].count(word), len(documents[n])
            scores[n] = scores.get(n, 0.0) + idf * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * length / mean))
    return scores


def _postings(documents: dict[int, list[str]]) -> dict[str, Postings]:
    return {w: Postings.of(n for n in sorted(documents) for word in documents[n] if word == w) for w in "abcde"}


@pytest.fixture(params=[-1, 10**9], ids=["numpy", "python"])
def many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MANY", request.param)
    monkeypatch.setattr(module, "MORE", request.param)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, st.sets(st.integers(1, 30), max_size=5), st.lists(WORD, unique=True), st.integers(1, 6))
@pytest.mark.parametrize("threshold", [-1, 10**9], ids=["numpy", "python"])
def test_ranking_is_the_formula_whatever_changed_since(threshold, before, changes, others, words, limit):
    """`others` are documents of the same file outside the part; `changes` and a few removals come afterwards."""
    held = {n: text for n, text in before.items() if n not in others}
    part, postings = Part({n: len(text) for n, text in held.items()}), _postings(before)
    after = {n: text for n, text in held.items() if n % 7}
    after |= {n: text for n, text in changes.items() if n not in others}
    touched = {n for n in {*held, *after} if held.get(n) != after.get(n)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MANY", threshold)
        patch.setattr(module, "MORE", threshold)
        ranked(part, postings, 1)  # its arrays are of the state before
        for n in touched:
            part.set(n, len(after[n]) if n in after else None)
        fresh = Fresh(touched, {n: Counter(after[n]) for n in touched if n in after})
        found = ranked(part, {word: postings[word] for word in words}, limit, fresh)
    expected = sorted(_spelt_out(after, words).items(), key=lambda pair: (-round(pair[1], 9), pair[0]))
    assert [score for _, score in found] == pytest.approx([score for _, score in expected[:limit]])
    assert dict(found).items() <= {n: pytest.approx(score) for n, score in expected}.items()


def test_ties_for_the_last_place_go_to_the_lowest_number(many):
    part, postings = Part(dict.fromkeys(range(1, 9), 2)), Postings.of([2, 3, 4, 5, 7, 7])
    assert [n for n, _ in ranked(part, {"a": postings}, 3)] == [7, 2, 3]
    assert ranked(part, {"a": postings}, 0) == ranked(part, {}, 3) == ranked(Part({}), {"a": postings}, 3) == []


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40).map(sorted))
def test_postings_are_read_alike_with_and_without_numpy(numbers):
    text = ",".join(map(str, numbers))
    for threshold in (-1, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "MANY", threshold)
            patch.setattr(module, "MORE", threshold)
            read = Postings.read(text)
        assert (read.docs, read.counts) == (Postings.of(numbers).docs, Postings.of(numbers).counts)


def test_postings_count_occurrences(many):
    assert list(Postings.read(",".join(["5"] * 70_000)).counts) == [65_535]
    held = Postings.of([3, 3, 8, *[9] * 70_000])
    assert (list(held.docs), list(held.counts), held.nbytes > 0) == ([3, 8, 9], [2, 1, 65_535], True)


def test_a_small_part_of_a_large_file_is_looked_up(many):
    postings = Postings.of(range(1, 1000))
    assert [n for n, _ in ranked(Part({500: 4, 700: 2, 5000: 1}), {"a": postings}, 9)] == [700, 500]
