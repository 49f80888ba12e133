"""The side of the comparison that runs where the peers are installed: one line of JSON per measurement, to stdout.

Every provider gets the same texts in the same batches, in turns whose order changes, and then the same questions, in
turns as well. A provider that has used up its time stops growing, and is asked nothing at the sizes it did not reach.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import memory_lib as lib

BATCH, WARM = 100, 3
VERSIONS = ("mem0ai", "qdrant-client", "faiss-cpu", "langmem", "langgraph", "langgraph-checkpoint-sqlite", "sqlite-vec")


class Provider(Protocol):
    """What is compared."""

    def add(self, texts: Sequence[str]) -> None:
        """Remember texts in the way that is meant for several, or for one."""
        ...

    def best(self, question: str) -> str:
        """The first of ten hits."""
        ...


class Remnant:
    """A file, words and vectors."""

    def __init__(self, folder: Path, embedder: lib.TableEmbedder) -> None:
        """See the class."""
        from remnant.memory import Memory

        self._memory = Memory.open(folder / "m.db", scope="a", embedder=embedder, write="manual", strict=True)

    def add(self, texts: Sequence[str]) -> None:
        """See `Provider`."""
        self._memory.add(texts)

    def best(self, question: str) -> str:
        """See `Provider`."""
        return self._memory.recall(question, k=10)[0].text


class Mem0:
    """mem0 without inference, with one of its stores on this machine."""

    store: dict[str, Any]

    def __init__(self, folder: Path, embedder: lib.TableEmbedder) -> None:
        """See the class."""
        from mem0 import Memory  # pyright: ignore[reportMissingImports]

        place = {"path": str(folder / "vectors"), "embedding_model_dims": lib.DIM, "collection_name": "x"}
        store = {"provider": self.store["provider"], "config": {**place, **self.store["config"]}}
        self._memory: Any = Memory.from_config({"vector_store": store, "history_db_path": str(folder / "history.db")})
        self._memory.embedding_model = _Mem0Embedder(embedder)

    def add(self, texts: Sequence[str]) -> None:
        """See `Provider`."""
        self._memory.add([{"role": "user", "content": text} for text in texts], user_id="a", infer=False)

    def best(self, question: str) -> str:
        """See `Provider`."""
        return self._memory.search(question, top_k=10, filters={"user_id": "a"})["results"][0]["memory"]


class Mem0Qdrant(Mem0):
    """mem0's usual store."""

    store = {"provider": "qdrant", "config": {"on_disk": True}}  # noqa: RUF012


class Mem0Faiss(Mem0):
    """mem0's other store on this machine."""

    store = {"provider": "faiss", "config": {}}  # noqa: RUF012


class _Mem0Embedder:
    config = None

    def __init__(self, embedder: lib.TableEmbedder) -> None:
        self._embedder = embedder

    def embed(self, text: str, memory_action: Any = None) -> list[float]:
        return self._embedder.embed([text])[0]

    def embed_batch(self, texts: Sequence[str], memory_action: Any = None) -> list[list[float]]:
        return self._embedder.embed(texts)


class InMemory:
    """LangGraph's store in memory."""

    def __init__(self, folder: Path, embedder: lib.TableEmbedder) -> None:
        """See the class."""
        from langgraph.store.memory import InMemoryStore

        self._store: Any = InMemoryStore(index={"dims": lib.DIM, "embed": embedder.embed, "fields": ["text"]})
        self._count = 0

    def add(self, texts: Sequence[str]) -> None:
        """See `Provider`."""
        from langgraph.store.base import PutOp

        first, self._count = self._count, self._count + len(texts)
        self._store.batch([PutOp(("a",), str(first + i), {"text": text}) for i, text in enumerate(texts)])

    def best(self, question: str) -> str:
        """See `Provider`."""
        return self._store.search(("a",), query=question, limit=10)[0].value["text"]


class Sqlite(InMemory):
    """LangGraph's store in a file, with sqlite-vec; its connection may load extensions, which Python's own may not."""

    def __init__(self, folder: Path, embedder: lib.TableEmbedder) -> None:
        """See the class."""
        import pysqlite3.dbapi2 as sqlite  # pyright: ignore[reportMissingImports]
        from langgraph.store.sqlite import SqliteStore  # pyright: ignore[reportMissingImports]

        connection = sqlite.connect(str(folder / "s.db"), check_same_thread=False, isolation_level=None)

        def embed(texts: Sequence[str]) -> Any:
            """What it stores comes as JSON, whatever its `fields` say."""
            return embedder.embed([json.loads(text)["text"] if text.startswith("{") else text for text in texts])

        self._store: Any = SqliteStore(connection, index={"dims": lib.DIM, "embed": embed})
        self._store.setup()
        self._count = 0


class LangMem:
    """langmem's tools on LangGraph's store in memory."""

    def __init__(self, folder: Path, embedder: lib.TableEmbedder) -> None:
        """See the class."""
        from langgraph.store.memory import InMemoryStore
        from langmem import create_manage_memory_tool, create_search_memory_tool  # pyright: ignore[reportMissingImports]

        store = InMemoryStore(index={"dims": lib.DIM, "embed": embedder.embed, "fields": ["content"]})  # type: ignore[typeddict-item]
        self._manage: Any = create_manage_memory_tool(namespace=("a",), store=store)
        self._search: Any = create_search_memory_tool(namespace=("a",), store=store)

    def add(self, texts: Sequence[str]) -> None:
        """See `Provider`; one by one, as there is nothing else."""
        for text in texts:
            self._manage.invoke({"content": text, "action": "create"})

    def best(self, question: str) -> str:
        """See `Provider`."""
        return json.loads(self._search.invoke({"query": question, "limit": 10}))[0]["value"]["content"]


PROVIDERS: dict[str, Callable[[Path, lib.TableEmbedder], Provider]] = {
    "remnant": Remnant,
    "mem0 (qdrant)": Mem0Qdrant,
    "mem0 (faiss)": Mem0Faiss,
    "langmem (InMemoryStore)": LangMem,
    "langgraph InMemoryStore": InMemory,
    "langgraph SqliteStore": Sqlite,
}


class Turns:
    """Providers that do the same, one after another, the order changed each time; each within its time.

    Args:
        providers: by name.
        seconds: for all that one provider does at one size.
    """

    def __init__(self, providers: dict[str, Provider], seconds: float) -> None:
        """See the class."""
        self.providers, self._seconds = providers, seconds
        self.spent = dict.fromkeys(providers, 0.0)
        self.stopped: dict[str, str] = {}
        self._turn = 0

    def take(self, act: Callable[[Provider], Any]) -> dict[str, tuple[float, Any]]:
        """(ms, result) of each provider that still has time; a fault stops it."""
        names = [name for name in self.providers if name not in self.stopped]
        self._turn += 1
        taken: dict[str, tuple[float, Any]] = {}
        for name in names[self._turn % len(names) :] + names[: self._turn % len(names)]:
            try:
                taken[name] = lib.timed(lambda name=name: act(self.providers[name]))
            except Exception as fault:
                self.stopped[name] = f"{type(fault).__name__}: {str(fault)[:200]}"
                continue
            self.spent[name] += taken[name][0] / 1000
            if self.spent[name] > self._seconds and name != "remnant":
                self.stopped[name] = f"more than {self._seconds:g} s"
        return taken

    def rest(self) -> None:
        """Time counts anew."""
        self.spent = dict.fromkeys(self.providers, 0.0)


def main() -> int:
    """Grow every provider to each size, measuring there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    parser.add_argument("--providers", nargs="+", default=list(PROVIDERS))
    parser.add_argument("--queries", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sizes, each = sorted(args.sizes), args.queries + WARM
    zipf = lib.Zipf(args.seed)
    texts = [f"{zipf.text(30)} n{i}" for i in range(sizes[-1] + each * len(sizes))]
    asked = {size: _questions(texts[:size], each) for size in sizes}
    embedder = lib.TableEmbedder(texts, {q: t for found in asked.values() for q, t in found.items()}, args.seed, True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made: dict[str, Provider] = {}
        for number, name in enumerate(args.providers):
            (Path(folder) / str(number)).mkdir()
            made[name] = PROVIDERS[name](Path(folder) / str(number), embedder)
        turns, held = Turns(made, args.seconds), 0
        extra = iter(texts[sizes[-1] :])
        for size in sizes:
            for row in _at(turns, texts[held:size], asked[size], extra):
                print(json.dumps({"size": size, **row, "load": lib.load()}), flush=True)
            held = size
            for name in [name for name in turns.stopped if name in turns.providers]:
                del turns.providers[name]
    return 0


def versions() -> dict[str, str]:
    """Of the peers."""
    return {name: importlib.metadata.version(name) for name in VERSIONS}


def _questions(texts: Sequence[str], count: int) -> dict[str, str]:
    """Eight words of a text that is spread over all, and the text."""
    chosen = [texts[(2 * i + 1) * len(texts) // (2 * count)] for i in range(count)]
    return {f"{' '.join(text.split()[:8])} q{len(texts)}x{i}": text for i, text in enumerate(chosen)}


def _at(turns: Turns, texts: Sequence[str], asked: dict[str, str], extra: Any) -> list[dict[str, Any]]:
    """One size: what is missing, then texts one by one, then questions."""
    turns.rest()
    batches: dict[str, list[float]] = {name: [] for name in turns.providers}
    single: dict[str, list[float]] = {name: [] for name in turns.providers}
    search: dict[str, list[float]] = {name: [] for name in turns.providers}
    right: dict[str, int] = dict.fromkeys(turns.providers, 0)
    for start in range(0, len(texts), BATCH):
        for name, (took, _) in turns.take(lambda p, part=texts[start : start + BATCH]: p.add(part)).items():
            batches[name].append(took / len(texts[start : start + BATCH]))
    for number, (question, text) in enumerate(asked.items()):
        one = [next(extra)]
        for name, (took, _) in turns.take(lambda p, one=one: p.add(one)).items():
            single[name] += [took] if number >= WARM else []
        for name, (took, best) in turns.take(lambda p, question=question: p.best(question)).items():
            search[name] += [took] if number >= WARM else []
            right[name] += best == text
    return [
        {"provider": name, "skipped": turns.stopped[name]}
        if name in turns.stopped
        else {
            "provider": name, "queries": len(search[name]), "right": round(right[name] / len(asked), 3),
            **_spread("add_batch", batches[name]), **_spread("add_one", single[name]),
            **_spread("search", search[name]),
        }
        for name in turns.providers
    ]  # fmt: skip


def _spread(name: str, times: Sequence[float]) -> dict[str, float]:
    return {f"{name}_p50_ms": lib.quantile(times, 0.5), f"{name}_p95_ms": lib.quantile(times, 0.95)}


if __name__ == "__main__":
    sys.exit(main())
