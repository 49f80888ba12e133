"""Near-duplicates: one of each is kept, the newest, where the best stood."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remnant.errors import ConfigError
from remnant.routing import collapse

SENTENCE = "Ann takes her tea without milk in the morning because it is what her mother did before her"


def test_the_same_words_are_one_passage() -> None:
    assert collapse(["Tea, no milk", "snow", "no MILK: tea!"], text=str) == ["Tea, no milk", "snow"]


def test_a_word_more_in_a_long_passage_is_no_difference_and_in_a_short_one_it_is() -> None:
    assert collapse([SENTENCE, f"{SENTENCE} too"], text=str) == [SENTENCE]
    assert collapse(["Ann likes tea", "Ann likes milk"], text=str) == ["Ann likes tea", "Ann likes milk"]
    assert collapse(["Ann likes tea", "Ann likes milk"], text=str, alike=0.6) == ["Ann likes tea"]


def test_the_newest_stands_where_the_best_stood() -> None:
    ranked = [("tea", 1), ("snow", 9), ("Tea", 3), ("tea!", 2)]
    assert collapse(ranked, text=lambda p: p[0], when=lambda p: p[1]) == [("Tea", 3), ("snow", 9)]
    assert collapse(ranked, text=lambda p: p[0], when=lambda _: 0) == ranked[:2]


def test_vectors_count_more_than_words() -> None:
    ranked = [("tea", (1.0, 0.0)), ("a hot drink", (2.0, 0.1)), ("snow", (0.0, 1.0)), ("nothing", (0.0, 0.0))]
    kept = collapse(ranked, text=lambda p: p[0], vector=lambda p: p[1])
    assert [name for name, _ in kept] == ["tea", "snow", "nothing"]


def test_a_chain_does_not_draw_unlike_passages_together() -> None:
    ranked = [(1.0, 0.0), (0.9, 0.436), (0.62, 0.785)]  # about 26 degrees from one to the next
    assert len(collapse(ranked, text=str, vector=lambda p: p, alike=0.88)) == 2


def test_passages_without_words_are_alike_among_themselves() -> None:
    assert collapse(["", "?!", "x", ""], text=str) == ["", "x"]
    assert collapse([], text=str) == []


@pytest.mark.parametrize("alike", [0.0, -1.0, 1.1, float("nan")])
def test_what_is_no_cosine_is_refused(alike: float) -> None:
    with pytest.raises(ConfigError, match="alike"):
        collapse(["x"], text=str, alike=alike)


@given(st.lists(st.text("ab c", max_size=6), max_size=12))
def test_it_keeps_the_first_of_each_and_does_nothing_twice(ranked: list[str]) -> None:
    once = collapse(ranked, text=str)
    assert collapse(once, text=str) == once
    assert once[:1] == ranked[:1]
    assert [item for item in ranked if item in once][: len(once)] or not once
