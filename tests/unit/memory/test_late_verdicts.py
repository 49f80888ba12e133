"""A late verdict takes back exactly what its episode contributed, whatever others wrote to the same records since."""

import json
import re
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.memory import Memory, Record, ScriptedChatModel, Update
from remnant.memory.strategies import ArcMemo, ReasoningBank
from remnant.memory.strategies.concept import concept_of

Make = Callable[..., Memory]


def _taught(prompt: str) -> list[str]:
    """What the steps of the episode in a prompt name, by how it ended: the negation if it failed."""
    words = re.findall(r"teaches (\w*)", prompt)[-1]
    return [f"no{word}" if "ended in failure" in prompt else word for word in words]


def _lessons(prompt: str) -> str:
    return json.dumps({"items": [{"title": w, "description": "", "content": f"do {w}"} for w in _taught(prompt)[:3]]})


def _concepts(prompt: str) -> str:
    cues = _taught(prompt)
    return json.dumps({"concepts": [{"name": "sort", "kind": "routine", "cues": cues}] if cues else []})


def _run(memory: Memory, words: str, verdict: Any = "success", task: str = "lamp") -> str:
    episode = memory.open_episode(task)
    memory.observe(episode.id, {"role": "assistant", "content": f"teaches {words}"})
    memory.close_episode(episode.id, verdict)
    return episode.id


def _kept(memory: Memory) -> dict[str, set[str]]:
    return {record.payload["title"]: set(record.payload["learnt"]) for record in memory.records()}


VERDICTS = st.sampled_from(["success", "failure", "unknown"])
EVENT = st.one_of(
    st.tuples(st.just("run"), st.sampled_from(["a", "b", "ab"]), VERDICTS),
    st.tuples(st.just("late"), st.integers(0, 2), VERDICTS),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(EVENT, min_size=3, max_size=9))
def test_lessons_are_those_of_the_verdicts_that_stand(events: list[Any]):
    model = ScriptedChatModel([("lamp", _lessons)])
    bank = ReasoningBank(judge=False)
    with Memory.open(":memory:", bank, scope="a", llm=model, write="inline", strict=True) as memory:
        stands: dict[str, tuple[str, str]] = {}
        for kind, what, verdict in events:
            if kind == "run":
                stands[_run(memory, what, verdict)] = (what, verdict)
            elif len(stands) > what:
                id = list(stands)[what]
                memory.feedback(id, verdict=verdict)
                stands[id] = (stands[id][0], verdict)
        expected: dict[str, set[str]] = {}
        for id, (words, verdict) in stands.items():
            for word in words if verdict != "unknown" else ():
                expected.setdefault(f"no{word}" if verdict == "failure" else word, set()).add(id)
        assert _kept(memory) == expected
        for record in memory.records():
            sources = {source.source_id for source in record.provenance if source.source_type == "episode"}
            assert sources == set(record.payload["learnt"])


@settings(max_examples=40, deadline=None)
@given(st.lists(EVENT, min_size=3, max_size=9))
def test_a_merged_concept_holds_the_parts_of_the_successes_that_stand(events: list[Any]):
    model = ScriptedChatModel([("An agent solved", _pseudocode), ("known so far", _concepts)])
    arcmemo = ArcMemo("typed", judge=False)
    with Memory.open(":memory:", arcmemo, scope="a", llm=model, write="inline", strict=True) as memory:
        stands: dict[str, tuple[str, str]] = {}
        for kind, what, verdict in events:
            if kind == "run":
                stands[_run(memory, what, verdict)] = (what, verdict)
            elif len(stands) > what:
                id = list(stands)[what]
                memory.feedback(id, verdict=verdict)
                stands[id] = (stands[id][0], verdict)
        parts = {id: words for id, (words, verdict) in stands.items() if verdict == "success" and words}
        records = memory.records()
        assert len(records) == bool(parts)
        for record in records:
            assert set(record.payload["learnt"]) == set(parts)
            assert set(concept_of(record).cues) == set("".join(parts.values()))
            assert set(record.trigger.split("; ")) == {"sort", *"".join(parts.values())}
            assert f"used in {len(parts)} task" in record.content


def _pseudocode(prompt: str) -> str:
    return json.dumps({"pseudocode": f"teaches {''.join(_taught(prompt))}"})


def test_a_lesson_stays_while_another_episode_teaches_it_and_goes_with_the_last(make: Make):
    memory = make(strategy=ReasoningBank(judge=False), llm=ScriptedChatModel([("lamp", _lessons)]))
    first, second = _run(memory, "a"), _run(memory, "a")
    memory.feedback(first, verdict="unknown")
    assert _kept(memory) == {"a": {second}}
    memory.feedback(second, verdict="unknown")
    assert _kept(memory) == {}
    memory.feedback(first, success=True)
    assert _kept(memory) == {"a": {first}}


def test_what_a_person_changed_is_left_alone_even_if_others_taught_it_too(make: Make):
    memory = make(strategy=ReasoningBank(judge=False), llm=ScriptedChatModel([("lamp", _lessons)]))
    first = _run(memory, "a")
    (record,) = memory.records()
    memory.apply([Update(record.id, {"content": "do a, gently"})], "better", "ada")
    second = _run(memory, "a")
    memory.feedback(first, verdict="unknown")
    assert sorted(r.content for r in memory.records()) == ["a\ndo a", "do a, gently"]
    memory.feedback(second, verdict="unknown")
    assert [r.content for r in memory.records()] == ["do a, gently"]


def test_what_a_person_undid_does_not_count_as_changed(make: Make):
    memory = make(strategy=ReasoningBank(judge=False), llm=ScriptedChatModel([("lamp", _lessons)]))
    first = _run(memory, "a")
    (record,) = memory.records()
    memory.undo(memory.apply([Update(record.id, {"content": "other"})], "better", "ada"))
    memory.feedback(first, verdict="unknown")
    assert memory.records() == []


def test_a_record_by_hand_that_episodes_taught_as_well_outlives_them(make: Make):
    memory = make(strategy=ReasoningBank(judge=False), llm=ScriptedChatModel([("lamp", _lessons)]))
    (id,) = memory.add(Record("a\ndo a", trigger="lamp", kind="strategy"))
    first = _run(memory, "a")
    assert set(memory.get(id).payload["learnt"]) == {first}  # type: ignore[union-attr]
    memory.feedback(first, verdict="unknown")
    (record,) = memory.records()
    assert (record.id, dict(record.payload), record.provenance) == (id, {}, ())


def test_harm_that_was_stopped_goes_with_the_episode_that_taught_it(make: Make):
    memory = make(strategy=ReasoningBank(judge=False), llm=ScriptedChatModel([("lamp", _lessons)]))
    first = _run(memory, "a")
    for _ in range(3):
        episode = memory.open_episode("lamp")
        memory.recall(episode)
        memory.store.close_episode("tenant-a", episode.id, "failure", "rule", queue=False)
    memory.close_episode(memory.open_episode("other", group="g").id, "success")  # looks for harm
    assert memory.stats().get("quarantined") == 1
    memory.feedback(first, verdict="unknown")
    assert memory.stats() == {"deleted": 1, "pending": 0}
