"""Conversations in a bounded cache: what is reused, and which turns go."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.errors import ConfigError
from remnant.speculative.turns import Turns, common_prefix


def test_the_next_turn_reuses_what_is_cached():
    talk = Turns(100, [1, 2])
    first = talk.begin([3, 4], answer=5)
    assert (first.ids, first.reuse, first.fresh) == ((1, 2, 3, 4), 0, (1, 2, 3, 4))
    talk.end([5, 6])
    second = talk.begin([7], answer=5)
    assert second.ids == (1, 2, 3, 4, 5, 6, 7)
    assert second.reuse == 5, "the last emitted token is never in the cache"
    assert second.fresh == (6, 7)


def test_a_history_written_anew_reuses_its_common_beginning():
    talk = Turns(100, [1])
    talk.begin([2, 3], answer=4)
    talk.end([4, 5, 6])
    talk.rewrite([[2, 3, 4, 9]])
    assert talk.begin([7], answer=1).reuse == 4
    talk.end([8], cached=3)
    talk.rewrite([[2, 3, 4, 9, 7, 8]])
    assert talk.begin([7], answer=1).reuse == 3
    talk.forget()
    assert talk.begin([7], answer=1).reuse == 0


def test_the_oldest_turns_go_whole_and_the_system_prompt_stays():
    talk = Turns(12, [1, 2])
    for message in ([3, 3], [4, 4]):
        talk.begin(message, answer=2)
        talk.end([9, 9])
    assert len(talk.turns) == 2
    third = talk.begin([5], answer=2)
    assert third.evicted == talk.evicted == 1
    assert third.ids == (1, 2, 4, 4, 9, 9, 5)
    assert third.reuse == 2, "behind the system prompt everything moved and is read again"


def test_at_least_one_token_is_read():
    talk = Turns(10)
    talk.begin([1, 2], answer=1)
    talk.end([3], cached=3)
    talk.rewrite([[]])
    assert talk.begin([1, 2], answer=1).fresh == (2,)


def test_what_can_never_fit_is_refused_and_changes_nothing():
    talk = Turns(10, [1, 2])
    talk.begin([3], answer=2)
    talk.end([4])
    with pytest.raises(ConfigError, match="3 too many"):
        talk.begin([5] * 8, answer=3)
    assert talk.turns == [(3, 4)]
    for message, answer in (([], 1), ([5], 0)):
        with pytest.raises(ConfigError):
            talk.begin(message, answer)
    with pytest.raises(ConfigError, match="shorter"):
        Turns(2, [1, 2])
    with pytest.raises(ConfigError, match="call begin"):
        Turns(5).end([1])
    with pytest.raises(ConfigError, match="cached"):
        talk.end([1], cached=99)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(12, 40),
    st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(1, 5)), max_size=12),
)
def test_no_text_ever_outgrows_the_limit(limit: int, messages: list[tuple[list[int], int]]):
    talk = Turns(limit, [7, 7])
    cache: tuple[int, ...] = ()
    for message, answer in messages:
        turn = talk.begin(message, answer)
        assert len(turn.ids) + answer <= limit
        assert turn.ids[:2] == (7, 7)
        assert turn.ids[-len(message) :] == tuple(message)
        assert cache[: turn.reuse] == turn.ids[: turn.reuse], "the cache really holds what is reused"
        assert turn.fresh
        talk.end([1] * answer)
        cache = (*turn.ids, *[1] * answer)[:-1]


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix(a: list[int], b: list[int]):
    n = common_prefix(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]
