"""Widening: neighbours, sources, speakers, shared names and parts of a question; limits, scope and the past hold."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from remnant.errors import ConfigError
from remnant.memory import HashEmbedder, Memory, Provenance, Record, ScriptedChatModel, Update, Widen
from remnant.memory.decompose import parts_by_rules
from remnant.memory.links import names, said_by, source_gains, sources
from remnant.memory.widen import NARROW, PLAIN, WIDE

Make = Callable[..., Memory]
NEAR, NAMES, PARTS = (Widen(author=0.0, source=0.0, **{link: 0.5}) for link in ("near", "names", "parts"))


def turn(text: str, session: str = "s1", author: str = "", **more: Any) -> Record:
    return Record(text, kind="message", provenance=(Provenance("session", session, author=author),), **more)


def texts(memory: Memory, question: str, **settings: Any) -> list[str]:
    return [hit.text for hit in memory.recall(question, **settings)]


def test_neighbours_of_the_same_source_follow_what_was_found(memory: Memory):
    memory.add([turn("Which instrument?"), turn("The oboe."), turn("Nice."), turn("Milk is white.", "s2")])
    assert texts(memory, "which instrument", widen=PLAIN) == ["Which instrument?"]
    assert texts(memory, "which instrument", widen=NEAR) == ["Which instrument?", "The oboe."]
    assert set(texts(memory, "nice milk", widen=NEAR)) == {"Milk is white.", "Nice.", "The oboe."}


def test_a_neighbour_of_another_or_of_no_source_is_none(memory: Memory):
    memory.add([Record("Which instrument?"), Record("The oboe."), turn("tea", "s1"), turn("cup", "s2")])
    assert texts(memory, "which instrument", widen=NEAR) == ["Which instrument?"]
    assert texts(memory, "tea", widen=NEAR) == ["tea"]


def test_names_lead_to_a_second_record(memory: Memory):
    memory.add(["The festival was opened by Ada Byron.", "In her youth Byron kept bees.", "Many keep sheep."])
    found = memory.recall("Who opened the festival?", widen=NAMES)
    assert [hit.text for hit in found] == ["The festival was opened by Ada Byron.", "In her youth Byron kept bees."]
    assert found[1].parts["links"] == pytest.approx(0.5) == found[1].score
    assert len(texts(memory, "Who opened the festival?", widen=PLAIN)) == 1


def test_a_name_that_many_have_links_nothing(memory: Memory):
    memory.add(["The festival was opened by Ada."] + [f"On day {number} Ada slept." for number in range(20)])
    assert texts(memory, "opened festival", widen=NAMES) == ["The festival was opened by Ada."]


def test_keywords_are_names(memory: Memory):
    memory.add([Record("it began on time", keywords=("regatta",)), Record("the boats sank", keywords=("regatta",))])
    assert texts(memory, "began on time", widen=NAMES) == ["it began on time", "the boats sank"]


def test_the_speaker_that_is_asked_about_comes_first(memory: Memory):
    memory.add([turn("I painted a lake.", author="Bob"), turn("I painted a lake.", author="Ann")])
    assert [hit.record.provenance[0].author for hit in memory.recall("What has Ann painted?")] == ["Ann", "Bob"]
    assert [hit.record.provenance[0].author for hit in memory.recall("What has Bob painted?")] == ["Bob", "Ann"]


def test_a_session_with_more_hits_is_ahead_of_a_lone_one(memory: Memory):
    memory.add([turn("oboe", "s2"), turn("oboe", "s1"), turn("an oboe concert", "s1"), turn("oboe reeds", "s1")])
    assert memory.recall("oboe", widen=PLAIN)[0].record.provenance[0].source_id == "s2"
    assert memory.recall("oboe")[0].record.provenance[0].source_id == "s1"


def test_narrow_shows_no_record_that_was_not_found(memory: Memory):
    memory.add([turn("Which instrument?", author="Ann"), turn("The oboe.", author="Ann")])
    assert texts(memory, "Which instrument has Ann?", widen=False) == ["Which instrument?"]


def test_the_memory_s_setting_is_what_recall_does(make: Make):
    memory = make(widen=True)
    memory.add([turn("Which instrument?"), turn("The oboe.")])
    assert memory.context.widen == WIDE
    assert texts(memory, "which instrument") == ["Which instrument?", "The oboe."]
    assert texts(memory, "which instrument", widen=False) == ["Which instrument?"]
    assert texts(make(widen=NEAR), "which instrument") == ["Which instrument?", "The oboe."]
    assert make().context.widen == NARROW
    assert make(widen=False).context.widen == NARROW


def test_hits_and_tokens_are_limited_as_ever(memory: Memory):
    memory.add([turn("Which instrument?"), turn("The oboe of the orchestra in Prague, if I may choose."), turn("Yes.")])
    assert len(memory.recall("which instrument", k=1, widen=True)) == 1
    assert texts(memory, "which instrument", budget_tokens=8, widen=True) == ["Which instrument?"]


def test_scope_place_kind_status_and_validity_hold(make: Make, memory: Memory):
    make(scope="tenant-b").add([turn("The harp."), turn("Which instrument?"), turn("The lute.")])
    ids = memory.add([
        turn("Which instrument?", place="a"), turn("The oboe.", place="b"),
        turn("Which instrument then?", place="a"), Record("The harp.", provenance=turn("x").provenance),
        turn("Which instrument now?", place="a"), turn("The drum.", place="a", valid_to=1.0),
        turn("Which instrument last?", place="a"), turn("The horn.", place="a"),
    ])  # fmt: skip
    memory.apply([Update(ids[-1], {"status": "archived"})], "r", "a")
    found = texts(memory, "which instrument", widen=NEAR, k=50)
    assert "The oboe." in found
    assert "The harp." in found
    assert not {"The drum.", "The horn.", "The lute."} & set(found)
    assert "The oboe." not in texts(memory, "which instrument", widen=NEAR, k=50, place="a")
    assert "The harp." not in texts(memory, "which instrument", widen=NEAR, k=50, kinds=["message"])


def test_the_past_is_widened_as_it_was(memory: Memory):
    ids = memory.add([turn("Which instrument?"), turn("The oboe of Ada."), turn("Then Ada left.")])
    then = memory.changes()[0].number
    memory.apply([Update(ids[1], {"content": "The harp."})], "r", "a")
    assert texts(memory, "which instrument", as_of=then, widen=NEAR) == ["Which instrument?", "The oboe of Ada."]
    assert texts(memory, "oboe", as_of=then, widen=NAMES) == ["The oboe of Ada.", "Then Ada left."]
    assert texts(memory, "which instrument", widen=NEAR) == ["Which instrument?", "The harp."]


async def test_async_recall_widens_the_same(make: Make):
    memory = make(embedder=HashEmbedder(), widen=True)
    memory.add([turn("Which instrument?"), turn("The oboe of Ada."), turn("Later Ada left.", "s2"), turn("milk", "s3")])
    found = memory.recall("which instrument")
    assert found
    assert await memory.arecall("which instrument") == found
    assert await memory.arecall("which instrument", widen=PLAIN) == memory.recall("which instrument", widen=PLAIN)


def test_neighbours_have_their_own_meaning_as_well(make: Make):
    memory = make(embedder=HashEmbedder())
    memory.add([turn("photographs", "s1"), turn("zzz", "s1"), *(turn(f"paragraph {n}", f"p{n}") for n in range(60))])
    plain = {hit.text: hit.score for hit in memory.recall("photograph", k=200, widen=PLAIN)}
    wide = {hit.text: hit.score for hit in memory.recall("photograph", k=5, widen=NEAR)}
    assert wide["zzz"] == pytest.approx(plain["zzz"] + 0.5 * plain["photographs"])


def test_parts_are_asked_by_rules_without_a_model(memory: Memory):
    memory.add(["Bob dances at night", "Ann dances at noon", "Where do Ann or Bob live"])
    scores = {hit.text: hit.parts.get("links", 0.0) for hit in memory.recall("Do Ann and Bob both dance?", widen=PARTS)}
    assert scores["Bob dances at night"] > 0 < scores["Ann dances at noon"]


def test_parts_are_asked_by_the_model_and_a_failing_one_leaves_the_rules(make: Make):
    answer = json.dumps({"questions": ["Which town has the lighthouse?"]})
    model = ScriptedChatModel([("several notes", answer)])
    memory = make(llm=model)
    memory.add(["The lighthouse stands in Brest.", "The keeper is Ada."])
    assert texts(memory, "Who keeps it?", widen=PARTS) == ["The lighthouse stands in Brest."]
    assert memory.costs()["decompose"].calls == 1
    assert len(model.prompts) == 1
    seen: list[str] = []
    broken = make(llm=ScriptedChatModel([]), strict=False)
    broken.events.subscribe(lambda event: seen.append(event.name))
    assert texts(broken, "Who is the keeper?", widen=PARTS) == ["The keeper is Ada."]
    assert "decompose_failed" in seen


def test_a_failing_embedder_leaves_the_words_and_their_links(make: Make):
    class Failing(HashEmbedder):
        def embed(self, texts: Sequence[str], *, kind: Any) -> list[list[float]]:
            raise ConnectionError("down")

    memory = make(embedder=Failing(), strict=False)
    memory.add([turn("Which instrument?"), turn("The oboe.")])
    assert texts(memory, "which instrument", widen=True) == ["Which instrument?", "The oboe."]


def test_reads_fail_open(make: Make):
    memory = make(strict=False)
    memory.add([turn("Which instrument?"), turn("The oboe.")])
    memory.close()
    assert memory.recall("which instrument", widen=True) == []


def test_shares_below_zero_are_refused():
    for bad in ({"near": -0.1}, {"names": float("nan")}):
        with pytest.raises(ConfigError, match="0 or more"):
            Widen(**bad)


def test_nothing_and_nonsense_find_nothing(memory: Memory):
    assert memory.recall("anything", widen=True) == []
    memory.add([turn("Which instrument?"), turn("The oboe.")])
    for question in ("", "   ", "?!", '" OR *', "zzz"):
        assert memory.recall(question, widen=Widen(near=0.3, names=0.3, parts=0.3)) == []


def test_what_a_name_is():
    assert names(Record("We met Ada Byron. She smiled, in Łódź: They left.")) == ["ada", "byron", "łódź"]
    assert names(Record("nothing here")) == []


def test_who_said_it():
    assert said_by(Record("8 May, 2023 | Ann Lee: hi"), ["ann"])
    assert said_by(turn("hi", author="Ann Lee"), ["ann"])
    assert not said_by(Record("hi Ann: there"), ["there"])
    assert not said_by(Record("hi"), ["hi"])


def test_sources_need_a_name():
    assert not sources(Record("x", provenance=(Provenance("model", author="facts"),)))
    assert sources(turn("x")) == {("session", "s1")}
    assert source_gains([]) == {}


@pytest.mark.parametrize(
    ("question", "parts"),
    [
        ("Did Ann Lee and Bob both dance?", ["Did Ann Lee dance", "Did Bob dance"]),
        ("Who led the club which published Birds?", ["led the club", "published Birds"]),
        ("What is tea?", []),
        ("", []),
    ],
)
def test_parts_by_rules(question: str, parts: list[str]):
    assert parts_by_rules(question) == parts
