"""Retriever, reordering, and which way a question takes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import CustomQueryEngine, RetrieverQueryEngine, RouterQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import QueryEngineTool, ToolMetadata

from remnant.errors import ConfigError
from remnant.memory import Record
from remnant.routing import Conversation, Index, Mode, Model, QueryType, Request
from remnant.routing import reorder as reordered
from remnant_llamaindex import RemnantRetriever, ReorderNodes, RoutedQueryEngine, RoutedSelector

MODEL = Model(128_000, tier="top")


def nodes(count: int) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=f"d{n}", id_=str(n)), score=1 / n) for n in range(1, count + 1)]


async def test_retriever_gives_records_as_nodes(stage: Any):
    core = stage.core()
    trigger, content = "when tea is served", "Ada takes hers without milk."
    (id, _) = core.add([Record(content, trigger=trigger, kind="strategy", payload={"n": 1}), "Bob likes coffee."])
    retriever = RemnantRetriever(core, k=1)
    for found in (retriever.retrieve("Ada and milk"), await retriever.aretrieve(QueryBundle("Ada and milk"))):
        (hit,) = found
        assert (hit.node.node_id, hit.node.get_content()) == (id, content)
        assert hit.score is not None
        assert hit.score > 0
        assert hit.node.metadata["kind"] == "strategy"
        assert hit.node.metadata["trigger"] == trigger
        assert hit.node.get_content(MetadataMode.LLM) == content


async def test_retriever_over_a_memory_and_its_limits(stage: Any):
    memory = stage.open()
    ids = memory.core.add([Record("Ada's tea, early", kind="a"), Record("Ada's tea, late", kind="b")])
    number = memory.core.store.latest("tenant-a")
    memory.core.add("Ada's tea, in between")
    assert len(RemnantRetriever(memory).retrieve("Ada tea")) == 3
    assert len(RemnantRetriever(memory, k=2).retrieve("Ada tea")) == 2
    assert [n.node_id for n in RemnantRetriever(memory, kinds={"b"}).retrieve("Ada tea")] == [ids[1]]
    assert {n.node_id for n in RemnantRetriever(memory, as_of=number).retrieve("Ada tea")} == set(ids)
    assert len(RemnantRetriever(memory, budget_tokens=5).retrieve("Ada tea")) == 1


@pytest.mark.parametrize("count", range(7))
def test_best_nodes_stand_at_both_ends(count: int):
    given = nodes(count)
    shuffled = given[1::2] + given[0::2]
    made = [node.node.node_id for node in ReorderNodes().postprocess_nodes(shuffled)]
    assert made == reordered([str(n) for n in range(1, count + 1)])


def test_reordering_keeps_the_order_where_a_node_has_no_score_and_drops_beyond_k():
    given = nodes(4)
    given[0].score = None
    assert [n.node.node_id for n in ReorderNodes().postprocess_nodes(given)] == ["1", "3", "4", "2"]
    assert [n.node.node_id for n in ReorderNodes(k=2).postprocess_nodes(nodes(5))] == ["1", "2"]


class Said(CustomQueryEngine):
    """An engine that answers with its name."""

    name: str

    def custom_query(self, query_str: str) -> str:
        return self.name


def tools(*names: str) -> list[QueryEngineTool]:
    return [
        QueryEngineTool(query_engine=Said(name=name), metadata=ToolMetadata(name=name, description=name))
        for name in names
    ]


def history(count: int) -> Any:
    return lambda question: Request(question, count, 600 * count, MODEL, index=Index(ready=True))


@pytest.mark.parametrize(("count", "expected"), [(3, "full"), (400, "rag")])
async def test_selector_sends_a_question_where_the_router_says(count: int, expected: str):
    engine = RouterQueryEngine(RoutedSelector(history(count)), tools("rag", "full"), llm=MockLLM())
    responses: list[Any] = [engine.query("Where do I live?"), await engine.aquery("Where do I live?")]
    for response in responses:
        assert str(response) == expected
        selected = response.metadata["selector_result"]
        assert "conversations" in selected.reason


def test_selector_goes_by_place_too():
    selector = RoutedSelector(history(3), modes=["rag", Mode.FULL])
    assert selector.select(["some passages", "everything"], "Where do I live?").ind == 1
    assert selector.last is not None
    assert selector.last.mode is Mode.FULL


def test_selector_takes_the_best_that_is_offered_and_says_so():
    modes = ["rag", "block_extract"]
    for offered in (modes, modes[::-1]):
        selector = RoutedSelector(history(60), modes=offered)
        found = selector.select(["a", "b"], "What should I plan for the weekend?")
        assert "not among the choices" in found.reason
        assert selector.last is not None
        chance = {option.mode.value: option.p_answerable for option in selector.last.considered}
        assert chance["rag"] != chance["block_extract"]
        assert chance[offered[found.ind]] == max(chance[mode] for mode in modes)
    found = RoutedSelector(history(0), modes=["full", "rag"]).select(["a", "b"], "Where do I live?")
    assert found.ind == 0
    assert "no history" in found.reason


@pytest.mark.parametrize("modes", [["rag"], ["rag", "everything"]])
def test_selector_refuses_choices_it_does_not_know(modes: list[str]):
    with pytest.raises(ConfigError):
        RoutedSelector(history(3), modes=modes).select(["a", "b"], "Where do I live?")
    with pytest.raises(ConfigError, match="modes="):
        RoutedSelector(history(3)).select(["a", "b"], "Where do I live?")


class Reader(MockLLM):
    """A model that shows what it read, and reads blocks as far as it is told."""

    found: str = ""

    def __init__(self, found: str = "") -> None:
        super().__init__()
        self.found = found

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=200_000, num_output=1)

    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        if "You look for what bears" in prompt:
            names = [c["id"] for c in json.loads(prompt.split("as JSON:\n")[1].split("\nAnswer")[0])]
            hit = bool(self.found) and self.found in prompt
            items = [{"conversation_id": names[0], "speaker": "u", "quote": self.found, "note": "", "date": ""}]
            return CompletionResponse(text=json.dumps({"relevant": hit, "items": items if hit else []}))
        if "You answer a question from quotes" in prompt:
            answer = {"answer": f"it is {self.found}", "used": ["q1"], "unanswered_parts": [], "abstain": False}
            return CompletionResponse(text=json.dumps(answer))
        return CompletionResponse(text=prompt)


def told(count: int, needle: int = -1) -> list[Conversation]:
    texts = [f"u: nothing in {n}" if n != needle else "u: I live in Oslo" for n in range(count)]
    return [Conversation(f"c{n}", text, f"2024-01-{n % 28 + 1:02}") for n, text in enumerate(texts)]


class Passages(BaseRetriever):
    """Passages of some conversations, best first."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        made = [TextNode(text=f"passage of {name}", metadata={"conversation": name}) for name in self.names]
        return [NodeWithScore(node=node, score=1 / n) for n, node in enumerate(made, 1)]


async def both(engine: RoutedQueryEngine, question: str) -> Any:
    response: Any = await engine.aquery(question)
    again: Any = engine.query(question)
    assert str(again) == str(response)
    assert again.metadata["route"]["mode"] == response.metadata["route"]["mode"]
    return response


async def test_short_history_is_read_whole():
    engine = RoutedQueryEngine(told(3), Reader(), MODEL)
    response = await both(engine, "Where do I live?")
    assert response.metadata["route"]["mode"] == "full"
    assert "best" in response.metadata["route"]["why"]
    text = str(response)
    places = [text.index(f"nothing in {n}") for n in range(3)]
    assert places == sorted(places)
    assert "2024-01-02" in text


async def test_long_history_is_searched_and_reordered():
    names = [f"c{n}" for n in range(5)]
    engine = RoutedQueryEngine(told(400), Reader(), MODEL, retriever=Passages(names))
    response = await both(engine, "Where do I live?")
    assert response.metadata["route"]["mode"] == "rag"
    assert [n.metadata["conversation"] for n in response.source_nodes] == reordered(names)


async def test_questions_of_time_keep_the_order_of_time():
    engine = RoutedQueryEngine(
        told(400),
        Reader(),
        MODEL,
        retriever=Passages(["c7", "c2", "c5"]),
        request=lambda question, history: Request(
            question, len(history), 99_000, MODEL, query_type=QueryType.TEMPORAL, index=Index(ready=True)
        ),
    )
    response = await both(engine, "When did I move?")
    assert [n.metadata["conversation"] for n in response.source_nodes] == ["c2", "c5", "c7"]


async def test_mixed_mode_shows_passages_and_the_newest_whole():
    def request(question: str, history: Sequence[Conversation]) -> Request:
        index, price = Index(ready=True), Model(128_000, tier="top", price_in=3.0)
        return Request(question, len(history), 60_000, price, query_type=QueryType.USER_FACT, index=index)

    engine = RoutedQueryEngine(told(60), Reader(), MODEL, retriever=Passages(["c1", "c59"]), request=request)
    response = await both(engine, "Where do I live?")
    assert response.metadata["route"]["mode"] == "recent_plus_rag"
    ids = [n.metadata.get("conversation") or n.node_id for n in response.source_nodes]
    assert ids == ["c1", *(f"c{n}" for n in range(50, 60))]


def implicit(question: str, history: Sequence[Conversation]) -> Request:
    return Request(question, len(history), 30_000, MODEL, query_type=QueryType.IMPLICIT, index=Index(ready=True))


async def test_retrieved_conversations_are_read_in_blocks_with_checked_quotes():
    llm = Reader("I live in Oslo")
    engine = RoutedQueryEngine(told(400, needle=7), llm, MODEL, retriever=Passages(["c7", "c9"]), request=implicit)
    response = await both(engine, "What should I plan for the weekend?")
    assert response.metadata["route"]["mode"] == "retrieve_then_block"
    assert str(response) == "it is I live in Oslo"
    assert [n.metadata["conversation"] for n in response.source_nodes] == ["c7"]


async def test_blocks_that_hold_nothing_lead_to_the_next_step_or_to_abstention():
    engine = RoutedQueryEngine(told(400), Reader(), MODEL, retriever=Passages(["c7"]), request=implicit)
    response = await both(engine, "What should I plan for the weekend?")
    assert engine.last is not None
    assert engine.last.mode is Mode.RETRIEVE_THEN_BLOCK
    assert response.metadata["route"]["mode"] == "full"
    assert "nothing in 399" in str(response)

    def never(question: str, history: Sequence[Conversation]) -> Request:
        return replace(implicit(question, history), allow_full=False)

    engine = RoutedQueryEngine(told(400), Reader(), MODEL, retriever=Passages(["c7"]), request=never)
    response = await both(engine, "What should I plan for the weekend?")
    assert response.metadata["blocks"]["abstained"]
    assert str(response) == "I don't know."


async def test_no_history_is_no_answer():
    response = await both(RoutedQueryEngine([], Reader(), MODEL), "Where do I live?")
    assert str(response) == "I don't know."
    assert response.metadata["route"]["mode"] == "none"


async def test_history_may_grow_between_questions():
    grown = told(2)
    engine = RoutedQueryEngine(lambda: grown, Reader(), MODEL)
    assert "nothing in 2" not in str(engine.query("Where do I live?"))
    grown.extend(told(3)[2:])
    assert "nothing in 2" in str(engine.query("Where do I live?"))


def test_request_that_promises_an_index_wants_a_retriever():
    engine = RoutedQueryEngine(told(400), Reader(), MODEL, request=implicit)
    with pytest.raises(ConfigError, match="retriever="):
        engine.query("What should I plan?")


def test_memory_behind_a_query_engine(stage: Any):
    core = stage.core()
    core.add(["Ada takes her tea without milk.", "Bob likes tea."])
    engine = RetrieverQueryEngine.from_args(RemnantRetriever(core), llm=Reader(), node_postprocessors=[ReorderNodes()])
    assert "without milk" in str(engine.query("How does Ada take her tea?"))
