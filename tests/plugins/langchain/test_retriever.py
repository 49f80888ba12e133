"""The retriever: LangChain's own suite, metadata, options per call, being written down."""

import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumps, loads
from langchain_core.prompts import ChatPromptTemplate
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError

from remnant.errors import ConfigError
from remnant.memory import HashEmbedder, Memory, Provenance, Record
from remnant_langchain import MemoryRetriever


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
def memory(path: Path) -> Iterator[Memory]:
    with Memory.open(path, scope="tenant-a", write="manual") as memory:
        memory.add([f"tea number {i}" for i in range(12)])
        yield memory


class TestStandard(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _memory(self, memory: Memory) -> None:
        self.memory = memory

    @property
    def retriever_constructor(self) -> type[MemoryRetriever]:
        return MemoryRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"memory": self.memory}

    @property
    def retriever_query_example(self) -> str:
        return "which tea?"


class TestStandardOverAPath(TestStandard):
    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"memory": str(self.memory.store.path), "scope": "tenant-a"}  # type: ignore[attr-defined]


def test_a_document_tells_where_it_comes_from(path: Path) -> None:
    source = Provenance("document", source_id="letter", author="Bob", time=5.0)
    record = Record(
        "Ann drinks tea",
        trigger="when Ann is thirsty",
        kind="note",
        trust="web",
        provenance=(source,),
        valid_from=10.0,
        place="notes/ann",
    )
    with Memory.open(path, scope="a", write="manual") as memory:
        (id,) = memory.add(record)
        (document,) = MemoryRetriever(memory).invoke("tea")
        assert (document.id, document.page_content) == (id, "Ann drinks tea")
        told = document.metadata
        assert told["score"] > 0
        assert (told["kind"], told["trust"], told["place"], told["status"]) == ("note", "web", "notes/ann", "active")
        assert told["provenance"][0]["source_id"] == "letter"
        assert (told["valid_from"], told["valid_to"], told["version"]) == (10.0, None, 1)
        assert json.loads(json.dumps(told)) == told


def test_each_call_may_say_otherwise(memory: Memory) -> None:
    then = memory.store.latest("tenant-a")
    memory.add([Record("new tea", kind="note", place="notes"), "milk"])
    retriever = MemoryRetriever(memory, k=2)
    assert len(retriever.invoke("tea")) == 2
    assert len(retriever.invoke("tea", k=5)) == 5
    assert [d.page_content for d in retriever.invoke("tea", kinds=("note",))] == ["new tea"]
    assert [d.page_content for d in retriever.invoke("tea", place="notes")] == ["new tea"]
    assert "new tea" not in [d.page_content for d in retriever.invoke("tea", k=50, as_of=then)]
    past = datetime(2001, 1, 1, tzinfo=timezone.utc)
    assert retriever.invoke("tea", as_of=past) == []
    assert len(retriever.invoke("tea", k=50, budget_tokens=8)) == 3  # of 2 + 3 + 3 tokens
    with pytest.raises(TypeError, match="colour"):
        retriever.invoke("tea", colour="green")


async def test_async_asks_the_async_memory(memory: Memory) -> None:
    retriever = MemoryRetriever(memory, k=3)
    assert await retriever.ainvoke("tea", k=5) == retriever.invoke("tea", k=5)
    assert len(await retriever.abatch(["tea", "tea"])) == 2


async def test_over_a_path_it_opens_off_the_loop_and_on_first_use(path: Path, memory: Memory) -> None:
    retriever = MemoryRetriever(path.parent / "new.db", scope="tenant-a", k=3)
    assert not (path.parent / "new.db").exists()
    assert await retriever.ainvoke("tea") == []
    retriever.close()
    other = MemoryRetriever(path, scope="tenant-a", k=3, embedder=HashEmbedder(32))
    assert len(await other.ainvoke("tea")) == 3
    other.close()
    assert len(other.invoke("tea")) == 3
    other.close()


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_it_can_be_written_down_and_read_back(path: Path, memory: Memory) -> None:
    retriever = MemoryRetriever(path, scope={"tenant": "a"}, k=3, kinds=("fact",))
    text = dumps(retriever)
    assert json.loads(text)["kwargs"]["memory"] == str(path)
    again = loads(text, valid_namespaces=["remnant_langchain"], allowed_objects=[MemoryRetriever])
    assert isinstance(again, MemoryRetriever)
    assert (again.memory, again.scope, again.k, again.kinds) == (str(path), {"tenant": "a"}, 3, ("fact",))
    assert retriever.model_copy(update={"k": 9}).k == 9


def test_nothing_of_another_scope_is_found(memory: Memory, path: Path) -> None:
    memory.scoped("tenant-b").add("tea of tenant b")
    for retriever in (MemoryRetriever(memory), MemoryRetriever(path, scope="tenant-a")):
        assert "tea of tenant b" not in [d.page_content for d in retriever.invoke("tea of tenant b", k=50)]
        retriever.close()
    assert [d.page_content for d in MemoryRetriever(memory, scope="tenant-b").invoke("tea", k=50)] == [
        "tea of tenant b"
    ]
    assert MemoryRetriever(memory, scope="tenant").invoke("tea") == []


def test_what_is_forgotten_is_not_found(memory: Memory) -> None:
    retriever = MemoryRetriever(memory, k=50)
    found = retriever.invoke("tea")
    memory.forget([document.id for document in found[:5]])  # type: ignore[misc]
    assert {d.id for d in retriever.invoke("tea")} == {d.id for d in found[5:]}


def test_it_fits_in_a_chain(memory: Memory) -> None:
    chain = {"context": MemoryRetriever(memory, k=1)} | ChatPromptTemplate.from_template("{context}")
    assert "tea number" in str(chain.invoke("tea"))


@pytest.mark.parametrize("options", [{"k": 0}, {"budget_tokens": 0}, {"memory": 3}, {"kinds": 3}])
def test_impossible_options_are_refused(memory: Memory, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MemoryRetriever(**{"memory": memory, **options})


def test_an_unknown_strategy_is_refused_on_the_first_question(path: Path) -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        MemoryRetriever(path, strategy="nonsense").invoke("tea")
