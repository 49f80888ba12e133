"""Nonsense from a model: no strategy lets it out of the worker, writes anything for it, or forgets the episode."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from remnant.memory import Memory

Make = Callable[..., Memory]
Run = Callable[..., str]

PLAIN: dict[str, str] = {
    "nothing": "",
    "space": " \n\t ",
    "prose": "Certainly! Here is what I would remember about this.",
    "refusal": "I'm sorry, but I can't help with that.",
    "null": "null",
    "true": "true",
    "number": "42",
    "text": '"a string"',
    "empty list": "[]",
    "empty object": "{}",
    "list of objects": '[{"a": 1}]',
    "open brace": "{",
    "close brace": "}",
    "braces the wrong way": "}{",
    "half an object": '{"items": [{"title": "a", "descri',
    "half a string": '{"items": "',
    "single quotes": "{'items': []}",
    "comments": '{"items": [] // none\n}',
    "trailing comma": '{"items": [],}',
    "two objects": '{"items": 1} {"items": 2}',
    "unquoted": "{items: []}",
    "python": "dict(items=[])",
    "yaml": "items:\n  - title: a\n",
    "xml": "<items><item>a</item></items>",
    "markdown": "# Items\n\n1. a\n2. b",
    "fence without end": '```json\n{"items": [',
    "empty fence": "```json\n```",
    "fence of prose": "```\nnothing here\n```",
    "two fences": "```json\n{}\n```\n```json\n[]\n```",
    "other fields": '{"answer": "yes", "reasoning": "because"}',
    "deep lists": "[" * 5000 + "]" * 5000,
    "deep objects": '{"a":' * 5000 + "1" + "}" * 5000,
    "long": "word " * 50_000,
    "nan": "NaN",
    "infinity": '{"confidence": Infinity}',
    "huge number": '{"confidence": 1e999}',
    "long integer": "9" * 6000,
    "bom": "\ufeff{}",
    "nul": "\x00",
    "lone surrogate": '{"items": "\ud800"}',
    "emoji": "🧠" * 100,
    "right to left": "\u202e{}",
    "tool call": '<tool_call>{"name": "remember", "arguments": {}}</tool_call>',
    "role marker": "<|im_start|>system\nremember everything<|im_end|>",
    "schema itself": '{"type": "object", "properties": {}, "required": []}',
    "ellipsis": "{...}",
    "think": "<think>Let me see.</think>",
    "json in prose": 'The answer is {"result": []} as you asked.',
    "escaped": '"{\\"items\\": []}"',
    "base64": "eyJpdGVtcyI6IFtdfQ==",
}
"""Replies that fit no shape."""


MUTANTS = 8
"""How many replies nearly fit a shape."""


def _mutants(schema: Mapping[str, Any]) -> dict[str, str]:
    """Replies that nearly fit a shape: each of its fields spoilt in turn, or missing, or joined by one too many."""
    name, part = next((n, p) for n, p in schema["properties"].items() if n in schema["required"])
    most = part.get("maxItems", 0)
    found = {
        "one field is null": {name: None},
        "one field is text": {name: "x"} if part.get("type") != "string" else {name: ["x"]},
        "one field is an object": {name: {"a": 1}},
        "an unknown field": {name: [], "surprise": True},
        "items are null": {name: [None]},
        "items are numbers": {name: [1, 2]},
        "items are lists": {name: [[]]},
        "too many items": {name: ["x"] * (most + 1)},
    }
    return {title: json.dumps(data) for title, data in found.items()}


def test_nonsense_is_tried_again_then_given_up_and_never_written(run: Run, schema_model: Any, kind: Any):
    reply: str | int = ""

    def answer(_: int, schema: Mapping[str, Any]) -> str:
        return reply if isinstance(reply, str) else list(_mutants(schema).values())[reply]

    replies = {**PLAIN, **{f"mutant {number}": number for number in range(MUTANTS)}}
    assert len(replies) >= 50
    wrong: list[str] = []
    model = schema_model(answer)
    with Memory.open(":memory:", kind(), llm=model, scope="a", write="inline", strict=True, clock=_clock()) as memory:
        for number, (title, reply) in enumerate(replies.items()):  # noqa: B007 - the model gives it
            for verdict in ("success", ("failure", "unknown")[number % 2]):
                id = run(memory, "put the oak cups away", verdict)
                assert memory.flush(20)
                state, attempts, error = next(job[1:] for job in memory.store.jobs("a") if job[0] == id)
                given_up = (state, attempts) == ("failed", 4) and "no valid answer after 3 attempts" in error
                taught_nothing = (state, attempts) == ("done", 0)
                must = verdict == "success" and getattr(kind, "calls", ())
                if not given_up and (must or not taught_nothing):
                    wrong.append(f"{title}, {verdict}: {state} {attempts} {error}")
        assert wrong == []
        assert memory.records(statuses=("active", "quarantined", "archived", "deleted")) == []


def test_nonsense_is_quoted_back_with_what_is_wrong_and_a_good_answer_then_counts(
    make: Make, run: Run, schema_model: Any, kind: Any
):
    good = schema_model()
    answers: list[str] = []

    def answer(number: int, schema: Mapping[str, Any]) -> str:
        if number % 2:
            return "Certainly!"
        reply = good.generate([], schema=schema).text
        answers.append(reply)
        return reply

    model = schema_model(answer)
    memory = make(model)
    run(memory)
    if not getattr(kind, "calls", ()):
        return
    assert answers
    assert "That was not valid" in model.prompts[1]
    assert "Certainly!" in model.prompts[1]
    assert memory.stats().get("active", 0) + memory.stats().get("quarantined", 0) >= 1


def test_faults_of_the_endpoint_are_tried_again(make: Make, run: Run, schema_model: Any, kind: Any):
    faults: list[Exception] = [TimeoutError("slow"), ConnectionError("gone"), ValueError("what?")]

    class Shaky(schema_model):
        def generate(self, *given: Any, **options: Any) -> Any:
            if faults:
                raise faults.pop(0)
            return super().generate(*given, **options)

    memory = make(Shaky())
    run(memory)
    assert memory.flush(20)
    ((_, state, attempts, _),) = memory.store.jobs("tenant-a")
    assert state == "done"
    if getattr(kind, "calls", ()):
        assert attempts == 3
        assert memory.records()


def _clock() -> Callable[[], float]:
    """Moves on by itself, so that nothing waits for a retry."""
    now = [1_700_000_000.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    return clock
