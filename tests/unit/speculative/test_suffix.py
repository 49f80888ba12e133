"""The index over one request against a search of everything, and its exactness when tokens are taken back."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.errors import ConfigError
from remnant.speculative.suffix import MatchOptions, SuffixIndex

TEXTS = st.integers(2, 5).flatmap(lambda most: st.lists(st.integers(0, most), max_size=60))
EVERYTHING = MatchOptions(min_match=1, min_share=0, long_match=3, probes=1000, depth=1000, max_tokens=2000)


def _agree(text: list[int], q: int) -> int:
    """Tokens that agree going back from position q and from the end."""
    end, length = len(text) - 1, 0
    while length <= q and text[q - length] == text[end - length]:
        length += 1
    return length


def _naive(text: list[int]) -> tuple[int, set[int]]:
    """The longest earlier match of the end of the text, and the tokens that most of its occurrences go on with."""
    lengths = {q: _agree(text, q) for q in range(len(text) - 1)}
    best = max(lengths.values(), default=0)
    if not best:
        return 0, set()
    votes = Counter(text[q + 1] for q, length in lengths.items() if length == best)
    return best, {token for token, count in votes.items() if count == max(votes.values())}


def _state(index: SuffixIndex, limit: int = 6) -> tuple[object, ...]:
    """All that an index answers by."""
    return index.tokens, index.match(), index.propose(limit), index.expected(limit)


def _grown(prompt: list[int], more: list[int], options: MatchOptions) -> SuffixIndex:
    index = SuffixIndex(prompt, options)
    index.extend(more)
    return index


@given(TEXTS)
def test_a_prompt_is_matched_at_its_longest_and_with_the_most_frequent_continuation(text: list[int]) -> None:
    index = SuffixIndex(text, EVERYTHING)
    length, tokens = _naive(text)
    assert index.match()[1] == length
    assert set(index.propose(1)) <= tokens
    assert bool(index.propose(1)) == bool(tokens)


@given(TEXTS, TEXTS)
def test_a_growing_text_is_matched_at_its_longest_after_every_token(prompt: list[int], more: list[int]) -> None:
    index = SuffixIndex(prompt, EVERYTHING)
    for done, token in enumerate(more, 1):
        index.extend([token])
        assert index.match()[1] == _naive(prompt + more[:done])[0]


@given(TEXTS, TEXTS, st.sampled_from([(1, 2), (2, 3), (3, 8)]), st.integers(1, 4))
def test_a_draft_is_what_followed_an_occurrence_of_at_least_the_least_length(
    prompt: list[int], more: list[int], orders: tuple[int, int], probes: int
) -> None:
    options = MatchOptions(orders[0], 0, orders[1], probes, depth=16)
    index, text = _grown(prompt, more, options), prompt + more
    start, length = index.match()
    draft = index.propose(7)
    assert len(draft) in (0, 7)
    assert bool(draft) == (start >= 0) == (length >= options.min_match)
    if draft:
        assert text[start - length : start] == text[len(text) - length :]
        assert draft == [(text + draft)[start + i] for i in range(7)]


@given(TEXTS, st.lists(TEXTS, max_size=4), st.data())
def test_taking_tokens_back_leaves_what_never_adding_them_would_have_left(
    prompt: list[int], parts: list[list[int]], data: st.DataObject
) -> None:
    options = MatchOptions(min_match=1, min_share=0.3, long_match=3, probes=3, depth=16, max_tokens=32)
    index, text = SuffixIndex(prompt, options), list(prompt)
    for part in parts:
        index.extend(part)
        text += part
        left = data.draw(st.integers(0, len(text)))
        index.truncate(left)
        text, prompt = text[:left], prompt[:left]
        rebuilt = SuffixIndex(prompt, options)
        for token in text[len(prompt) :]:
            rebuilt.extend([token])
        again = [0, 1, 0, 1, 1]
        assert index.tokens == rebuilt.tokens
        assert _state(index) == _state(rebuilt)
        index.extend(again)
        rebuilt.extend(again)
        assert _state(index) == _state(rebuilt)
        index.truncate(left)


@pytest.mark.parametrize("seed", range(0, 400, 50))
def test_taking_tokens_back_across_a_moved_window_leaves_nothing_of_them(seed: int) -> None:
    for part in range(seed, seed + 50):
        r = random.Random(part)
        most, options = r.choice((2, 3, 6)), MatchOptions(r.choice((1, 2)), 0.3, 3, r.choice((1, 4)), 16, 32 + part % 9)
        text = [r.randrange(most) for _ in range(r.randrange(30))]
        prompt, index = list(text), SuffixIndex(text, options)
        for _ in range(20):
            left = r.randrange(len(prompt), len(text) + 1) if r.random() < 0.3 else len(text)
            index.truncate(left)
            text = text[:left] + [r.randrange(most) for _ in range(r.randrange(1, 9))]
            index.extend(text[left:])
        assert _state(index) == _state(_grown(prompt, text[len(prompt) :], options))


def test_of_equally_long_matches_the_one_nearest_to_what_was_copied_last_is_followed() -> None:
    first, second = [1, 2, 3, 4, 5, 6, 7, 8, 20, 9, 10, 30], [50, 9, 10, 40]
    prompt = [*first, *second, 60]
    index = SuffixIndex(prompt, MatchOptions(min_match=2, min_share=0))
    index.extend([9, 10])
    assert index.propose(1) == [40]  # nothing was copied so far: the newest of two
    index = SuffixIndex(prompt, MatchOptions(min_match=2, min_share=0))
    index.extend([1, 2, 3, 4, 5, 6, 7, 8, 21, 9, 10])
    assert index.propose(1) == [30]


def test_the_most_frequent_continuation_wins_over_the_newest() -> None:
    index = SuffixIndex([1, 2, 7, 0, 1, 2, 7, 3, 1, 2, 8, 4, 1, 2], MatchOptions(min_share=0, min_match=2))
    assert index.propose(2) == [7, 3]


def test_a_period_goes_on_beyond_the_end() -> None:
    assert SuffixIndex([5, 1, 2, 1, 2, 1, 2], MatchOptions(min_share=0)).propose(5) == [1, 2, 1, 2, 1]


def test_nothing_is_proposed_where_nothing_matches_or_nothing_is_asked() -> None:
    assert SuffixIndex().propose(4) == []
    assert SuffixIndex([3]).propose(4) == []
    assert SuffixIndex([1, 2, 3, 4]).propose(4) == []
    assert SuffixIndex([1, 2, 3, 1, 2, 3]).propose(0) == []
    assert SuffixIndex([1, 2, 3, 1], MatchOptions(min_match=2, min_share=0)).propose(4) == []


def test_wrong_guesses_silence_an_index_and_right_ones_let_it_speak_again() -> None:
    r = random.Random(0)
    index = SuffixIndex([r.randrange(6) for _ in range(500)])
    drafts = [(index.extend([r.randrange(6)]), bool(index.propose(4)))[1] for _ in range(400)]
    assert sum(drafts[:20]) > 0
    assert sum(drafts[-200:]) < 0.1 * 200
    index.extend(index.tokens[50:120].tolist())
    assert index.propose(4) == index.tokens[120:124].tolist()


def test_without_a_least_share_every_match_is_followed() -> None:
    r = random.Random(0)
    index = SuffixIndex([r.randrange(4) for _ in range(300)], MatchOptions(min_share=0))
    for _ in range(100):
        index.extend([r.randrange(4)])
        assert bool(index.propose(3)) == (index.match()[1] > 0)


@given(TEXTS, TEXTS, TEXTS)
def test_sync_holds_any_history_whatever_was_held_before(prompt: list[int], more: list[int], other: list[int]) -> None:
    for history in (prompt + more + other, prompt + more[:3], prompt, other, [], prompt + more):
        index = _grown(prompt, more, EVERYTHING)
        known = index.sync(history)
        assert index.tokens.tolist() == history
        assert 0 <= known <= min(len(history), len(prompt + more))
        assert history[:known] == (prompt + more)[:known]
        assert index.match()[1] == _naive(history)[0]


def test_sync_extends_a_continuation_and_rebuilds_for_another_text() -> None:
    index = SuffixIndex([1, 2, 3, 4, 5, 6])
    assert index.holds([1, 2, 3, 4, 5, 6, 9])
    assert index.sync([1, 2, 3, 4, 5, 6, 1, 2, 3]) == 6
    assert index.propose(2) == [4, 5]
    assert not index.holds([1, 2, 0, 4, 5, 6, 1, 2, 3, 4])  # same ends, another middle
    assert index.sync([1, 2, 0, 4, 5, 6, 1, 2, 3, 4]) == 0
    assert index.propose(2) == SuffixIndex([1, 2, 0, 4, 5, 6, 1, 2, 3, 4]).propose(2)


def test_a_history_of_numpy_is_taken_as_it_is() -> None:
    numpy = pytest.importorskip("numpy")
    history = numpy.array([4, 5, 6, 7, 8, 4, 5, 6], dtype=numpy.int32)
    index = SuffixIndex(history[:5])
    assert index.sync(history) == 5
    assert index.propose(2) == [7, 8]
    assert SuffixIndex(history.astype(numpy.int64)).propose(2) == [7, 8]
    assert SuffixIndex(history.astype(">i4")).propose(2) == [7, 8]
    assert SuffixIndex(history[::-1]).tokens.tolist() == history[::-1].tolist()
    for wrong in (history.astype(numpy.float32), history.reshape(2, 4), -history):
        with pytest.raises(ConfigError, match="token"):
            SuffixIndex(wrong)


def test_the_caller_keeps_its_own_array() -> None:
    prompt = SuffixIndex([1, 2, 3]).tokens
    index = SuffixIndex(prompt)
    index.extend([4])
    assert prompt.tolist() == [1, 2, 3]


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=70, max_size=400), st.integers(1, 9))
def test_what_is_proposed_does_not_depend_on_how_tokens_were_handed_over(text: list[int], step: int) -> None:
    options = MatchOptions(max_tokens=64)
    one, many = SuffixIndex(text[:20], options), SuffixIndex(text[:20], options)
    for at in range(20, len(text), step):
        part = text[at : at + step]
        one.extend(part)
        for token in part:
            many.extend([token])
        assert _state(one) == _state(many)


def test_the_window_moves_on_and_the_index_stays_in_it() -> None:
    r = random.Random(1)
    index = SuffixIndex((), MatchOptions(min_match=1, min_share=0, max_tokens=64))
    for n in range(1, 1000):
        index.extend([r.randrange(50)])
        assert index.stats()["indexed"] <= 64
        assert n < 64 or index.stats()["indexed"] >= 32
        start, _ = index.match()
        assert start < 0 or start >= n - 64
    index.extend([7777, 8888])
    index.truncate(500)
    assert index.stats()["tokens"] == 500


@pytest.mark.parametrize(
    "given", [{"min_match": 0}, {"min_match": 2.5}, {"min_match": True}, {"long_match": 2}, {"probes": 0}, {"depth": 7},
              {"max_tokens": 63}, {"min_share": -0.1}, {"min_share": 1.1}, {"min_share": float("nan")}]
)  # fmt: skip
def test_an_option_outside_its_range_is_refused_by_name(given: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        MatchOptions(**given)


@pytest.mark.parametrize("token", [-1, 2**31, 1.5, "a", None])
def test_a_token_that_is_none_is_refused_and_nothing_is_appended(token: int) -> None:
    index = SuffixIndex([1, 2])
    with pytest.raises(ConfigError, match="accepted: integers"):
        index.extend([3, token])
    assert len(index) == 2
    with pytest.raises(ConfigError):
        SuffixIndex([token])


@pytest.mark.parametrize("n", [-1, 4])
def test_no_more_can_be_taken_back_than_there_is(n: int) -> None:
    with pytest.raises(ConfigError, match="3 tokens"):
        SuffixIndex([1, 2, 3]).truncate(n)


def test_lengths_of_matches_grow_by_one_at_most() -> None:
    """The longest match of a longer text is at most one longer: a search by halves would break this first."""
    r = random.Random(3)
    index, lengths = SuffixIndex([r.randrange(3) for _ in range(50)], EVERYTHING), list[int]()
    for _ in range(200):
        index.extend([r.randrange(3)])
        lengths.append(index.match()[1])
    assert all(after <= before + 1 for before, after in pairwise(lengths))
