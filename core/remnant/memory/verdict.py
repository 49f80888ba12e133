"""How an episode ended, by its own steps: what every host calls when a run is over.

A step is JSON data of a host's own; these keys mean the same everywhere. `role`: `user`, `assistant`
or `tool`. `content`: what was said, or what a tool gave. `name` and `arguments`: of a tool. `tool_calls`:
what an assistant asked for. `error`: true for a tool that failed; `limit`: true where a run was cut off.

An answer that looks sound proves nothing, so no rule here ever says `success`: a model that judges, a test
or a person does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from remnant.errors import ConfigError, unknown
from remnant.memory.episode import Episode, check_verdict
from remnant.memory.llm import ChatModel
from remnant.memory.record import Outcome
from remnant.memory.strategies.judge import judged
from remnant.memory.strategies.trace import heard


class Verdict(NamedTuple):
    """How an episode ended, and who says so: `rule`, `judge`, `user`, `exception`, `limit`, ..."""

    outcome: Outcome
    source: str = "rule"


Judge = Callable[[Episode], Verdict]
"""Looks at an episode whose run is over; raising counts as not knowing."""

Wanted = Literal["rules", "judge", "manual"] | Judge | Callable[[Episode], Outcome]
"""How a user says who decides: by name, or a function of one's own, whose answer may be the bare outcome."""


def judge_of(wanted: Wanted, model: ChatModel | None) -> Judge:
    """The judge that a user wants.

    Args:
        wanted: see `Wanted`.
        model: the memory's; what `judge` asks.

    Raises:
        ConfigError: no judge has that name, or `judge` has no model.
    """
    if wanted == "judge":
        if model is None:
            raise ConfigError("verdict='judge' without a model", do="give the memory llm=")
        return judge(model)
    named: dict[str, Judge] = {"rules": rules, "manual": manual}
    if isinstance(wanted, str):
        if wanted not in named:
            raise unknown("verdict", wanted, (*named, "judge"), do="or pass a function of the episode")
        return named[wanted]

    def asked(episode: Episode) -> Verdict:
        said = wanted(episode)
        outcome, source = (said, "rule") if isinstance(said, str) else said
        return Verdict(check_verdict(outcome), source)

    return asked


def rules(episode: Episode) -> Verdict:
    """Failure where the steps show one: cut off by a limit, the last tool failed, or an empty answer; else unknown.

    Example: rules(Episode("1", "a", "add", steps=({"role": "tool", "content": "boom", "error": True},)))
        -> Verdict("failure", "rule")
    """
    steps = heard([episode])
    if any(step.get("limit") is True for step in steps):
        return Verdict("failure", "limit")
    tools = [step for step in steps if step.get("role") == "tool"]
    if tools and tools[-1].get("error") is True:
        return Verdict("failure")
    answers = [step for step in steps if step.get("role") == "assistant"]
    if answers and steps[-1] is answers[-1] and _is_empty(answers[-1]):
        return Verdict("failure")
    return Verdict("unknown")


def judge(model: ChatModel) -> Judge:
    """A verdict by a model, where the rules know none; it is asked before the run counts as closed.

    Strategies that judge episodes without a verdict do so later, in the background; prefer that where
    nothing else needs the verdict at once.

    Args:
        model: asked once per episode, and again where it is not sure; nonsense counts as not knowing.
    """

    def asked(episode: Episode) -> Verdict:
        ruled = rules(episode)
        if ruled.outcome != "unknown":
            return ruled
        found = judged(model, [episode], ask=True)
        return Verdict(found[0].label if found else "unknown", "judge")

    return asked


def manual(episode: Episode) -> Verdict:
    """Nothing is known until somebody calls `Memory.feedback`."""
    return Verdict("unknown", "none")


def _is_empty(step: Mapping[str, Any]) -> bool:
    content = step.get("content")
    return not step.get("tool_calls") and not (content.strip() if isinstance(content, str) else content)
