"""Random batches against LangGraph's own store in memory."""

import asyncio
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.store.base import GetOp, Item, ListNamespacesOp, MatchCondition, Op, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from remnant.memory import Memory
from remnant_langchain import MemoryStore

SCOPES = map(str, count())

LABELS = st.sampled_from(["a", "b", "A", "a/b", "ü", "%"])
NAMESPACES = st.lists(LABELS, min_size=1, max_size=3).map(tuple)
PATHS = st.lists(st.one_of(LABELS, st.just("*")), min_size=1, max_size=3).map(tuple)
KEYS = st.sampled_from(["k", "K", "k/1", "", "ключ"])
SCALARS = st.one_of(st.integers(-3, 3), st.sampled_from(["x", "y", "tea", "1"]), st.booleans(), st.none())
DEEPER = st.dictionaries(st.sampled_from(["n", "m"]), SCALARS, max_size=2)
VALUES = st.dictionaries(
    st.sampled_from(["n", "s", "t.u"]),
    st.one_of(
        SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.sampled_from(["n", "m"]), SCALARS, max_size=2)
    ),
    max_size=3,
)
LIMITS = st.sampled_from(["$eq", "$ne"]).flatmap(lambda name: SCALARS.map(lambda value: {name: value}))
FILTERS = st.dictionaries(
    st.sampled_from(["n", "s", "t.u"]),
    st.one_of(SCALARS, LIMITS, st.lists(SCALARS, max_size=2), st.just({"n": {"$eq": 1}}), st.just({"m": None})),
    min_size=1,
    max_size=2,
)
PUTS = st.builds(
    PutOp,
    NAMESPACES,
    KEYS,
    st.one_of(st.none(), VALUES),
    st.sampled_from([None, None, False, ["n"], ["s", "n.m"]]),
    st.none(),
)
OPS = st.one_of(
    PUTS,
    PUTS,
    st.builds(GetOp, NAMESPACES, KEYS, st.booleans()),
    st.builds(
        SearchOp,
        st.one_of(st.just(()), NAMESPACES),
        filter=st.one_of(st.none(), FILTERS),
        limit=st.just(1000),
        offset=st.just(0),
        refresh_ttl=st.booleans(),
        query=st.one_of(st.none(), st.sampled_from(["tea", "x y", "", "'; --"])),
    ),
    st.builds(
        ListNamespacesOp,
        st.one_of(
            st.none(),
            st.lists(st.builds(MatchCondition, st.sampled_from(["prefix", "suffix"]), PATHS), max_size=2).map(tuple),
        ),
        st.one_of(st.none(), st.integers(1, 3)),
        st.sampled_from([1000, 2]),
        st.sampled_from([0, 1]),
    ),
)
BATCHES = st.lists(st.lists(OPS, max_size=8), min_size=1, max_size=8)


class Oracle(InMemoryStore):
    """Without what it is known to get wrong: it lists namespaces that hold nothing."""

    def _handle_list_namespaces(self, op: ListNamespacesOp) -> Any:
        for namespace in [name for name, held in self._data.items() if not held]:
            del self._data[namespace]
        return super()._handle_list_namespaces(op)


def _plain(op: Op, result: Any) -> Any:
    """Results without order, where no order was asked for, and without times."""
    if isinstance(result, Item):
        return result.namespace, result.key, result.value
    if isinstance(op, SearchOp):
        return sorted(repr(_plain(op, item)) for item in result)
    return result


def _agree(ours: Any, batches: list[list[Op]]) -> None:
    oracle = Oracle()
    for ops in batches:
        for op, mine, theirs in zip(ops, ours(ops), oracle.batch(ops), strict=True):
            assert _plain(op, mine) == _plain(op, theirs), op


SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    """One file for all examples; each has a scope of its own, so that the others' items are there to leak."""
    path: Path = tmp_path_factory.mktemp("oracle") / "memory.db"
    with Memory.open(path, scope="nobody", secrets="keep", write="manual") as memory:
        yield memory


@settings(max_examples=200, deadline=None, suppress_health_check=SLOW)
@given(BATCHES)
def test_random_batches_agree_with_langgraphs_store(memory: Memory, batches: list[list[Op]]) -> None:
    _agree(MemoryStore(memory, scope=next(SCOPES)).batch, batches)


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
@given(BATCHES)
def test_random_async_batches_with_real_deletes_agree_too(memory: Memory, batches: list[list[Op]]) -> None:
    store = MemoryStore(memory, scope=next(SCOPES), deletes="erase")
    _agree(lambda ops: asyncio.run(store.abatch(ops)), batches)


@settings(max_examples=30, deadline=None, suppress_health_check=SLOW)
@given(st.lists(st.tuples(st.integers(-5, 5), st.floats(-5, 5)), min_size=1, max_size=8), st.integers(-5, 5))
def test_orders_agree_on_numbers(memory: Memory, pairs: list[tuple[int, float]], limit: int) -> None:
    oracle = Oracle()
    puts = [PutOp(("n",), str(i), {"a": a, "b": str(b)}) for i, (a, b) in enumerate(pairs)]
    asked: list[Op] = [
        SearchOp(("n",), {key: {name: limit}}, limit=100) for key in "ab" for name in ("$gt", "$gte", "$lt", "$lte")
    ]
    store = MemoryStore(memory, scope=next(SCOPES))
    store.batch(puts)
    oracle.batch(puts)
    for op, mine, theirs in zip(asked, store.batch(asked), oracle.batch(asked), strict=True):
        assert _plain(op, mine) == _plain(op, theirs), op
