"""Answering by the router: both gates, steps up, abstention, readers that fail."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from remnant.routing import (
    BlockReader,
    Budgets,
    ContextRouter,
    Index,
    Mode,
    Model,
    Request,
    Responder,
    Settings,
    Unit,
    read_passages,
)

UNITS = [Unit(f"u{i}", f"c{i}", f"Ann said thing {i}", f"2024-{i:03}") for i in range(200)]
LARGE = Model(1_000_000, price_in=1.0, price_out=1.0)


def _request(n: int = 200, query: str = "What did Ann say?", **rest: Any) -> Request:
    index = Index(True, n)
    return Request(query, n, 100 * n, rest.pop("model", LARGE), index=rest.pop("index", index), **rest)


def _found(*ids: str, top: float = 9.0) -> Callable[[int], Sequence[tuple[str, float]]]:
    return lambda n: [(id, top - i) for i, id in enumerate(ids)][:n]


def _said(answer: str, *quotes: str, confidence: float = 0.9, abstain: bool = False) -> str:
    return json.dumps({"answer": answer, "quotes": quotes, "confidence": confidence, "abstain": abstain})


class Reader:
    """Answers every prompt by what it is asked to do; remembers the prompts."""

    def __init__(self, read: str, extract: str = "", synthesis: str = "") -> None:
        self.replies = {"You answer a question from passages": read, "You look for": extract, "quotes of": synthesis}
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        return next(reply for start, reply in self.replies.items() if start in prompt[:90])


EMPTY = '{"relevant": false, "items": []}'
ITEM = {"conversation_id": "c7", "quote": "Ann said thing 7", "speaker": "Ann", "note": "", "date": "2024-007"}
ONE = json.dumps({"relevant": True, "items": [ITEM]})
DONE = json.dumps({"answer": "thing 7", "used": ["q1"], "unanswered_parts": [], "abstain": False})


def test_an_answer_that_rests_on_a_quote_is_kept() -> None:
    reader = Reader(_said("thing 7", "Ann said thing 7"))
    done = Responder(ContextRouter(), reader).answer(_request(), UNITS, _found("u7", "u8"))
    assert done.decision.mode is Mode.RAG
    assert (done.answer.text, done.answer.abstained, done.answer.used) == ("thing 7", False, ("q1",))
    assert done.answer.items[0].conversation_id == "c7"
    assert [why for _, why in done.tried] == [""]
    assert len(reader.prompts) == 1


def test_a_quote_that_stands_nowhere_is_no_ground_and_leads_a_step_up() -> None:
    reader = Reader(_said("thing 999", "Ann said thing 999"), ONE, DONE)
    done = Responder(ContextRouter(), reader).answer(_request(), UNITS, _found("u7", "u8"))
    assert [decision.mode for decision, _ in done.tried] == [Mode.RAG, Mode.RETRIEVE_THEN_BLOCK]
    assert done.tried[0][1] == "the reader abstained"
    assert (done.answer.text, done.answer.abstained) == ("thing 7", False)


def test_doubt_leads_a_step_up() -> None:
    reader = Reader(_said("thing 8", "Ann said thing 8", confidence=0.3), ONE, DONE)
    done = Responder(ContextRouter(), reader).answer(_request(), UNITS, _found("u7", "u8"))
    assert done.tried[0][1] == "confidence 0.3"
    assert done.answer.text == "thing 7"


def test_after_the_last_step_it_abstains() -> None:
    reader = Reader(_said("", abstain=True), ONE, json.dumps({"answer": "", "used": [], "abstain": True}))
    done = Responder(ContextRouter(), reader, abstention="Unknown.").answer(_request(), UNITS, _found("u7"))
    assert [decision.mode for decision, _ in done.tried] == [Mode.RAG, Mode.RETRIEVE_THEN_BLOCK, Mode.FULL]
    assert (done.answer.text, done.answer.abstained) == ("Unknown.", True)


def test_steps_up_stay_within_the_budget() -> None:
    reader = Reader(_said("", abstain=True))
    done = Responder(ContextRouter(), reader).answer(_request(budgets=Budgets(usd=0.003)), UNITS, _found("u7"))
    assert [decision.mode for decision, _ in done.tried] == [Mode.RAG]
    assert done.answer.abstained


def test_the_retrieval_gate_asks_no_reader() -> None:
    reader = Reader("never", EMPTY)
    responder = Responder(ContextRouter(), reader, gate=5.0)
    done = responder.answer(_request(allow_full=False), UNITS, _found("u7", top=4.9))
    assert [why[:14] for _, why in done.tried] == ["the best score"] * 2
    assert reader.prompts == []
    assert done.answer.abstained
    assert responder.answer(_request(), UNITS, _found()).answer.abstained
    passing = Responder(ContextRouter(), Reader(_said("x", "Ann said thing 7")), gate=5.0)
    assert not passing.answer(_request(), UNITS, _found("u7", top=5.0)).answer.abstained


def test_empty_blocks_are_an_answer_unless_retrieval_was_sure() -> None:
    settings = Settings(low=0, high=0)
    request = _request(query="Would Ann enjoy it?", query_type="implicit")
    quiet = Responder(ContextRouter(settings), Reader("", EMPTY)).answer(request, UNITS, _found("u7"))
    assert [decision.mode for decision, _ in quiet.tried] == [Mode.RETRIEVE_THEN_BLOCK]
    assert (quiet.answer.abstained, quiet.tried[0][1]) == (True, "")
    full = Reader(_said("yes", "Ann said thing 150"), EMPTY)
    sure = Responder(ContextRouter(settings), full, usual=[1.0, 2.0, 3.0]).answer(request, UNITS, _found("u7"))
    assert [why for _, why in sure.tried] == ["every block was empty", ""]
    assert (sure.decision.mode, sure.answer.text) == (Mode.FULL, "yes")


def test_a_reader_of_blocks_of_its_own_is_asked() -> None:
    asked: list[str] = []

    def extractor(prompt: str) -> str:
        asked.append(prompt)
        return ONE if 'thing 7"' in prompt else EMPTY

    reader = Reader("", "", DONE)
    responder = Responder(ContextRouter(Settings(low=0, high=0)), reader, BlockReader(extractor, reader, block_size=5))
    done = responder.answer(_request(query_type="implicit"), UNITS, _found(*(f"u{i}" for i in range(50))))
    assert done.answer.text == "thing 7"
    assert len(asked) == 10


def test_without_a_history_it_abstains() -> None:
    done = Responder(ContextRouter(), Reader("")).answer(_request(0), [], _found())
    assert (done.decision.mode, done.answer.abstained) == (Mode.NONE, True)


@pytest.mark.parametrize(
    "nonsense",
    [
        "no json",
        "{}",
        "[1]",
        '{"answer": 3, "quotes": [], "confidence": 1, "abstain": false}',
        '{"answer": "x", "quotes": [], "confidence": "high", "abstain": false}',
        '{"answer": "x", "quotes": [], "confidence": NaN, "abstain": false}',
    ],
)
def test_nonsense_is_asked_again_and_then_an_abstention(nonsense: str) -> None:
    asked: list[str] = []
    answer, confidence = read_passages(lambda prompt: asked.append(prompt) or nonsense, "q", UNITS[:2])
    assert (answer.abstained, confidence, answer.calls, len(asked)) == (True, 0.0, 2, 2)


def test_a_reader_that_raises_never_does() -> None:
    def broken(prompt: str) -> str:
        raise TimeoutError

    done = Responder(ContextRouter(), broken).answer(_request(), UNITS, _found("u7"))
    assert done.answer.abstained


def test_confidence_is_kept_between_zero_and_one() -> None:
    reply = _said("x", "thing 0", "made up", confidence=7)
    answer, confidence = read_passages(lambda _: f"```json\n{reply}\n```", "q", UNITS[:2])
    assert (confidence, answer.dropped, answer.text) == (1.0, 1, "x")
