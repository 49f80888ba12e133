"""A server that restarts, refuses, is older, newer or somebody else's; forks; lost answers."""

from __future__ import annotations

import multiprocessing
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

psycopg = pytest.importorskip("psycopg", reason="pip install 'remnant[postgres]'")

from psycopg.conninfo import make_conninfo  # noqa: E402

from remnant.errors import ConfigError  # noqa: E402
from remnant.index import DenseScan, pack  # noqa: E402
from remnant.memory import EmbedderError, HashEmbedder, Memory, StoreError  # noqa: E402
from remnant.memory.memory import open_store  # noqa: E402
from remnant.memory.postgres import PostgresStore, near  # noqa: E402
from remnant.memory.postgres.schema import MIGRATIONS, migrate, version  # noqa: E402

A = "tenant-a"
Put = Callable[..., Any]


@pytest.fixture
def admin(postgres: Any) -> Iterator[Any]:
    with psycopg.connect(postgres.get_uri(), autocommit=True) as c:
        yield c


def test_a_server_that_stops_and_comes_back(server: Any, postgres: Any, put: Put):
    store = server.store(wait=0.5)
    memory = server.memory(store=store, strict=False)
    put(store, ("r1", "tea"))
    seen: list[str] = []
    memory.events.subscribe(lambda event: seen.append(event.name))
    postgres.stop()
    try:
        for act in (lambda: store.get(A, ["r1"]), lambda: put(store, ("r2", "milk"))):
            with pytest.raises(StoreError, match="PostgreSQL at"):
                act()
        assert memory.recall("tea") == []
        assert seen == ["recall_failed"]
        with pytest.raises(StoreError):
            server.store(wait=0.5)
    finally:
        postgres.ensure_postgres_running()
    assert [hit.text for hit in memory.recall("tea")] == ["tea"]
    assert put(store, ("r3", "beer")).ids == ("r3",)
    assert store.count(A) == {"active": 2}


def test_work_goes_on_while_the_server_restarts(server: Any, postgres: Any, put: Put):
    store = server.store(wait=20.0)
    put(store, ("r0", "tea"))
    stop = threading.Event()
    written: list[str] = []

    def work(name: str) -> None:
        n = 0
        while not stop.is_set():
            put(store, (f"{name}{n}", "tea"))
            written.append(f"{name}{n}")
            n += 1

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(work, name) for name in "abc"]
        try:
            while len(written) < 10:
                stop.wait(0.01)
            postgres.stop()
            postgres.ensure_postgres_running()
            before = len(written)
            while len(written) < before + 10:
                stop.wait(0.01)
        finally:
            stop.set()
        for future in running:
            future.result()
    assert sorted(record.id for record in store.page(A)) == sorted(["r0", *written])
    assert len(store.changes(A)) == len(written) + 1


def test_connections_that_are_cut(server: Any, admin: Any, put: Put):
    store = server.store()
    put(store, ("r1", "tea"))
    for n in range(3):
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        assert store.get(A, ["r1"])
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        put(store, (f"s{n}", "milk"))
    assert store.count(A) == {"active": 4}


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_answer_that_is_lost(server: Any, put: Put, monkeypatch: pytest.MonkeyPatch, when: str):
    """The connection breaks as a transaction ends: before the server saw the COMMIT, or after it carried it out."""
    store = server.store()
    put(store, ("r1", "tea"))
    execute = psycopg.Connection.execute
    broken: list[str] = []

    def breaks(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        if query == "COMMIT" and not broken:
            broken.append(when)
            if when == "after":
                execute(self, query)
            self.close()
        return execute(self, query, *args, **kwargs)

    monkeypatch.setattr(psycopg.Connection, "execute", breaks)
    change = put(store, ("r2", "milk"))
    assert broken
    assert store.changes(A)[0] == change
    assert len(store.changes(A)) == 2
    assert store.get(A, ["r2"])["r2"].version == 1


def _child(store: Any, answers: Any) -> None:
    store.commit(A, [], actor="a", reason="r")
    answers.put(sorted(store.get(A, ["r1", "r2"])))
    store.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork beside threads: that is what is tried
def test_a_fork_gets_connections_of_its_own(server: Any, put: Put):
    store = server.store()
    put(store, ("r1", "tea"))
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    children = [fork.Process(target=_child, args=(store, answers)) for _ in range(2)]
    for child in children:
        child.start()
    put(store, ("r2", "milk"))
    found = [answers.get(timeout=30) for _ in children]
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0]
    assert all("r1" in ids for ids in found)
    put(store, ("r3", "beer"))
    assert store.count(A) == {"active": 3}


def test_the_name_of_a_schema_is_only_a_name(new_schema: Any, admin: Any, put: Put):
    names = ['a"b; DROP SCHEMA public; --', "Ünï code", "select", "x" * 63]
    for name in names:
        where = {**new_schema(), "schema": name}
        store = open_store(**where)
        put(store, ("r1", "tea"))
        assert store.words(A, ["tea"], 5)
        store.close()
        assert admin.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (name,)).fetchone()
    for bad in ("", "x" * 64, "é" * 32, "pg_mine", "a\0b"):
        with pytest.raises(ConfigError, match="schema"):
            open_store(**{**new_schema(), "schema": bad})


def test_schemas_do_not_see_each_other(new_schema: Any, put: Put):
    one, two = (open_store(**new_schema()) for _ in range(2))
    put(one, ("r1", "tea"))
    assert (two.get(A, ["r1"]), two.scopes(), two.words(A, ["tea"], 5)) == ({}, [], [])
    one.close()
    two.close()


def test_several_make_the_schema_at_once(new_schema: Any, put: Put):
    where = new_schema()
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: open_store(**where), range(4)))
    for n, store in enumerate(stores):
        put(store, (f"r{n}", "tea"))
    assert stores[0].count(A) == {"active": 4}
    for store in stores:
        store.close()


def test_an_older_schema_goes_forward(server: Any, admin: Any, put: Put):
    put(server.store(), ("r1", "tea"))
    schema = server.where["schema"]
    after = (*MIGRATIONS, "CREATE TABLE more (x int); INSERT INTO more SELECT count(*) FROM records")
    assert migrate(admin, schema, "here", after) == 1
    assert admin.execute("SELECT x FROM more").fetchone() == (1,)
    assert migrate(admin, schema, "here", after) == 2
    with pytest.raises(StoreError, match=r"version 2.*up to 1"):
        server.store()
    with pytest.raises(StoreError, match="version 2"):
        server.store(read_only=True)


def test_a_migration_that_fails_changes_nothing(server: Any, admin: Any, put: Put):
    put(server.store(), ("r1", "tea"))
    schema = server.where["schema"]
    with pytest.raises(psycopg.Error):
        migrate(admin, schema, "here", (*MIGRATIONS, "CREATE TABLE more (x int); CREATE TABLE records (x int)"))
    assert version(admin, schema, "here") == 1
    assert server.store().get(A, ["r1"])


def test_another_programs_schema_is_left_alone(new_schema: Any, admin: Any):
    where = new_schema()
    admin.execute(f'CREATE SCHEMA "{where["schema"]}"'.encode())
    admin.execute(f'CREATE TABLE "{where["schema"]}".records (x int)'.encode())
    for read_only in (False, True):
        with pytest.raises(StoreError, match="another program"):
            open_store(**where, read_only=read_only)


def test_without_pgvector_vectors_are_kept_as_bytes(new_schema: Any, admin: Any, postgres: Any):
    """A user who may only use a schema that was made for him, in a database without the extension."""
    where = new_schema()
    schema = where["schema"]
    admin.execute(f'CREATE DATABASE "{schema}"'.encode())
    admin.execute(f'CREATE ROLE "{schema}" LOGIN'.encode())
    own = make_conninfo(postgres.get_uri(), dbname=schema)
    with psycopg.connect(own, autocommit=True) as c:
        c.execute(
            f'REVOKE ALL ON DATABASE "{schema}" FROM PUBLIC; CREATE SCHEMA "{schema}" AUTHORIZATION "{schema}"'.encode()
        )
        c.execute(f'GRANT CONNECT ON DATABASE "{schema}" TO "{schema}"'.encode())
    store = PostgresStore(make_conninfo(own, user=schema), schema=schema)
    assert store.vector_type == "bytea"
    with Memory.open("", store=store, scope=A, embedder=HashEmbedder(), strict=True) as memory:
        ids = memory.add(["photographers", "weather"])
        assert memory.recall("photogenic", k=1)[0].id == ids[0]
        assert store.dimension(A, HashEmbedder().model_id) == len(HashEmbedder().embed(["x"], kind="query")[0])
        assert memory.forget(ids[0]).vectors == 1
    with pytest.raises(StoreError, match=r"schema|database"):
        PostgresStore(make_conninfo(own, user=schema), schema="another")


def test_with_pgvector_the_server_knows_vectors(server: Any):
    assert server.store().vector_type == "vector"


def test_a_vector_that_is_too_long_for_the_server(server: Any, write: Callable[..., Any]):
    store = server.store()
    with pytest.raises(StoreError, match="16"):
        store.commit(A, [write("r1", "tea", vectors={"m": b"\0" * 4 * 16_001})], actor="a", reason="r")
    with pytest.raises(StoreError, match="2,000 bytes"):
        store.commit(A, [write(random.Random(0).randbytes(3000).hex(), "tea")], actor="a", reason="r")
    assert store.get(A, ["r1"]) == {}


def test_faults_of_the_address():
    with pytest.raises(ConfigError, match="postgresql://") as caught:
        open_store("postgresql://user:secret@[::1/db")
    assert "secret" not in str(caught.value)
    with pytest.raises(StoreError) as refused:
        open_store("postgresql://user:secret@127.0.0.1:1/db", wait=1.0)
    assert "127.0.0.1:1" in str(refused.value)
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigError, match="postgresql"):
        open_store("mysql://host/db")
    with pytest.raises(ConfigError, match="synchronous"):
        open_store("postgresql://127.0.0.1:1/db", synchronous="full")


def test_without_the_driver_the_error_names_the_extra():
    code = """import sys; sys.modules["psycopg"] = None
from remnant.memory import Memory
try: Memory.open("postgresql://x/y", scope="a")
except ImportError as error: print(error)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'remnant[postgres]'" in done.stdout


def test_what_is_remembered_is_in_no_statistics(server: Any, admin: Any, put: Put):
    put(server.store(), *((f"r{n}", "zyxomonth tea") for n in range(50)))
    admin.execute("ANALYZE")
    sql = "SELECT count(*) FROM pg_stats WHERE schemaname = %s AND pg_stats::text LIKE '%%zyxo%%'"
    assert admin.execute(sql, (server.where["schema"],)).fetchone() == (0,)
    assert admin.execute(
        "SELECT count(*) > 0 FROM pg_stats WHERE schemaname = %s", (server.where["schema"],)
    ).fetchone() == (True,)


def _unit(count: int, size: int, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return pack([[rng.gauss(0, 1) for _ in range(size)] for _ in range(count)])


def _nearest(store: Any, query: bytes, k: int = 10, also: Any = ()) -> Any:
    """The index is built in the background: wait for it."""
    end = time.monotonic() + 60
    while (found := store.nearest(A, "m", query, k, also)) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_a_large_scope_is_searched_on_the_server(
    server: Any, write: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(near, "SERVED", 300)
    monkeypatch.setattr(near, "LOOK", 0.0)
    store, vectors = server.store(), _unit(400, 16, 1)

    def commit(numbers: range, scope: str = A, **of: Any) -> None:
        rows = [write(f"r{n:03}", "tea", vectors={"m": vectors[n]}, **of) for n in numbers]
        store.commit(scope, rows, actor="a", reason="r")

    commit(range(250))
    commit(range(350, 400), "tenant-b")
    assert store.nearest(A, "m", vectors[0], 10) is None
    commit(range(250, 340))
    commit(range(340, 350), status="archived")
    exact = DenseScan(16)
    exact.load([(id, blob) for id, blob in store.vectors(A, "m") if blob is not None])
    for n in (0, 100, 345, 399):
        found, whole = (
            _nearest(store, vectors[n], also=["r001", "r345", "none"]),
            exact.search(vectors[n], 10, ["r001"]),
        )
        assert len(set(found.best) & set(whole.best)) >= 9
        assert found.best == pytest.approx(
            {id: whole.of.get(id, whole.best.get(id, found.best[id])) for id in found.best}
        )
        assert found.of == pytest.approx(whole.of, abs=1e-5)
        assert (found.low, found.high) == pytest.approx((whole.low, whole.high), abs=0.1)
    assert store.nearest("tenant-b", "m", vectors[0], 10) is None
    store.erase(A, ["r000"])
    assert "r000" not in _nearest(store, vectors[0]).best
    with pytest.raises(EmbedderError, match=r"8 numbers.*16"):
        store.nearest(A, "m", vectors[0][:32], 10)


def test_an_index_whose_builder_died_is_built_anew(server: Any, admin: Any, write: Callable[..., Any]):
    store, vectors = server.store(), _unit(50, 8, 2)
    store.commit(A, [write(f"r{n}", "tea", vectors={"m": v}) for n, v in enumerate(vectors)], actor="a", reason="r")
    assert not store.build(A, "no such embedder")
    assert store.build(A, "m")
    index = f'"{server.where["schema"]}".{near.index_name(A, "m")}'
    admin.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", (index,))
    assert store.build(A, "m")
    state = admin.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = %s::regclass", (index,))
    assert state.fetchone() == (True,)


def test_recall_asks_the_server_in_a_large_scope(server: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(near, "SERVED", 20)
    monkeypatch.setattr(near, "LOOK", 0.0)
    memory = server.memory(embedder=HashEmbedder(32))
    ids = memory.add(["photographers", *(f"note {n}" for n in range(30))])
    store = memory.store
    assert store.build(A, HashEmbedder(32).model_id)
    monkeypatch.setattr(store, "vectors", None)
    assert memory.recall("photogenic", k=1)[0].id == ids[0]
