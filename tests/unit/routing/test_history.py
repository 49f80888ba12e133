"""History files: the accepted forms, and what is said about others."""

import json
from pathlib import Path
from typing import Any

import pytest

from remnant.errors import ConfigError
from remnant.routing import Conversation, history_key, read_history

TALK = [{"role": "user", "content": "hi"}, {"speaker": "Ann", "text": "hello"}, "bye"]
TEXT = "user: hi\nAnn: hello\nbye"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "history"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([TALK, TALK]),
        json.dumps({"conversations": [TALK, TALK]}),
        f"{json.dumps(TALK)}\n\n{json.dumps({'messages': TALK})}\n",
    ],
)
def test_json_and_json_lines(tmp_path: Path, text: str):
    found = read_history(write(tmp_path, text))
    assert [c.text for c in found] == [TEXT, TEXT]
    assert [c.id for c in found] == ["c1", "c2"]


def test_ids_and_dates_are_kept(tmp_path: Path):
    one = {"id": "x", "date": "2024-01-01", "messages": TALK}
    assert read_history(write(tmp_path, json.dumps(one))) == [Conversation("x", TEXT, "2024-01-01")]


def test_an_empty_file_is_an_empty_history(tmp_path: Path):
    assert read_history(write(tmp_path, "")) == []
    assert read_history(write(tmp_path, "[]")) == []


@pytest.mark.parametrize("text", ["3", "[3]", "[[3]]", '[{"a": 1}]', "[[{}]]", '[[]]\n{"a"', '{"conversations": [1]}'])
def test_other_forms_are_refused(tmp_path: Path, text: str):
    with pytest.raises(ConfigError):
        read_history(write(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere"):
        read_history(tmp_path / "nowhere")


@pytest.mark.parametrize("changed", [Conversation("b", "t"), Conversation("a", "u"), Conversation("a", "t", "1")])
def test_the_key_changes_with_the_content_and_the_store(changed: Any):
    before = [Conversation("a", "t")]
    assert history_key(before) == history_key(list(before))
    assert len({history_key(before), history_key([changed]), history_key(before, "v2"), history_key([])}) == 4
