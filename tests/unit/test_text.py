"""Text of others, made safe to show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remnant.text import compare, short, visible, when


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünïcode 日本 👍🏽", "plain, ünïcode 日本 👍🏽"),
        ("a\x1b[31mb\x00\x7f\x9b", "a\\x1b[31mb\\x00\\x7f\\x9b"),
        ("a\u202eb\u2066\u200b\ufeff", "a\\u202eb\\u2066\\u200b\\ufeff"),
        ("\U000e0041", "\\U000e0041"),  # a tag: a letter that nobody sees but a model reads
        ("half \ud83d", "half \\ud83d"),
        ("👨\u200d👩 \u0645\u06cc\u200c\u062e\u00a0", "👨\u200d👩 \u0645\u06cc\u200c\u062e\u00a0"),
        ("two\nlines\tand\r", "two\nlines\tand\\r"),
    ],
)
def test_what_is_not_seen_is_written_out(text: str, shown: str):
    assert visible(text) == shown


def test_one_line():
    assert visible("a\nb\t", lines=False) == "a\\nb\\t"
    assert short("one\ntwo  three", 8) == "one two…"
    assert short("one\ntwo", 8) == "one two"
    assert len(short("x" * 10**6, 100)) == 100


@given(st.text(), st.text())
def test_pieces_hold_both_texts(before: str, after: str):
    pieces = compare(before, after)
    assert "".join(part for tag, part in pieces if tag != "new") == before
    assert "".join(part for tag, part in pieces if tag != "cut") == after
    assert visible(visible(before)) == visible(before)
    visible(before).encode()


def test_words_are_compared_and_long_texts_by_lines_or_whole():
    assert compare("a b", "a c") == [("same", "a "), ("cut", "b"), ("new", "c")]
    long = "\n".join(f"line number {n}" for n in range(900))
    tags = [tag for tag, _ in compare(long, long.replace("number 7\n", "number seven\n"))]
    assert tags == ["same", "cut", "new", "same"]
    endless = ".\n" * 50_000  # comparing that many lines would take minutes
    assert compare(endless, endless + "x") == [("cut", endless), ("new", endless + "x")]


@pytest.mark.parametrize(
    ("moment", "text"), [(None, ""), (0.5, "1970-01-01 00:00:00"), (1e30, "1e+30 s"), (float("nan"), "nan s")]
)
def test_times(moment: float | None, text: str):
    assert when(moment) == text
