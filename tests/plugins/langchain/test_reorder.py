"""Documents reordered and collapsed, in chains as well."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import BaseDocumentTransformer, Document
from langchain_core.runnables import RunnableLambda

from remnant.errors import ConfigError
from remnant.routing import reorder
from remnant_langchain import ReorderDocuments


def _documents(*texts: str) -> list[Document]:
    return [Document(text, id=str(i), metadata={"created_at": float(i)}) for i, text in enumerate(texts)]


@pytest.mark.parametrize(("count", "order"), [(0, ""), (1, "0"), (2, "01"), (3, "021"), (4, "0231"), (5, "02431")])
def test_the_best_is_first_and_the_second_last_for_odd_and_even_counts(count: int, order: str) -> None:
    documents = [Document(str(i)) for i in range(count)]
    assert "".join(d.page_content for d in ReorderDocuments().transform_documents(documents)) == order


@given(st.integers(0, 12), st.one_of(st.none(), st.integers(1, 14)))
def test_it_is_the_rule_of_the_core(count: int, k: int | None) -> None:
    documents = [Document(str(i), id=str(i)) for i in range(count)]
    moved = ReorderDocuments(k).transform_documents(tuple(documents))
    assert moved == reorder(documents, k)
    assert sorted(d.page_content for d in moved) == sorted(str(i) for i in range(count))[: len(moved)] or k is not None


async def test_async_gives_the_same() -> None:
    documents = _documents("a", "b", "c", "d")
    assert await ReorderDocuments().atransform_documents(documents) == ReorderDocuments().transform_documents(documents)


def test_of_two_that_say_the_same_the_newer_is_kept_before_the_order_is_made() -> None:
    documents = _documents("Ann likes tea", "snow", "Ann likes TEA.", "rain")
    moved = ReorderDocuments(alike=0.95).transform_documents(documents)
    assert [d.page_content for d in moved] == ["Ann likes TEA.", "rain", "snow"]
    assert len(ReorderDocuments().transform_documents(documents)) == 4
    bare = [Document("tea"), Document("tea", metadata={"when": "2024"}), Document("tea", metadata={"when": "2023"})]
    assert ReorderDocuments(alike=1.0, newer="when").transform_documents(bare) == [bare[1]]


def test_it_fits_in_a_chain() -> None:
    transformer = ReorderDocuments()
    assert isinstance(transformer, BaseDocumentTransformer)
    chain = RunnableLambda(lambda _: _documents("a", "b", "c")) | transformer.transform_documents
    assert [d.page_content for d in chain.invoke("q")] == ["a", "c", "b"]


def test_it_changes_no_document_and_no_list() -> None:
    documents = _documents("a", "b", "c")
    before = [d.model_copy(deep=True) for d in documents]
    ReorderDocuments(2).transform_documents(documents)
    assert documents == before


@pytest.mark.parametrize("options", [{"k": 0}, {"alike": 0.0}, {"alike": 1.5}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        ReorderDocuments(**options)  # type: ignore[arg-type]
