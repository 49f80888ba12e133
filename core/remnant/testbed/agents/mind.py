"""A scripted model for distilling in the workshop: it reads the prompt's transcript and answers any strategy's schema.

It knows nothing but the prompt. Like a model it errs: now and then an action in a lesson is another one,
and a judge's verdict can be made wrong at a rate. Which mistakes are made follows from the prompt and a seed.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remnant.memory.errors import ScriptError
from remnant.memory.llm import Completion, Message, Usage
from remnant.memory.record import estimate_tokens
from remnant.testbed.agents.world import ACTIONS, KINDS

_STEP = re.compile(r"\bon the (\w+): (" + "|".join(ACTIONS) + r") -> ([^\n\"]*)")
_RUN = re.compile(r"^Run (\w+)(?:,[^\n]*)?:$", re.MULTILINE)
_LISTED = re.compile(r"^\[(\w+)\] ([^\n]*)$", re.MULTILINE)
_NOTE = re.compile(r"^\[?(\w+)\]?[^\n]*?\b(?:on|about) the (\w+)\b", re.MULTILINE)


@dataclass
class Learnt:
    """What transcripts show about one machine."""

    worked: list[str] = field(default_factory=list[str])
    deadly: list[str] = field(default_factory=list[str])
    running: bool = False

    def sentence(self, machine: str) -> str:
        """It in words; empty if nothing is known."""
        parts: list[str] = []
        if self.worked:
            how = "works like this" if self.running else "begins like this"
            parts.append(f"The {machine} {how}: {', then '.join(self.worked)}")
        if self.deadly:
            parts.append(f"On the {machine} never {' or '.join(self.deadly)}")
        return ". ".join(parts)


class Mind:
    """See the module. A `ChatModel`.

    Args:
        seed: of its mistakes.
        errs: chance that an action in a lesson is another one.
        misjudges: chance that a verdict is the opposite.
    """

    model_id = "workshop-mind"

    def __init__(self, seed: int = 0, *, errs: float = 0.03, misjudges: float = 0.0) -> None:
        """See the class."""
        self._seed, self._errs, self._misjudges = seed, errs, misjudges

    def generate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """See `ChatModel`.

        Raises:
            ScriptError: it is asked for a shape that it does not know.
        """
        prompt = "\n".join(message.text for message in messages)
        rng = random.Random(f"{self._seed} {prompt}")
        shape = _fields(schema or {})
        answer = next((make for wanted, make in _ANSWERS if wanted <= shape), None)
        if answer is None:
            raise ScriptError(f"a wish for {sorted(shape)}", do="teach remnant.testbed.agents.mind this shape")
        text = json.dumps(answer(self, prompt, rng))
        return Completion(text, Usage(1, estimate_tokens(prompt), estimate_tokens(text)), self.model_id)

    async def agenerate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """See `ChatModel`."""
        return self.generate(messages, schema=schema, **options)

    def learnt(self, prompt: str, rng: random.Random) -> dict[str, Learnt]:
        """What the transcripts in a prompt show, machine by machine, with this mind's mistakes."""
        found: dict[str, Learnt] = {}
        for part in _runs(prompt):
            for machine, now in _one_run(part).items():
                kept = found.setdefault(machine, Learnt())
                if len(now.worked) > len(kept.worked):
                    kept.worked, kept.running = now.worked, now.running
                kept.deadly += [action for action in now.deadly if action not in kept.deadly]
        for kept in found.values():
            kept.worked = [rng.choice(ACTIONS) if rng.random() < self._errs else action for action in kept.worked]
        return {machine: kept for machine, kept in found.items() if kept.worked or kept.deadly}

    def judge(self, prompt: str, rng: random.Random) -> dict[str, Any]:
        """Whether the steps show success."""
        steps = _STEP.findall(prompt)
        machines = {machine for machine, _, _ in steps}
        running = {machine for machine, _, outcome in steps if outcome.startswith("it runs")}
        asked = len(re.findall(r" and then ", prompt.partition("| task:")[2].partition("\n")[0])) + 1
        good = machines == running and len(running) >= asked
        if rng.random() < self._misjudges:
            good = not good
        return {"reason": "as the steps show", "label": "success" if good else "failure", "confidence": 0.9}

    def lessons(self, prompt: str, rng: random.Random) -> dict[str, Any]:
        """ReasoningBank."""
        items = [
            {"title": f"Starting a {machine}", "description": "", "content": kept.sentence(machine)}
            for machine, kept in self.learnt(prompt, rng).items()
        ]
        return {"items": items}

    def facts(self, prompt: str, rng: random.Random) -> dict[str, Any]:
        """Facts: a note about a machine is replaced by what is known better."""
        notes, _, said = prompt.partition("Conversation:")
        old = {machine: name for name, machine in _NOTE.findall(notes)}
        changes: list[dict[str, str]] = []
        for machine, kept in self.learnt(said, rng).items():
            text = f"Know about the {machine}. {kept.sentence(machine)}"
            known = machine in old and kept.running
            changes.append({"action": "UPDATE" if known else "ADD", "note": old.get(machine, ""), "text": text})
        return {"changes": changes}

    def retrace(self, prompt: str, rng: random.Random) -> dict[str, Any]:
        """ArcMemo: the steps that led somewhere."""
        led = [step for step in _STEP.findall(prompt) if not step[2].startswith("nothing")]
        return {"steps": [{"type": "observation", "text": f"on the {m}: {a} -> {o}"} for m, a, o in led]}

    def pairs(self, prompt: str, rng: random.Random) -> dict[str, Any]:
        """ArcMemo's open concepts."""
        items = [
            {"situation": f"a {machine} has to be started", "suggestion": kept.sentence(machine)}
            for machine, kept in self.learnt(prompt, rng).items()
        ]
        return {"items": items}

    def select(self, prompt: str, rng: random.Random) -> dict[str, Any]:
        """The listed notes about the machines of the task, by any of their names."""
        notes, _, task = prompt.rpartition("Task:")
        asked = {name for names in KINDS for name in names if any(other in task for other in names)}
        return {"notes": [name for name, line in _LISTED.findall(notes) if asked & set(re.findall(r"\w+", line))]}

    def pseudocode(self, prompt: str, rng: random.Random) -> dict[str, Any]:
        """ArcMemo's typed concepts, first half."""
        steps = [step["text"] for step in self.retrace(prompt, rng)["steps"]]
        return {"pseudocode": "\n".join(steps), "summary": "start a machine"}

    def concepts(self, prompt: str, rng: random.Random) -> dict[str, Any]:
        """ArcMemo's typed concepts, second half."""
        found = [
            {"name": f"start the {m}", "kind": "routine", "cues": [m], "implementation": kept.sentence(m).split(". ")}
            for m, kept in self.learnt(prompt, rng).items()
        ]
        return {"concepts": found}

    def experiences(self, prompt: str, rng: random.Random) -> dict[str, Any]:
        """ReMe."""
        items = [
            {"when_to_use": f"a {machine} has to be started", "experience": kept.sentence(machine), "confidence": 0.9}
            for machine, kept in self.learnt(prompt, rng).items()
        ]
        return {"items": items[:3]}

    def check(self, prompt: str, rng: random.Random) -> dict[str, Any]:
        """ReMe: a lesson is good if the run bears it out; one that stands already, word for word, is the same."""
        lesson, _, stored = prompt.partition("otes")
        same = next((name for name, line in _LISTED.findall(stored) if _body(line) in lesson), "")
        return {"valid": True, "score": 0.9, "same_as": same}

    def guide(self, prompt: str, rng: random.Random) -> dict[str, Any]:
        """ReMe: the notes about the task's machines, each as it stands."""
        bodies = {name: _body(line) for name, line in _LISTED.findall(prompt)}
        return {"notes": [{"note": name, "guidance": bodies[name]} for name in self.select(prompt, rng)["notes"]]}

    def thoughts(self, prompt: str, rng: random.Random) -> dict[str, Any]:
        """TiM."""
        found = [
            {"head": machine, "relation": "works by", "tail": ", ".join(kept.worked), "text": kept.sentence(machine)}
            for machine, kept in self.learnt(prompt, rng).items()
        ]
        return {"thoughts": found}

    def compare(self, prompt: str, rng: random.Random) -> dict[str, Any]:
        """The best of several runs: that with the most machines running, then that with the fewest steps."""
        parts = re.split(r"^Run (\w+):$", prompt, flags=re.MULTILINE)
        named = list(zip(parts[1::2], parts[2::2], strict=True))
        best = max(named, key=lambda item: (item[1].count("it runs"), -len(_STEP.findall(item[1]))))
        return {"reason": "most of its machines run", "run": best[0]}


def _runs(prompt: str) -> list[str]:
    """The transcripts in a prompt, one per run."""
    parts = _RUN.split(prompt)
    return parts[2::2] or [prompt]


def _one_run(part: str) -> dict[str, Learnt]:
    found: dict[str, Learnt] = {}
    for machine, action, outcome in _STEP.findall(part):
        kept = found.setdefault(machine, Learnt())
        if "alarm" in outcome:
            kept.deadly.append(action)
        elif not outcome.startswith("nothing"):
            kept.worked.append(action)
            kept.running = outcome.startswith("it runs")
    return found


def _fields(schema: Mapping[str, Any]) -> set[str]:
    """The names in a JSON Schema, those of its list items included."""
    names: set[str] = set()
    for name, inner in dict(schema.get("properties", {})).items():
        names |= {name, *(f"{name}.{field}" for field in _fields(inner.get("items", {})))}
    return names


def _body(line: str) -> str:
    """A listed note without the situation that it is for."""
    return line.partition(" | ")[2] or line


_Answer = Callable[[Mind, str, random.Random], "dict[str, Any]"]

_ANSWERS: tuple[tuple[frozenset[str], _Answer], ...] = (
    (frozenset({"label", "confidence"}), Mind.judge),
    (frozenset({"items.title", "items.content"}), Mind.lessons),
    (frozenset({"items.situation"}), Mind.pairs),
    (frozenset({"steps.text"}), Mind.retrace),
    (frozenset({"pseudocode"}), Mind.pseudocode),
    (frozenset({"concepts.name"}), Mind.concepts),
    (frozenset({"items.when_to_use"}), Mind.experiences),
    (frozenset({"ends"}), lambda mind, prompt, rng: {"ends": []}),
    (frozenset({"valid", "score"}), Mind.check),
    (frozenset({"notes.guidance"}), Mind.guide),
    (frozenset({"notes"}), Mind.select),
    (frozenset({"changes.action"}), Mind.facts),
    (frozenset({"thoughts.head"}), Mind.thoughts),
    (frozenset({"remove.note"}), lambda mind, prompt, rng: {"remove": []}),
    (frozenset({"groups.notes"}), lambda mind, prompt, rng: {"groups": []}),
    (frozenset({"run", "reason"}), Mind.compare),
)
