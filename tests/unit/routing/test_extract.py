"""Answering from blocks: only true quotes count, and a block that fails is never taken for empty."""

import json
from typing import Any

import pytest

from remnant.errors import ConfigError
from remnant.routing import Answer, BlockReader, Conversation, blocks

HISTORY = [Conversation(f"c{i}", f"user: fact {i}", f"2024-01-{i:02}") for i in range(1, 26)]
EMPTY = json.dumps({"relevant": False, "items": []})


def items(*found: tuple[str, str]) -> str:
    quotes = [
        {"conversation_id": name, "quote": quote, "speaker": "user", "note": "", "date": ""} for name, quote in found
    ]
    return json.dumps({"relevant": True, "items": quotes})


def answer(text: str = "yes", used: tuple[str, ...] = ("q1",), abstain: bool = False) -> str:
    return json.dumps({"answer": text, "used": used, "unanswered_parts": [], "abstain": abstain})


class Script:
    """Answers by what a prompt contains, and remembers the prompts."""

    def __init__(self, **replies: list[Any]) -> None:
        self.replies, self.prompts = replies, list[str]()

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        part = "end" if "Quotes, as JSON" in prompt else next((c for c in self.replies if f'"{c}"' in prompt), "")
        replies = self.replies.get(part, [EMPTY])
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply


def read(script: Script, **options: Any) -> Answer:
    return BlockReader(script, parallel=1, **options).answer("What?", HISTORY)


def test_blocks_cover_the_history_in_order():
    assert [len(block) for block in blocks(HISTORY, 10)] == [10, 10, 5]
    assert [c for block in blocks(HISTORY, 10) for c in block] == HISTORY
    assert blocks([], 10) == []
    with pytest.raises(ConfigError):
        blocks(HISTORY, 0)


def test_quotes_reach_the_synthesis_in_the_order_of_time():
    script = Script(c1=[items(("c9", "fact 9"), ("c2", "fact 2"))], c11=[items(("c11", "fact 11"))], end=[answer()])
    found = read(script)
    assert [item.quote for item in found.items] == ["fact 2", "fact 9", "fact 11"]
    assert (found.text, found.abstained, found.used, found.calls) == ("yes", False, ("q1",), 4)
    assert found.items[0].date == "2024-01-02"


def test_a_quote_that_nobody_said_is_dropped():
    found = read(Script(c1=[items(("c1", "fact 99"), ("c1", ""), ("c1", "fact 1"))], end=[answer()]))
    assert [item.quote for item in found.items] == ["fact 1"]
    assert found.dropped == 2


def test_a_quote_is_moved_to_the_conversation_that_holds_it():
    found = read(Script(c1=[items(("c3", "fact 7"))], end=[answer()]))
    assert found.items[0].conversation_id == "c7"


def test_all_blocks_empty_abstains_without_a_synthesis():
    script = Script()
    found = read(script, abstention="no idea")
    assert (found.text, found.abstained, found.calls, found.missing) == ("no idea", True, 3, ())
    assert not any("Quotes, as JSON" in prompt for prompt in script.prompts)


@pytest.mark.parametrize("bad", [TimeoutError(), "nonsense", "{}", '{"items": 3, "relevant": true}', "[1]", "{x}"])
def test_a_failed_block_is_asked_twice_and_then_missing(bad: Any):
    found = read(Script(c11=[bad]))
    assert found.missing == tuple(f"c{i}" for i in range(11, 21))
    assert (found.abstained, found.calls) == (True, 4)
    again = read(Script(c11=[bad, items(("c12", "fact 12"))], end=[answer()]))
    assert (again.missing, again.text) == ((), "yes")


def test_the_synthesis_is_told_what_is_missing():
    script = Script(c1=[items(("c1", "fact 1"))], c21=[OSError()], end=[answer()])
    assert read(script).missing == ("c21", "c22", "c23", "c24", "c25")
    assert "5 conversations could not be read" in script.prompts[-1]


@pytest.mark.parametrize("end", [answer(abstain=True), answer(used=()), answer(used=("q9",)), "nonsense"])
def test_an_answer_without_support_is_none(end: str):
    found = read(Script(c1=[items(("c1", "fact 1"))], end=[end]))
    assert (found.text, found.abstained) == ("I don't know.", True)
    assert len(found.items) == 1


def test_extractions_are_kept_until_the_block_changes():
    cache: dict[str, Any] = {}
    first, second, third = (Script(c1=[items(("c1", "fact 1"))], end=[answer()]) for _ in range(3))
    assert read(first, cache=cache).calls == 4
    again = BlockReader(second, cache=cache).answer("  what? ", HISTORY)
    assert (again.calls, again.text) == (1, "yes")
    changed = [*HISTORY[:-1], Conversation("c25", "user: other", "2024-01-25")]
    assert BlockReader(third, cache=cache).answer("What?", changed).calls == 2


def test_a_fence_around_the_json_does_no_harm_and_failures_are_not_kept():
    cache: dict[str, Any] = {}
    assert read(Script(c1=[f"```json\n{items(('c1', 'fact 1'))}\n```"], c11=[OSError()], end=[answer()]), cache=cache)
    assert len(cache) == 2


@pytest.mark.parametrize("options", [{"block_size": 0}, {"parallel": 0}])
def test_sizes_that_read_nothing_are_refused(options: dict[str, Any]):
    with pytest.raises(ConfigError):
        BlockReader(Script(), **options)
