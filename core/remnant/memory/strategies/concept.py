"""Typed concepts of ArcMemo: what each episode said of one, merged by name into one record.

A record keeps every episode's part in `payload["learnt"]`; the concept is folded from the parts, in order of their
names, so the same parts give the same concept whatever order they came in, and a part can be taken out again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from remnant.memory.ops import Add, Merge, Op, Update
from remnant.memory.record import Record
from remnant.memory.rounds import LEARNT
from remnant.memory.strategies.base import known, learnt
from remnant.memory.strategies.trace import clipped, least, names, plain
from remnant.memory.strategy import DistilContext

MOST_PARTS = 12
"""Parameters, cues and implementation notes of one concept at most, each, as a model may answer and as is shown."""

_TYPE = re.compile(r"(\w[\w ]*?)\s*:=\s*([^;|\n]+)")


@dataclass(frozen=True)
class Parameter:
    """What a concept is applied to; its typing may say `list[int]` or define a name: `Pair := (x, y)`."""

    name: str
    typing: str = ""
    description: str = ""


@dataclass(frozen=True)
class Concept:
    """One reusable piece of a solution, as the model answers it."""

    name: str
    kind: Literal["structure", "routine", "unknown"] = "unknown"
    subtype: str = ""
    output_typing: str = ""
    description: str = ""
    parameters: tuple[Parameter, ...] = field(default=(), metadata={"max_items": MOST_PARTS})
    cues: tuple[str, ...] = field(default=(), metadata={"max_items": MOST_PARTS})
    implementation: tuple[str, ...] = field(default=(), metadata={"max_items": MOST_PARTS})

    def part(self) -> dict[str, Any]:
        """What one episode says of the concept, as JSON for a record's payload."""
        return {
            "name": clipped(self.name, 80),
            "kind": self.kind,
            "subtype": clipped(self.subtype, 80),
            "output_typing": clipped(self.output_typing, 200),
            "description": clipped(self.description, 400),
            "parameters": [
                [clipped(p.name, 80), clipped(p.typing, 200), clipped(p.description, 200)]
                for p in self.parameters
                if p.name.strip()
            ],
            "cues": [clipped(cue, 200) for cue in self.cues if cue.strip()],
            "implementation": [clipped(note, 400) for note in self.implementation if note.strip()],
        }


def is_concept(record: Record) -> bool:
    """Whether a record is a typed concept."""
    return record.kind == "concept" and record.payload.get("form") == "typed" and bool(learnt(record))


def folded(parts: Iterable[object]) -> Concept:
    """One concept out of what several episodes said of it.

    Of name, kind, subtype, typing and description the first that says something counts; parameters are joined by
    name, a later typing or description filling one that is missing; cues and implementation notes are unions.
    """
    said = [cast("Mapping[str, Any]", part) for part in parts if isinstance(part, Mapping)]

    def first(name: str, default: str = "") -> str:
        values = (part.get(name) for part in said)
        return next((value for value in values if isinstance(value, str) and value not in ("", default)), default)

    parameters: dict[str, Parameter] = {}
    for part in said:
        for item in cast("Sequence[object]", part.get("parameters") or ()):
            if len(texts := names(item)) == 3:
                old = parameters.get(plain(texts[0]), Parameter(texts[0]))
                joined = Parameter(old.name, old.typing or texts[1], old.description or texts[2])
                parameters[plain(texts[0])] = joined
    kind = first("kind", "unknown")
    return Concept(
        first("name"),
        "structure" if kind == "structure" else "routine" if kind == "routine" else "unknown",
        first("subtype"),
        first("output_typing"),
        first("description"),
        tuple(parameters.values()),
        _union(part.get("cues") for part in said),
        _union(part.get("implementation") for part in said),
    )


def concept_of(record: Record) -> Concept:
    """The concept that a record holds."""
    parts = learnt(record)
    return folded(parts[own] for own in sorted(parts))


def agrees(one: Concept, two: Concept) -> bool:
    """Whether two concepts of one name are one: nothing that both say of kind and typing differs."""
    typings = {plain(p.name): plain(p.typing) for p in one.parameters}
    pairs = [(plain(p.typing), typings.get(plain(p.name), "")) for p in two.parameters]
    pairs.append((plain(one.output_typing), plain(two.output_typing)))
    kinds = {one.kind, two.kind} - {"unknown"}
    return len(kinds) < 2 and all(a == b or not a or not b for a, b in pairs)


def texts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record that follow from its parts: what it is found by, and what is shown."""
    concept = folded(parts[own] for own in sorted(parts))
    tasks = f"used in {len(parts)} tasks" if len(parts) > 1 else "used in 1 task"
    lines = [f"{signature(concept)} ({kind_of(concept)}; {tasks})", concept.description]
    lines += [f"{p.name}: {p.description}" for p in concept.parameters if p.description]
    lines += [f"- {note}" for note in concept.implementation]
    return {
        "trigger": "; ".join((concept.name, *concept.cues)),
        "content": clipped("\n".join(line for line in lines if line), 4000),
    }


def signature(concept: Concept) -> str:
    """Name, parameters and output, as a line of code would say them."""
    parameters = ", ".join(f"{p.name}: {p.typing}" if p.typing else p.name for p in concept.parameters)
    output = f" -> {concept.output_typing}" if concept.output_typing else ""
    return f"{concept.name}({parameters}){output}"


def kind_of(concept: Concept) -> str:
    """Structure or routine, and of what sort."""
    return ", ".join(part for part in (concept.kind, concept.subtype) if part)


def line_of(concept: Concept) -> str:
    """The concept in one line, for a model that chooses among many."""
    cues = f" | when: {'; '.join(concept.cues)}" if concept.cues else ""
    return f"{signature(concept)} ({kind_of(concept)}){cues}"


def types_in(concepts: Iterable[Concept]) -> list[str]:
    """The types that typings define, such as `Pair := (x, y)`, once each."""
    typings = [typing for c in concepts for typing in (c.output_typing, *(p.typing for p in c.parameters))]
    found = {plain(name): f"{name.strip()} := {body.strip()}" for t in typings for name, body in _TYPE.findall(t)}
    return [found[name] for name in sorted(found)]


class Merging:
    """One solution's concepts on their way into memory.

    Args:
        context: of the distillation.
        base: a new record without its text.
        own: the experience.
        stored: concepts that are known to be stored; others are looked up by name.
    """

    def __init__(self, context: DistilContext, base: Record, own: str, stored: Sequence[Record]) -> None:
        """See the class."""
        self._context, self._base, self._own = context, base, own
        self._stored = {record.id: record for record in stored}

    def ops(self, concepts: Sequence[Concept]) -> list[Op]:
        """One operation per concept: added, joined to those of its name, or left out if nobody says what it is."""
        new: dict[str, Concept] = {}
        for concept in concepts:
            key = plain(concept.name)
            if key and (key not in new or agrees(new[key], concept)):
                parts = [item.part() for item in (new.get(key), concept) if item]
                new[key] = folded(parts)
        return [op for concept in new.values() if (op := self._op(concept))]

    def _op(self, concept: Concept) -> Op | None:
        same = [record for record in self._named(concept) if agrees(concept_of(record), concept)]
        if not same:
            if concept.kind == "unknown":
                return None
            parts = {self._own: concept.part()}
            return Add(replace(self._base, payload={"form": "typed", LEARNT: parts}, **texts(parts)))
        parts = {own: part for record in reversed(same) for own, part in learnt(record).items()}
        parts |= {self._own: concept.part()}
        trust = least((self._base.trust, *(record.trust for record in same)))
        fields: dict[str, Any] = {"payload": {"form": "typed", LEARNT: parts}, "trust": trust, **texts(parts)}
        if len(same) == 1:
            return Update(same[0].id, fields)
        return Merge(tuple(record.id for record in same), replace(self._base, **fields))

    def _named(self, concept: Concept) -> list[Record]:
        near = known(self._context, concept.name, 50, "concept")
        found = {record.id: record for record in near if is_concept(record)} | self._stored
        name = plain(concept.name)
        return [found[id] for id in sorted(found) if plain(concept_of(found[id]).name) == name]


def rewritten(taken_back: Iterable[Record]) -> dict[str, Op]:
    """The texts of merged concepts without the part that an episode no longer has in them."""
    ops: dict[str, Op] = {}
    for record in taken_back:
        if record.status == "active" and is_concept(record):
            fields = texts(learnt(record))
            if any(getattr(record, name) != text for name, text in fields.items()):
                ops[record.id] = Update(record.id, {**fields, "provenance": record.provenance})
    return ops


def catalogue(records: Sequence[Record], most_tokens: int) -> str:
    """Concepts by kind, and the types they define, as far as they fit; nearest to the solution first in each."""
    concepts = [concept_of(record) for record in records]
    lines = [f"- {line_of(concept)}" for concept in concepts]
    left, shown = most_tokens * 4, 0
    while shown < len(lines) and (left := left - len(lines[shown])) >= 0:
        shown += 1
    sections: dict[str, list[str]] = {}
    for concept, line in zip(concepts[:shown], lines[:shown], strict=True):
        sections.setdefault(kind_of(concept), []).append(line)
    types = types_in(concepts[:shown])
    parts = [f"{kind}:\n" + "\n".join(sections[kind]) for kind in sorted(sections)]
    parts += ["types:\n" + "\n".join(f"- {item}" for item in types)] if types else []
    return "\n".join(parts) or "(none)"


def _union(lists: Iterable[object]) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for items in lists:
        for item in names(items):
            found.setdefault(plain(item), item)
    return tuple(found.values())[:MOST_PARTS]
