"""How an episode ended, by its steps, by a model, or by nobody yet."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from remnant.errors import ConfigError
from remnant.memory import Episode, ModelError, ScriptedChatModel, Verdict, judge, manual, rules
from remnant.memory.verdict import judge_of

CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {}}]}
BROKEN = {"role": "tool", "name": "add", "content": "boom", "error": True}
FINE = {"role": "tool", "name": "add", "content": "3"}
ANSWER = {"role": "assistant", "content": "3"}


def ended(*steps: Mapping[str, Any]) -> Episode:
    return Episode("e", "a", "add 1 and 2", steps=steps)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([CALL, FINE, ANSWER], Verdict("unknown", "rule")),
        ([CALL, BROKEN, CALL, FINE, ANSWER], Verdict("unknown", "rule")),
        ([CALL, BROKEN, ANSWER], Verdict("failure", "rule")),
        ([CALL, FINE, {"role": "assistant", "content": " "}], Verdict("failure", "rule")),
        ([CALL, FINE, {"role": "assistant", "content": None}], Verdict("failure", "rule")),
        ([CALL], Verdict("unknown", "rule")),
        ([CALL, FINE, {"role": "assistant", "content": "so far", "limit": True}], Verdict("failure", "limit")),
        ([{**BROKEN, "injected": True}, ANSWER], Verdict("unknown", "rule")),
        ([], Verdict("unknown", "rule")),
    ],
)
def test_rules_know_failures_and_never_a_success(steps: list[Mapping[str, Any]], expected: Verdict):
    assert rules(ended(*steps)) == expected


def test_manual_knows_nothing():
    assert manual(ended(BROKEN)).outcome == "unknown"


@pytest.mark.parametrize(
    ("label", "confidence", "expected"),
    [
        ("success", 0.9, "success"),
        ("failure", 0.9, "failure"),
        ("impossible", 0.9, "unknown"),
        ("unknown", 1.0, "unknown"),
    ],
)
def test_judge_decides_when_it_is_sure(label: str, confidence: float, expected: str):
    reply = json.dumps({"reason": "r", "label": label, "confidence": confidence})
    assert judge(ScriptedChatModel([(".", reply)]))(ended(ANSWER)) == Verdict(expected, "judge")  # type: ignore[arg-type]


def test_judge_that_is_not_sure_must_agree_with_itself():
    replies = [json.dumps({"reason": "r", "label": label, "confidence": 0.5}) for label in ("success", "failure")]
    model = ScriptedChatModel([(".", reply) for reply in replies], once=True)
    assert judge(model)(ended(ANSWER)) == Verdict("unknown", "judge")
    assert len(model.prompts) == 2


def test_judge_is_not_asked_about_a_failure_that_shows():
    model = ScriptedChatModel([(".", "{}")])
    assert judge(model)(ended(CALL, BROKEN)).outcome == "failure"
    assert not model.prompts


def test_judge_that_answers_nonsense_knows_nothing():
    assert judge(ScriptedChatModel([(".", "well...")]))(ended(ANSWER)) == Verdict("unknown", "judge")


def test_judge_that_fails_is_the_callers_to_handle():
    def down(_: str) -> str:
        raise ModelError("down")

    with pytest.raises(ModelError):
        judge(ScriptedChatModel([(".", down)]))(ended(ANSWER))


def test_judges_have_names_or_are_functions():
    model = ScriptedChatModel([(".", json.dumps({"reason": "r", "label": "success", "confidence": 1}))])
    assert judge_of("rules", None) is rules
    assert judge_of("manual", None) is manual
    assert judge_of("judge", model)(ended(ANSWER)) == Verdict("success", "judge")
    assert judge_of(lambda _: "success", None)(ended()) == Verdict("success", "rule")
    assert judge_of(lambda _: Verdict("failure", "test"), None)(ended()) == Verdict("failure", "test")


@pytest.mark.parametrize(("wanted", "message"), [("judge", "llm="), ("rule", "did you mean|rules")])
def test_judge_that_cannot_be_is_refused(wanted: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        judge_of(wanted, None)


def test_answer_that_is_no_verdict_is_an_error():
    wrong: Any = lambda _: "perhaps"  # noqa: E731
    with pytest.raises(ConfigError, match="perhaps"):
        judge_of(wrong, None)(ended())
