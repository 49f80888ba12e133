"""A memory as a store of LangGraph: items by namespace and key, in the same file that agents learn in."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from langgraph.store.base import BaseStore, IndexConfig, Op, Result, TTLConfig, ensure_embeddings

from remnant.errors import ConfigError, unknown
from remnant.memory.context import Steps, adrive, drive
from remnant.memory.errors import StoreError
from remnant.memory.llm import Embedder
from remnant.memory.memory import Memory
from remnant.memory.record import DEFAULT_SCOPE, TRUSTS, Trust
from remnant.memory.store import Receipt
from remnant_langchain import _items
from remnant_langchain._batch import PART, batch_steps, checked
from remnant_langchain.models import LangChainEmbedder


class MemoryStore(BaseStore):
    """A `BaseStore` over a memory, for `create_agent(..., store=MemoryStore("agent.db", scope="tenant-a"))`.

    Tenants are scopes: nothing of another scope can be read, listed or written, whatever the namespace.
    Namespaces are places inside the scope. An item is a record of kind `store`: every other door of the same
    scope recalls its text as data, with the store and the key as its source; what other doors write has no
    namespace and does not show up here.

    - A search with a query ranks by words and, with an embedder, by meaning; the other items of the namespace
      follow without a score. Without a query the items changed last come first.
    - A delete can be undone through the memory and leaves its versions; `forget` erases, down to the bytes,
      and so do deletes with `deletes="erase"`, at the price of rewriting the file each time.
    - Values are JSON. They are cleaned of credentials as the memory's setting `secrets` says, which is told by
      the event `redacted`; open with `secrets="keep"` to get back to the letter what was put.
    - Text that reads like an instruction to a model is quarantined: its key still gets it, but no search or
      list shows it until `Memory.approve`.
    - Expired items are never shown; a sweep erases them.

    Args:
        memory: an open memory, or what `Memory.open` takes: a path or an address.
        scope: whose items; for a path `default` where nothing is said, as for the middleware.
        index: `fields` are the paths of the texts that find an item (the whole value by default); `embed`
            with `dims` gives a path its embedder, and is refused for an open memory, which has its own.
        ttl: `default_ttl` (minutes), `refresh_on_read`, `sweep_interval_minutes` of `start_ttl_sweeper`.
        trust: whose words the values are.
        deletes: `mark` or `erase`.
        settings: of `Memory.open`, for a path.

    Raises:
        ConfigError: options that do not exist or contradict each other.

    Source: `InMemoryStore` of langgraph-checkpoint 4.3.2 for what reads in a batch see, filters and matching.
        Differs: emptied namespaces are not listed, an update keeps `created_at`, one vector per item, values
        without an order match no `$gt` instead of raising.
    """

    supports_ttl = True

    def __init__(
        self,
        memory: Memory | str | Path,
        *,
        scope: str | Mapping[str, str] | None = None,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
        trust: Trust = "agent",
        deletes: Literal["mark", "erase"] = "mark",
        **settings: Any,
    ) -> None:
        """See the class."""
        if deletes not in ("mark", "erase"):
            raise unknown("deletes", str(deletes), ("mark", "erase"))
        if trust not in TRUSTS:
            raise unknown("trust", str(trust), TRUSTS)
        self._owned = not isinstance(memory, Memory)
        self.memory = _memory(memory, scope, index, settings)
        self.ttl_config = ttl
        self._fields = tuple((index or {}).get("fields") or ("$",))
        self._trust: Trust = trust
        self._erase = deletes == "erase"
        self._stop = threading.Event()
        self._sweeper: threading.Thread | None = None

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations: reads see what was there before, then all puts happen in one transaction."""
        results, gone = drive(self._steps(ops), self.memory.context.embedder)
        if gone and self._erase:
            self.memory.forget(gone)
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """See `batch`; the embedder is awaited, the file is touched in threads."""
        results, gone = await adrive(self._steps(ops), self.memory.context.embedder)
        if gone and self._erase:
            await self.memory.aforget(gone)
        return results

    def id_of(self, namespace: tuple[str, ...], key: str) -> str:
        """The id of an item's record, for `Memory.audit`, `approve` and the like."""
        return _items.item_id(namespace, key)

    def forget(self, namespace: tuple[str, ...], key: str) -> Receipt:
        """Erase an item with all its versions, deleted ones too; the receipt lists what went."""
        return self.memory.forget(self.id_of(namespace, key))

    async def aforget(self, namespace: tuple[str, ...], key: str) -> Receipt:
        """See `forget`."""
        return await self.memory.aforget(self.id_of(namespace, key))

    def sweep_ttl(self) -> int:
        """Erase the items whose time is over; how many."""
        c = self.memory.context
        ids = c.store.placed(c.scope, _items.ROOT, statuses=_items.LIVE)
        parts = (c.store.get(c.scope, ids[start : start + PART]) for start in range(0, len(ids), PART))
        over = [r.id for part in parts for r in part.values() if _items.is_item(r) and not r.valid_at(c.clock())]
        return len(self.memory.forget(over).ids) if over else 0

    def start_ttl_sweeper(self, sweep_interval_minutes: float | None = None) -> None:
        """Sweep in a background thread from now on; every 5 minutes where nothing else is said."""
        minutes = sweep_interval_minutes or (self.ttl_config or {}).get("sweep_interval_minutes") or 5
        if self._sweeper is None or not self._sweeper.is_alive():
            self._stop.clear()
            self._sweeper = threading.Thread(target=self._sweep, args=(60.0 * minutes,), daemon=True)
            self._sweeper.start()

    def stop_ttl_sweeper(self, timeout: float | None = None) -> bool:
        """End the sweeping; False if it did not end within the time (seconds)."""
        self._stop.set()
        if self._sweeper is not None:
            self._sweeper.join(timeout)
        return self._sweeper is None or not self._sweeper.is_alive()

    def close(self) -> None:
        """Stop sweeping, and close the memory if it was opened here."""
        self.stop_ttl_sweeper(timeout=10)
        if self._owned:
            self.memory.close()

    def __enter__(self) -> MemoryStore:
        """Itself; closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _steps(self, ops: Iterable[Op]) -> Steps[tuple[list[Result], list[str]]]:
        return batch_steps(self.memory.context, checked(ops), self._fields, self._trust)

    def _sweep(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                self.sweep_ttl()
            except StoreError as error:
                self.memory.context.emit("sweep_failed", error=str(error))


def _memory(
    memory: Memory | str | Path,
    scope: str | Mapping[str, str] | None,
    index: IndexConfig | None,
    settings: Mapping[str, Any],
) -> Memory:
    embed = (index or {}).get("embed")
    if isinstance(memory, Memory):
        if embed is not None or settings:
            given = "index={'embed': ...}" if embed is not None else f"{next(iter(settings))}="
            raise ConfigError(f"{given} for an open memory", do="open the memory with it, or give a path")
        return memory if scope is None else memory.scoped(scope)
    if embed is not None:
        if "embedder" in settings:
            raise ConfigError("two embedders: index={'embed': ...} and embedder=", do="give one")
        settings = {**settings, "embedder": _embedder(embed, (index or {}).get("dims"))}
    # The file may be an agent's: what it left open or queued is for the agent to settle, with its model.
    whose = DEFAULT_SCOPE if scope is None else scope
    return Memory.open(memory, scope=whose, **{"write": "manual", "recover": False, **settings})


def _embedder(embed: Any, dims: int | None) -> Embedder:
    """The embedder that an index names; a bare function is known by its name and its size."""
    named = getattr(embed, "__qualname__", None)
    model_id = f"{getattr(embed, '__module__', '')}.{named}:{dims}" if isinstance(named, str) else None
    return LangChainEmbedder(ensure_embeddings(embed), model_id=model_id)
