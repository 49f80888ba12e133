"""A store beside the other doors: time to live, forgetting, tenants, meaning, the event loop, a real agent."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.tools import ToolRuntime
from langchain_core.embeddings import Embeddings
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.store.base import GetOp, PutOp, SearchOp

from remnant.memory import Episode, HashEmbedder, Memory, Record
from remnant_langchain import MemoryRetriever, MemoryStore, RoutedRetriever


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Vectors(Embeddings):
    """Hashed trigrams; slow on request, and it counts who asked."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.inner, self.seconds = HashEmbedder(64), seconds
        self.sync = self.awaited = 0

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.sync += 1
        return self.inner.embed(texts, kind="document")

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        self.awaited += 1
        await asyncio.sleep(self.seconds)
        return self.inner.embed(texts, kind="document")

    async def aembed_query(self, text: str) -> list[float]:
        return (await self.aembed_documents([text]))[0]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[MemoryStore]:
    with MemoryStore(path, scope="tenant-a", clock=clock, ttl={"default_ttl": None}) as store:
        yield store


def _keys(found: list[Any]) -> list[str]:
    return [item.key for item in found]


def test_an_item_ends_when_its_time_is_over(store: MemoryStore, clock: Clock) -> None:
    store.put(("n",), "short", {"text": "tea"}, ttl=10)
    store.put(("n",), "long", {"text": "tea"}, ttl=None)
    clock.now += 601
    assert store.get(("n",), "short") is None
    assert _keys(store.search(("n",))) == ["long"] == _keys(store.search(("n",), query="tea"))
    assert [hit.record.id for hit in store.memory.recall("tea")] == [store.id_of(("n",), "long")]
    assert store.sweep_ttl() == 1
    assert store.sweep_ttl() == 0
    assert store.memory.get(store.id_of(("n",), "short")) is None


def test_reading_begins_the_time_anew_if_wanted(store: MemoryStore, clock: Clock) -> None:
    for key in ("read", "seen", "found", "peeked", "alone"):
        store.put(("n", key), key, {"text": key}, ttl=10)
    clock.now += 300
    store.get(("n", "read"), "read")
    store.search(("n", "seen"))
    store.search(("n", "found"), query="found")
    store.get(("n", "peeked"), "peeked", refresh_ttl=False)
    store.search(("n", "peeked"), refresh_ttl=False)
    clock.now += 400
    assert sorted(_keys(store.search(("n",), refresh_ttl=False))) == ["found", "read", "seen"]
    item = store.get(("n", "read"), "read")
    assert item is not None
    assert item.updated_at.timestamp() == 1_800_000_000.0, "a read changes nothing of the item"


def test_reading_often_does_not_write_often(store: MemoryStore, clock: Clock) -> None:
    store.put(("n",), "k", {"v": 1}, ttl=100)
    for _ in range(50):
        clock.now += 30
        assert store.get(("n",), "k") is not None
    assert len(store.memory.changes()) <= 1 + 50 * 30 // 60
    store.put(("n",), "k", {"v": 2}, ttl=None)
    clock.now += 100_000
    assert store.get(("n",), "k") is not None


def test_the_settings_of_the_store_hold_where_a_call_says_nothing(path: Path, clock: Clock) -> None:
    with MemoryStore(path, scope="a", clock=clock, ttl={"default_ttl": 1, "refresh_on_read": False}) as store:
        store.put(("n",), "k", {"v": 1})
        clock.now += 40
        assert store.get(("n",), "k") is not None
        clock.now += 40
        assert store.get(("n",), "k") is None
        store.put(("n",), "k", {"v": 2})
        item = store.get(("n",), "k")
        assert item is not None
        assert item.created_at.timestamp() == clock.now, "an expired item is not continued"


def test_a_sweeper_erases_in_the_background(store: MemoryStore, clock: Clock, path: Path) -> None:
    store.put(("n",), "k", {"text": "xyzzysecretword"}, ttl=1)
    clock.now += 100
    gone = threading.Event()
    store.memory.events.subscribe(lambda event: gone.set() if event.name == "forgotten" else None)
    store.start_ttl_sweeper(0.001)
    assert gone.wait(20)
    assert store.stop_ttl_sweeper(20)
    store.close()
    assert all(b"xyzzysecretword" not in file.read_bytes() for file in path.parent.iterdir())


def test_a_read_only_file_can_be_read(store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    from remnant.memory import StoreError

    def full(*_: Any, **__: Any) -> None:
        raise StoreError("disk full")

    store.put(("n",), "k", {"v": 1}, ttl=10)
    clock.now += 300
    monkeypatch.setattr(store.memory.store, "commit", full)
    assert store.get(("n",), "k") is not None
    with pytest.raises(StoreError):
        store.put(("n",), "k", {"v": 2})


def test_a_delete_can_be_undone_and_forget_cannot(store: MemoryStore) -> None:
    store.put(("n",), "k", {"v": 1})
    store.delete(("n",), "k")
    store.memory.undo(store.memory.changes()[0])
    assert store.get(("n",), "k").value == {"v": 1}  # type: ignore[union-attr]
    assert store.forget(("n",), "k").clean
    assert store.get(("n",), "k") is None
    assert store.memory.audit(store.id_of(("n",), "k")) == []


@pytest.mark.parametrize("how", ["forget", "aforget", "erase"])
async def test_forgetting_leaves_no_bytes_at_any_door(path: Path, how: str) -> None:
    word, name = "xyzzysecretword", ("xyzzyspace", "ann")
    store = MemoryStore(path, scope="a", deletes="erase", index={"embed": Vectors(), "dims": 64})
    store.put(name, "xyzzykey", {"text": word})
    store.put(name, "xyzzykey", {"text": f"{word} again"})
    store.put(("other",), "k", {"text": "stays"})
    if how == "erase":
        await store.adelete(name, "xyzzykey")
    else:
        receipt = store.forget(name, "xyzzykey") if how == "forget" else await store.aforget(name, "xyzzykey")
        assert receipt.clean
        assert receipt.versions == 2
    assert _keys(store.search((), query=word)) == ["k"]
    assert [hit.text for hit in store.memory.recall(word)] in ([], ["stays"])
    assert {d.page_content for d in MemoryRetriever(memory=store.memory).invoke(word)} <= {"stays"}
    assert store.list_namespaces() == [("other",)]
    store.close()
    for file in path.parent.iterdir():
        assert b"xyzzy" not in file.read_bytes()


def test_other_doors_see_items_as_data_with_their_source(store: MemoryStore) -> None:
    store.put(("users", "ann"), "drink", {"text": "Ann likes green tea"})
    (hit,) = store.memory.recall("green tea")
    assert hit.text == "Ann likes green tea"
    assert (hit.record.kind, hit.record.trust, hit.record.place) == ("store", "agent", "store/users/ann")
    assert (hit.record.provenance[0].source_type, hit.record.provenance[0].source_id) == ("store", "drink")
    assert store.memory.recall("green tea", kinds=["fact"]) == []


def test_what_other_doors_write_has_no_namespace(store: MemoryStore) -> None:
    store.memory.add(["Ann likes tea", Record("a plan for tea", kind="strategy"), Record("tea", place="notes/ann")])
    store.memory.add(Record("tea", kind="store", place="store/n"))  # by hand, without a key
    assert store.search((), limit=100) == [] == store.search((), query="tea")
    assert store.list_namespaces() in ([], [("n",)])


def test_a_cube_carries_items(store: MemoryStore, tmp_path: Path) -> None:
    store.put(("n",), "k", {"v": [1]})
    store.memory.export(tmp_path / "cube.jsonl")
    with MemoryStore(":memory:", scope="elsewhere") as other:
        other.memory.import_(tmp_path / "cube.jsonl")
        item, original = other.get(("n",), "k"), store.get(("n",), "k")
        assert item is not None
        assert item == original


def test_meaning_ranks_within_the_namespace_and_takes_the_words_along(path: Path) -> None:
    vectors = Vectors()
    with MemoryStore(path, scope="a", index={"embed": vectors, "dims": 64, "fields": ["text"]}) as store:
        store.batch([PutOp(("crowd",), str(i), {"text": f"kettles number {i}"}) for i in range(50)])
        store.put(("ann",), "close", {"text": "a kettle"})
        store.put(("ann",), "far", {"text": "snow in spring"})
        store.put(("ann",), "unindexed", {"text": "kettles"}, index=False)
        store.put(("ann",), "textless", {"other": 1})
        found = store.search(("ann",), query="kettlez")
        assert _keys(found)[:2] == ["close", "far"]
        assert [item.score is None for item in found] == [False, False, True, True]
        assert found[0].score > found[1].score  # type: ignore[operator]
    assert vectors.awaited == 0 < vectors.sync


async def test_async_batches_await_the_embedder(path: Path) -> None:
    vectors = Vectors()
    with MemoryStore(path, scope="a", index={"embed": vectors, "dims": 64}) as store:
        await store.aput(("n",), "k", {"text": "a kettle"})
        assert _keys(await store.asearch(("n",), query="kettles")) == ["k"]
        assert (await store.aget(("n",), "k")).value == {"text": "a kettle"}  # type: ignore[union-attr]
        assert await store.alist_namespaces() == [("n",)]
    assert vectors.sync == 0 < vectors.awaited


async def test_functions_may_embed(path: Path) -> None:
    async def embed(texts: Any) -> list[list[float]]:
        return HashEmbedder(32).embed(texts, kind="document")

    with MemoryStore(path, scope="a", index={"embed": embed, "dims": 32}) as store:
        await store.aput(("n",), "k", {"text": "a kettle"})
        assert store.memory.context.embedder is not None
        assert store.memory.context.embedder.model_id.endswith("embed:32")
        assert (await store.asearch(("n",), query="kettlez"))[0].score is not None


def test_an_embedder_that_fails_costs_neither_the_item_nor_the_search(path: Path) -> None:
    def broken(texts: Any) -> list[list[float]]:
        raise ConnectionError("no route")

    with MemoryStore(path, scope="a", index={"embed": broken, "dims": 32}) as store:
        store.put(("n",), "k", {"text": "green tea"})
        assert store.search(("n",), query="tea")[0].score


async def test_the_event_loop_goes_on_during_batches(path: Path) -> None:
    with MemoryStore(path, scope="a", index={"embed": Vectors(0.02), "dims": 64}) as store:
        await store.abatch([PutOp(("n",), str(i), {"text": f"tea number {i}"}) for i in range(300)])
        longest, done = 0.0, asyncio.Event()

        async def tick() -> None:
            nonlocal longest
            while not done.is_set():
                start = time.perf_counter()
                await asyncio.sleep(0.001)
                longest = max(longest, time.perf_counter() - start)

        ticking = asyncio.create_task(tick())
        for i in range(5):
            ops = [GetOp(("n",), str(i)), SearchOp(("n",), query="tea"), PutOp(("n",), f"new{i}", {"text": "milk"})]
            await store.abatch(ops)
        await store.aforget(("n",), "0")
        done.set()
        await ticking
    assert longest < 0.5


def test_threads_that_put_the_same_key_all_succeed(path: Path) -> None:
    with MemoryStore(path, scope="a") as store:
        faults: list[BaseException] = []

        def put(name: int) -> None:
            try:
                for i in range(10):
                    store.batch([PutOp(("n",), "shared", {"by": name, "i": i}), PutOp(("n",), f"{name}-{i}", {"i": i})])
                    if i % 3 == 0:
                        store.delete(("n",), "shared")
            except BaseException as fault:
                faults.append(fault)

        threads = [threading.Thread(target=put, args=(name,)) for name in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults
        assert len(store.search(("n",), limit=100, filter={"i": {"$gte": 0}})) in (30, 31)


async def test_tasks_that_put_the_same_key_all_succeed(path: Path) -> None:
    with MemoryStore(path, scope="a") as store:
        await asyncio.gather(*(store.aput(("n",), "k", {"i": i}) for i in range(12)))
        item = await store.aget(("n",), "k")
        assert item is not None
        assert len(store.memory.audit(store.id_of(("n",), "k"))) == 12


def test_a_store_does_not_touch_what_an_agent_left_open(path: Path) -> None:
    with Memory.open(path, scope="a", write="manual") as agent:
        episode = agent.open_episode("a task")
        agent.observe(episode.id, {"role": "user", "content": "hello"})
        agent.close_episode(episode.id, "success")
        left = Episode("left", "a", "a task of a process that is gone")
        agent.store.open_episode(left, f"{socket.gethostname()}:999999999:1")
        with MemoryStore(path, scope="a") as store:
            store.put(("n",), "k", {"v": 1})
            assert store.memory.stats()["pending"] == 1
            assert agent.store.abandoned("a") == ["left"]
        assert MemoryRetriever(path, scope="a").invoke("task") == []
        assert agent.store.abandoned("a") == ["left"]


LABEL = st.sampled_from(["a", "b", "a/b", "%2F", "tenant-b", "*", "__", "x=y"])


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([("t", "t/store"), ("a", "a=b"), ("a", "A"), ("x", "x/y"), ("store", "store/n"), ("%", "%25")]),
    st.lists(st.tuples(st.lists(LABEL, min_size=1, max_size=2).map(tuple), LABEL), min_size=1, max_size=6),
)
def test_two_tenants_never_meet(shared: Memory, scopes: tuple[str, str], places: list[Any]) -> None:
    ours, theirs = (MemoryStore(shared.scoped(scope)) for scope in scopes)
    ours.batch([PutOp(namespace, key, {"text": "private tea of ours"}) for namespace, key in places])
    for namespace, key in places:
        assert theirs.get(namespace, key) is None
        assert theirs.search(namespace[:1], query="private tea") == []
        theirs.delete(namespace, key)
        theirs.forget(namespace, key)
    assert theirs.search((), limit=100) == [] == theirs.list_namespaces()
    assert theirs.memory.recall("private tea") == []
    assert MemoryRetriever(theirs.memory).invoke("private tea") == []
    assert RoutedRetriever(theirs.memory, model=100_000).invoke("private tea") == []
    assert len(RoutedRetriever(ours.memory, model=100_000).invoke("private tea")) == len(set(places))
    assert len(ours.search((), limit=100)) == len(set(places))
    for namespace, key in set(places):
        ours.forget(namespace, key)
    assert ours.memory.recall("private tea") == [] == RoutedRetriever(ours.memory, model=100_000).invoke("tea")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    with Memory.open(tmp_path_factory.mktemp("tenants") / "memory.db", scope="nobody", write="manual") as memory:
        yield memory


class Model(GenericFakeChatModel):
    """Says what it is told to."""

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self


@tool
def note(text: str, runtime: ToolRuntime[Any, Any]) -> str:
    """Write a note."""
    assert runtime.store is not None
    runtime.store.put(("notes", "ann"), "latest", {"text": text})
    return "written"


@pytest.mark.parametrize("awaited", [False, True])
async def test_an_agents_tools_write_into_it(path: Path, awaited: bool) -> None:
    call = {"name": "note", "args": {"text": "Ann likes tea"}, "id": "1", "type": "tool_call"}
    with MemoryStore(path, scope="a") as store:
        model = Model(messages=iter([AIMessage("", tool_calls=[call]), AIMessage("done")]))  # type: ignore[list-item]
        agent = create_agent(model, [note], store=store)
        asked = {"messages": [("user", "remember it")]}
        answer = await agent.ainvoke(asked) if awaited else agent.invoke(asked)  # type: ignore[arg-type]
        assert answer["messages"][-2].content == "written"
        assert store.search(("notes",), query="tea")[0].value == {"text": "Ann likes tea"}
        assert store.memory.recall("tea")[0].text == "Ann likes tea"
