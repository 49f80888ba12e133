"""A scripted, fallible agent: it reads notes as text, follows them where they apply, and else tries things out.

It can read but not infallibly: of the notes it takes in a limited number of sentences, now and then it
overlooks what a sentence warns of, and now and then its hand slips. What it knows of language is which
names mean the same kind of machine.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from remnant.testbed.agents.world import ACTIONS, KINDS, Run

READS = 14
"""Sentences of notes that are taken in."""

OVERLOOKS = 0.1
"""Chance that a warning in a sentence is overlooked."""

SLIPS = 0.04
"""Chance that an action is not the one intended."""

_NAMES = {name: kind for kind, names in enumerate(KINDS) for name in names}
_NAME = re.compile(r"\b(" + "|".join(_NAMES) + r")s?\b", re.IGNORECASE)
_ACTION = re.compile("|".join(re.escape(action) for action in ACTIONS), re.IGNORECASE)
_ENTRY = re.compile(r"^- \[(\S+) \|", re.MULTILINE)
_DEADLY = re.compile(r"\b(?:alarm|never|avoid|must not|do not)\b", re.IGNORECASE)
_USELESS = re.compile(r"\b(?:nothing happens|useless|no effect)\b", re.IGNORECASE)


@dataclass
class Knowledge:
    """What the notes say about one kind of machine, as it was understood.

    Args:
        plans: actions in order, one list per note that gives some, with the note's id.
        deadly: actions to keep away from.
        sources: ids of the notes that warn.
    """

    plans: list[tuple[str, list[str]]] = field(default_factory=list[tuple[str, list[str]]])
    deadly: set[str] = field(default_factory=set[str])
    sources: set[str] = field(default_factory=set[str])


def understand(notes: str, rng: random.Random) -> dict[int, Knowledge]:
    """Read notes as far as attention goes; kind of machine -> what they say about it."""
    found: dict[int, Knowledge] = {}
    heads = list(_ENTRY.finditer(notes))
    left = READS
    ends = [head.start() for head in heads[1:]] + [len(notes)]
    for head, end in zip(heads, ends[: len(heads)], strict=True):
        body = notes[head.end() : end]
        kind: int | None = None
        plans: dict[int, list[str]] = {}
        for sentence in re.split(r"[.;\n]", body):
            named = _NAME.search(sentence)
            kind = _NAMES[named[1].lower()] if named else kind
            actions = [action.lower() for action in _ACTION.findall(sentence)]
            if kind is None or not actions:
                continue
            if not left:
                return found
            left -= 1
            _take_in(found.setdefault(kind, Knowledge()), plans.setdefault(kind, []), sentence, actions, head[1], rng)
        for about, plan in plans.items():
            if plan:
                found[about].plans.append((head[1], plan))
    return found


def _take_in(
    known: Knowledge, plan: list[str], sentence: str, actions: list[str], note: str, rng: random.Random
) -> None:
    seen = rng.random() >= OVERLOOKS
    if seen and _DEADLY.search(sentence):
        known.deadly.update(actions)
        known.sources.add(note)
    elif not (seen and _USELESS.search(sentence)):
        plan += [action for action in actions if action not in plan]


def solve(run: Run, notes: str, rng: random.Random, tell: Callable[[str], None]) -> set[str]:
    """Work on a task until it is done or time is up.

    Args:
        run: the try.
        notes: what memory put into the prompt.
        rng: chance.
        tell: gets each step as a line of text.

    Returns:
        ids of the notes that were used.
    """
    known = understand(notes, rng)
    used: set[str] = set()
    while (place := run.at) is not None:
        kind, name = run.task.machines[place]
        used |= _machine(run, place, name, known.get(kind, Knowledge()), rng, tell)
    return used


def _machine(
    run: Run, place: int, name: str, known: Knowledge, rng: random.Random, tell: Callable[[str], None]
) -> set[str]:
    source, plan = known.plans[0] if known.plans else ("", [])
    waiting, worked, vain = list(plan), list[str](), set[str]()
    while run.at == place:
        open_actions = [a for a in ACTIONS if a not in worked and a not in vain]
        safe = [a for a in open_actions if a not in known.deadly] or open_actions
        following = [a for a in waiting if a in safe]
        intended = following[0] if following else rng.choice(safe)
        action = rng.choice(ACTIONS) if rng.random() < SLIPS else intended
        waiting = [a for a in waiting if a != action]
        outcome = run.act(action)
        tell(f"on the {name}: {action} -> {outcome}")
        if outcome.startswith(("nothing", "alarm")):
            vain.add(action)
        else:
            worked.append(action)
            vain.clear()
    return {note for note in (source, *known.sources) if note}
