"""The store over a memory on a server: the oracle's batches, places, words, erasure."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.store.base import GetOp, ListNamespacesOp, Op, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from remnant.memory import HashEmbedder, Memory
from remnant_langchain import MemoryRetriever, MemoryStore, RoutedRetriever

SCOPES = map(str, count())
NAMESPACES = st.sampled_from([("a",), ("A",), ("a", "b"), ("a/b",), ("a%2Fb",), ("ü", "x=y"), ("a0",), ("a", "b", "c")])
KEYS = st.sampled_from(["k", "K", "", "ключ"])
VALUES = st.dictionaries(st.sampled_from(["n", "s"]), st.one_of(st.integers(-2, 2), st.sampled_from(["tea", "x"])))
OPS = st.one_of(
    st.builds(PutOp, NAMESPACES, KEYS, st.one_of(st.none(), VALUES), st.sampled_from([None, False]), st.none()),
    st.builds(GetOp, NAMESPACES, KEYS),
    st.builds(
        SearchOp,
        st.one_of(st.just(()), NAMESPACES),
        st.one_of(st.none(), st.just({"n": {"$gte": 0}}), st.just({"s": "tea"})),
        st.just(1000),
        st.just(0),
        st.sampled_from([None, "tea"]),
    ),
)


@pytest.fixture(scope="module")
def memory(postgres: Any) -> Iterator[Memory]:
    with Memory.open(postgres.get_uri(), scope="nobody", write="manual", secrets="keep", schema="langstore") as memory:
        yield memory


def _plain(result: Any) -> Any:
    if isinstance(result, list):
        return sorted(repr(_plain(item)) for item in result)
    return result and (result.namespace, result.key, result.value)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(OPS, max_size=6), min_size=1, max_size=4))
def test_random_batches_agree_with_langgraphs_store(memory: Memory, batches: list[list[Op]]) -> None:
    store, oracle = MemoryStore(memory, scope=next(SCOPES)), InMemoryStore()
    for ops in batches:
        comparable = [op for op in ops if isinstance(op, SearchOp) and "$gte" in str(op.filter)]
        both = [op for op in ops if op not in comparable]  # the oracle raises where a value is no number
        assert list(map(_plain, store.batch(both))) == list(map(_plain, oracle.batch(both)))
        store.batch(comparable)
    held = {namespace for namespace, items in oracle._data.items() if items}
    assert store.list_namespaces(limit=100) == sorted(held)


def test_a_place_ends_where_a_label_ends(memory: Memory) -> None:
    store = MemoryStore(memory, scope=next(SCOPES))
    names = [("foo",), ("foo", "a"), ("foobar",), ("foo0",), ("Foo",), ("foo/a",)]
    store.batch([PutOp(name, "k", {"v": 1}) for name in names])
    assert {item.namespace for item in store.search(("foo",), limit=100)} == {("foo",), ("foo", "a")}
    assert store.batch([ListNamespacesOp()])[0] == sorted(names)


async def test_every_door_reads_it_and_forgets_it(new_schema: Callable[[], dict[str, str]]) -> None:
    where: Any = new_schema()
    with Memory.open(**where, scope="a", write="manual", embedder=HashEmbedder(64)) as memory:
        store = MemoryStore(memory)
        await store.aput(("users", "ann"), "drink", {"text": "Ann likes green tea"})
        await store.aput(("users", "bob"), "drink", {"text": "Bob likes milk"})
        assert [item.key for item in await store.asearch(("users", "ann"), query="teas")] == ["drink"]
        assert [d.page_content for d in MemoryRetriever(memory, k=1).invoke("teas")] == ["Ann likes green tea"]
        assert len(await RoutedRetriever(memory, model=8000).ainvoke("teas")) == 2
        receipt = store.forget(("users", "ann"), "drink")
        assert len(receipt.ids) == 1
        assert store.list_namespaces() == [("users", "bob")]
        assert [d.page_content for d in RoutedRetriever(memory, model=8000).invoke("teas")] == ["Bob likes milk"]
        assert MemoryStore(memory, scope="b").search((), query="milk") == []
