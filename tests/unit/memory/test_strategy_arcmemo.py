"""ArcMemo: concepts out of solutions, open and typed, chosen by a model that sees a small memory whole."""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from remnant.errors import ConfigError
from remnant.memory import Memory, Record, ScriptedChatModel
from remnant.memory.record import estimate_tokens
from remnant.memory.strategies import ArcMemo
from remnant.memory.strategies.concept import Concept, Parameter, agrees, concept_of, folded

Make = Callable[..., Memory]

RETRACE = ("line of thought that leads", json.dumps({"steps": [{"type": "thought", "text": "sorting would help"}]}))
PSEUDO = ("Write the solution as short pseudocode", json.dumps({"pseudocode": "sort\nzip", "summary": "sorts"}))


def _lessons(*pairs: tuple[str, str]) -> str:
    return json.dumps({"items": [{"situation": s, "suggestion": t} for s, t in pairs]})


def _concepts(*concepts: dict[str, Any]) -> str:
    return json.dumps({"concepts": list(concepts)})


def _notes(*names: str) -> str:
    return json.dumps({"notes": list(names)})


SORT = {
    "name": "sort",
    "kind": "routine",
    "subtype": "list routine",
    "output_typing": "list[int]",
    "parameters": [{"name": "xs", "typing": "list[int]", "description": "any order"}],
    "cues": ["out of order"],
    "implementation": ["sorted(xs)"],
}


def _run(memory: Memory, task: str = "order the numbers", verdict: Any = "success", **step: Any) -> str:
    episode = memory.open_episode(task)
    memory.observe(episode.id, {"role": "assistant", "content": f"solved {task}", **step})
    memory.close_episode(episode.id, verdict)
    return episode.id


def _open_memory(make: Make, *script: Any, **options: Any) -> Memory:
    return make(strategy=ArcMemo(**options), llm=ScriptedChatModel([*script, RETRACE, PSEUDO]))


def test_both_halves_of_an_open_concept_are_kept_and_shown_once(make: Make):
    pairs = [("the items are in no order", "sort them first"), (" ", "x"), ("y", "")]
    memory = _open_memory(make, ("Take out of it", _lessons(*pairs)), ("Concepts:", _notes("m1")))
    id = _run(memory)
    (record,) = memory.records()
    assert (record.kind, record.trigger, record.content) == ("concept", "the items are in no order", "sort them first")
    assert set(record.payload["learnt"]) == {id}
    shown = memory.render(memory.recall("something"))
    assert shown.count("the items are in no order") == shown.count("sort them first") == 1


def test_the_second_call_sees_the_line_of_thought_and_not_the_steps(make: Make):
    model = ScriptedChatModel([RETRACE, ("Take out of it", _lessons())])
    _run(make(strategy="arcmemo", llm=model), content="def f(): secret code")
    assert "secret code" in model.prompts[0]
    assert "secret code" not in model.prompts[1]
    assert "| thought: sorting would help" in model.prompts[1]


@pytest.mark.parametrize("form", ["open", "typed"])
def test_only_what_was_solved_teaches(make: Make, form: Any):
    script = [
        ("Decide whether", "nonsense"),
        ("Take out of it", _lessons(("a", "b"))),
        ("known so far", _concepts(SORT)),
    ]
    memory = _open_memory(make, *script, form=form)
    _run(memory, verdict="failure")
    _run(memory, verdict="unknown")
    assert memory.records() == []
    _run(memory)
    assert len(memory.records()) == 1


def test_of_a_group_the_shortest_solution_teaches(make: Make):
    model = ScriptedChatModel([RETRACE, ("Take out of it", _lessons(("a", "b")))])
    memory = make(strategy="arcmemo", llm=model)
    ends: list[tuple[Any, list[str]]] = [("success", ["long", "way"]), ("success", ["short"]), ("failure", [])]
    for verdict, words in ends:
        episode = memory.open_episode("t", group="g")
        for word in words:
            memory.observe(episode.id, {"role": "assistant", "content": word})
        memory.close_episode(episode.id, verdict)
    memory.close_group("g")
    assert len(model.prompts) == 2
    assert "short" in model.prompts[0]
    assert "way" not in model.prompts[0]
    assert set(memory.records()[0].payload["learnt"]) == {"g"}


def test_a_small_memory_is_seen_whole_and_the_model_decides(make: Make):
    model = ScriptedChatModel([("Concepts:", lambda prompt: _notes(_name(prompt, "zebra"), _name(prompt, "apple")))])
    memory = make(strategy="arcmemo", llm=model)
    memory.add([Record(f"{word} advice", trigger=f"{word} case") for word in ("apple", "mango", "zebra")])
    hits = memory.recall("a task that shares no word with them")
    assert [hit.text for hit in hits] == ["zebra advice", "apple advice"]
    assert "when: mango case | mango advice" in model.prompts[0]
    assert memory.recall("anything", kinds=["fact"])
    assert memory.recall("anything", kinds=["strategy"]) == []
    assert len(model.prompts) == 2  # nothing to choose among: nobody was asked


def _name(prompt: str, text: str) -> str:
    found = re.search(r"\[(m\d+)\] [^\n]*" + re.escape(text), prompt)
    assert found
    return found[1]


def test_above_the_token_cap_the_retriever_chooses_first(make: Make):
    model = ScriptedChatModel([("Concepts:", _notes("m1"))])
    memory = make(strategy=ArcMemo(max_select_tokens=200), llm=model)
    memory.add([Record(f"advice {n} about {'pears' if n == 77 else 'plums'}", trigger=f"case {n}") for n in range(100)])
    memory.add([Record("pear advice " + "long " * 300, trigger="pears")])
    hits = memory.recall("77 pears")
    assert [hit.text for hit in hits] == ["advice 77 about pears"]
    listed = model.prompts[0].split("Concepts:\n")[1].split("\n\nTask:")[0]
    assert 0 < estimate_tokens(listed) <= 300
    assert "case 5 " not in listed
    assert memory.recall("nothing of the kind") == []  # found by nothing, and too much to look through


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (_notes("m2", "m2", "[M1]"), ["b", "a"]),
        (_notes("SECOND  case", "m77", "frist case"), ["b", "a"]),
        (_notes(), []),
        (_notes("m77", "quite another"), ["a", "b", "c"]),
        ("I would use the second.", ["a", "b", "c"]),
    ],
)
def test_names_titles_and_near_titles_are_understood_and_others_dropped(make: Make, answer: str, found: list[str]):
    memory = make(strategy="arcmemo", llm=ScriptedChatModel([("Concepts:", answer)]))
    memory.add([Record(t, trigger=f"{w} case") for t, w in (("a", "first"), ("b", "second"), ("c", "third"))])
    assert sorted(hit.text for hit in memory.recall("first second third case")) == sorted(found)
    if len(found) == 2:
        assert [hit.text for hit in memory.recall("case")] == found


def test_no_more_than_asked_for_and_no_model_takes_the_order_of_the_retriever(make: Make):
    memory = make(strategy=ArcMemo(most=2))
    memory.add([Record(f"advice {n}", trigger="the case") for n in range(5)])
    assert len(memory.recall("the case")) == 2
    for bad in ({"form": "loose"}, {"most": 0}, {"max_select_tokens": 0}):
        with pytest.raises(ConfigError):
            ArcMemo(**bad)  # type: ignore[arg-type]


def test_a_lesson_that_is_known_is_marked(make: Make):
    memory = _open_memory(
        make, ("Take out of it", _lessons(("In no order", "Sort  first"), ("in no order", "sort first")))
    )
    ids = {_run(memory), _run(memory, "another task")}
    (record,) = memory.records()
    assert set(record.payload["learnt"]) == ids


def test_a_typed_concept_is_joined_by_name_and_later_parts_only_add(make: Make):
    more = {
        "name": " Sort ",
        "output_typing": "",
        "parameters": [
            {"name": "XS", "description": "ignored: there is one"},
            {"name": "key", "typing": "Key := (int) -> int", "description": "what by"},
        ],
        "cues": ["Out of  order", "a ranking is asked for"],
        "implementation": ["stable"],
    }
    answers = [_concepts(SORT), _concepts(more), _concepts(more)]
    memory = _open_memory(make, ("known so far", lambda _: answers.pop(0)), form="typed")
    for task in ("one", "two", "three"):
        _run(memory, task)
    (record,) = memory.records()
    concept = concept_of(record)
    assert (concept.name, concept.kind, concept.subtype) == ("sort", "routine", "list routine")
    assert [(p.name, p.typing, p.description) for p in concept.parameters] == [
        ("xs", "list[int]", "any order"),
        ("key", "Key := (int) -> int", "what by"),
    ]
    assert concept.cues == ("out of order", "a ranking is asked for")
    assert concept.implementation == ("sorted(xs)", "stable")
    assert "used in 3 tasks" in record.content
    assert record.trigger == "sort; out of order; a ranking is asked for"
    assert len(memory.audit(record.id)) == 3
    memory.undo(memory.changes()[0])
    assert "used in 2 tasks" in memory.records()[0].content


def test_the_same_name_with_another_typing_is_another_concept(make: Make):
    other = {**SORT, "output_typing": "str", "parameters": []}
    answers = [_concepts(SORT), _concepts(other), _concepts({"name": "sort", "output_typing": "str", "cues": ["text"]})]
    memory = _open_memory(make, ("known so far", lambda _: answers.pop(0)), form="typed")
    for task in ("one", "two", "three"):
        _run(memory, task)
    assert {concept_of(r).output_typing: len(r.payload["learnt"]) for r in memory.records()} == {
        "list[int]": 1,
        "str": 2,
    }


def test_a_new_concept_of_no_kind_is_left_out_and_an_empty_name_too(make: Make):
    script = ("known so far", _concepts({"name": "mystery"}, {"name": " ", "kind": "routine"}, SORT))
    memory = _open_memory(make, script, form="typed")
    _run(memory)
    assert [concept_of(record).name for record in memory.records()] == ["sort"]


def test_the_distilling_model_is_shown_what_is_known_by_kind_with_its_types(make: Make):
    pair = {"name": "pair up", "kind": "structure", "output_typing": "Pair := (int, int)", "cues": ["sorts"]}
    answers = [_concepts(SORT, pair), _concepts()]
    model = ScriptedChatModel([("known so far", lambda _: answers.pop(0)), PSEUDO])
    memory = make(strategy=ArcMemo("typed"), llm=model)
    _run(memory)
    _run(memory, "sorts again")
    first, second = (p for p in model.prompts if "known so far:" in p)
    assert "(none)" in first
    assert "routine, list routine:\n- sort(xs: list[int]) -> list[int]" in second
    assert "types:\n- Pair := (int, int)" in second
    assert second.index("pair up") > second.index("- sort(")


def test_concepts_of_one_name_that_were_imported_are_merged_when_it_is_learnt(make: Make):
    memory = _open_memory(make, ("known so far", _concepts(SORT)), form="typed")
    for own, cue in (("e1", "ranking"), ("e2", "median")):
        part = {"name": "sort", "kind": "routine", "cues": [cue]}
        memory.add(Record("sort", trigger="sort", kind="concept", payload={"form": "typed", "learnt": {own: part}}))
    _run(memory)
    (record,) = memory.records()
    assert set(concept_of(record).cues) == {"ranking", "median", "out of order"}
    assert len(record.parents) == 2
    assert memory.stats()["archived"] == 2
    memory.undo(memory.changes()[0])
    assert len(memory.records()) == 2


def test_folding_is_idempotent_and_its_unions_do_not_depend_on_order():
    parts = [
        Concept("sort", "routine", cues=("a", "b"), parameters=(Parameter("x"),)).part(),
        Concept("sort", cues=("c", "A"), parameters=(Parameter("X", "int"), Parameter("y"))).part(),
        Concept("sort", description="orders", implementation=("i",)).part(),
    ]
    once = folded(parts)
    assert folded([once.part()]) == folded([*parts, *parts]) == once
    backwards = folded(reversed(parts))
    for name in ("cues", "implementation"):
        assert {x.lower() for x in getattr(once, name)} == {x.lower() for x in getattr(backwards, name)}
    assert {p.name.lower(): p.typing for p in once.parameters} == {
        p.name.lower(): p.typing for p in backwards.parameters
    }
    assert folded([]).name == ""
    assert folded(["junk", 7, {"cues": 3, "parameters": ["x", ["a", "b"]], "name": 5}]) == Concept("")
    assert agrees(Concept("a", "routine"), Concept("a"))
    assert not agrees(Concept("a", "routine"), Concept("a", "structure"))


def test_tasks_are_solved_with_the_pieces_of_other_tasks(make: Make):
    """Compositions of twelve primitives; the solver knows only those that memory names to it."""
    primitives = [
        f"{verb} {thing}" for verb in ("double", "drop", "swap", "sort") for thing in ("ends", "evens", "all")
    ]
    pairs = [(a, b) for i, a in enumerate(primitives) for b in primitives[i + 1 :]]
    train = [(primitives[i], primitives[i + 1]) for i in range(0, 12, 2)]

    def pieces(prompt: str) -> Iterable[str]:
        return re.findall("|".join(primitives), prompt.split("Solution:")[-1])

    model = ScriptedChatModel(
        [
            ("short pseudocode", lambda p: json.dumps({"pseudocode": "\n".join(pieces(p))})),
            ("known so far", lambda p: _concepts(*({"name": n, "kind": "routine"} for n in dict.fromkeys(pieces(p))))),
            ("Concepts:", lambda p: _notes(*dict.fromkeys(pieces(p.split("Task:")[1])))),
        ]
    )
    memory = make(strategy=ArcMemo("typed"), llm=model)

    def solved(pair: tuple[str, str]) -> bool:
        known = {concept_of(hit.record).name for hit in memory.recall(f"{pair[0]}, then {pair[1]}")}
        return set(pair) <= known

    assert not any(solved(pair) for pair in pairs[:5])
    for pair in train:
        _run(memory, f"{pair[0]}, then {pair[1]}")
    assert all(solved(pair) for pair in pairs)
    assert len(memory.records()) == 12
