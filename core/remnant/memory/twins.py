"""The async half of `Memory`: the embedder is awaited, and every touch of the store happens in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from remnant.memory.change import apply_steps, embed_missing, undo_steps
from remnant.memory.context import Context, Steps, adrive
from remnant.memory.dedupe import CLOSE, consolidate_steps
from remnant.memory.episode import Episode
from remnant.memory.ops import Op
from remnant.memory.owner import ANYBODY, owner
from remnant.memory.recall import AsOf, recall_steps
from remnant.memory.record import Hit, Outcome, Record
from remnant.memory.secrets import redact, redact_data
from remnant.memory.store import Receipt, Version
from remnant.memory.widen import Widen, widening

if TYPE_CHECKING:
    from remnant.memory.memory import Memory

T = TypeVar("T")


class AsyncTwins:
    """Methods of `Memory` for async code; each does what its namesake without `a` does."""

    def __init__(self, context: Context) -> None:
        """Of one memory."""
        self._c = context

    async def arecall(
        self,
        query: str | Episode,
        k: int = 10,
        budget_tokens: int | None = None,
        as_of: AsOf = None,
        *,
        kinds: Collection[str] | None = None,
        episode: str | None = None,
        place: str = "",
        widen: bool | Widen | None = None,
    ) -> list[Hit]:
        """See `Memory.recall`."""
        steps = self._recall_steps(query, k, budget_tokens, as_of, kinds, episode, place, widen)
        return await adrive(steps, self._c.embedder)

    async def aadd(self, items: str | Record | Iterable[str | Record], *, once: bool = False) -> list[str]:
        """See `Memory.add`."""
        from remnant.memory.memory import add_steps

        return await adrive(add_steps(self._c, items, once), self._c.embedder)

    async def aconsolidate(self, similarity: float | None = CLOSE, *, actor: str = "user") -> Version:
        """See `Memory.consolidate`."""
        return await adrive(consolidate_steps(self._c, similarity, actor), self._c.embedder)

    async def aapply(self, ops: Sequence[Op], reason: str, actor: str) -> Version:
        """See `Memory.apply`."""
        return await adrive(apply_steps(self._c, ops, reason, actor), self._c.embedder)

    async def aundo(self, change: int | Version, actor: str = "user") -> Version:
        """See `Memory.undo`."""
        number = change.number if isinstance(change, Version) else change
        return await adrive(undo_steps(self._c, number, actor), self._c.embedder)

    async def areindex(self) -> int:
        """See `Memory.reindex`."""
        return await adrive(embed_missing(self._c), self._c.embedder)

    async def aget(self, id: str) -> Record | None:
        """See `Memory.get`."""
        return await asyncio.to_thread(self._self().get, id)

    async def aforget(self, ids: str | Iterable[str]) -> Receipt:
        """See `Memory.forget`."""
        return await asyncio.to_thread(self._self().forget, ids)

    async def aopen_episode(
        self,
        task: str,
        *,
        id: str | None = None,
        group: str = "",
        metadata: Mapping[str, Any] | None = None,
        resumable: bool = False,
    ) -> Episode:
        """See `Memory.open_episode`."""
        return await asyncio.to_thread(self._open_episode, task, id, group, metadata, resumable)

    async def areopen_episode(self, episode_id: str, *, resumable: bool = False) -> bool:
        """See `Memory.reopen_episode`."""
        reopen: Callable[..., bool] = self._self().reopen_episode
        return await asyncio.to_thread(reopen, episode_id, resumable=resumable)

    async def aobserve(self, episode_id: str, step: Mapping[str, Any]) -> int:
        """See `Memory.observe`."""
        return await asyncio.to_thread(self._observe, episode_id, step)

    async def aused(self, episode_id: str, ids: Sequence[str]) -> None:
        """See `Memory.used`."""
        await asyncio.to_thread(self._self().used, episode_id, ids)

    async def aclose_episode(self, episode_id: str, verdict: Outcome = "unknown", source: str = "rule") -> None:
        """See `Memory.close_episode`."""
        await asyncio.to_thread(self._self().close_episode, episode_id, verdict, source)

    async def aclose_group(self, group: str) -> None:
        """See `Memory.close_group`."""
        await asyncio.to_thread(self._self().close_group, group)

    async def afeedback(
        self, episode_id: str, success: bool | None = None, *, verdict: Outcome | None = None, source: str = "user"
    ) -> None:
        """See `Memory.feedback`."""
        late: Callable[..., None] = self._self().feedback
        await asyncio.to_thread(late, episode_id, success, verdict=verdict, source=source)

    async def aflush(self, timeout: float = 60.0) -> bool:
        """See `Memory.flush`."""
        return await asyncio.to_thread(self._self().flush, timeout)

    async def aclose(self, timeout: float = 10.0) -> None:
        """See `Memory.close`."""
        await asyncio.to_thread(self._self().close, timeout)

    def _self(self) -> Memory:
        from remnant.memory.memory import Memory

        assert isinstance(self, Memory)
        return self

    def _recall_steps(
        self,
        query: str | Episode,
        k: int,
        budget_tokens: int | None,
        as_of: AsOf,
        kinds: Collection[str] | None,
        episode: str | None,
        place: str,
        widen: bool | Widen | None,
    ) -> Steps[list[Hit]]:
        text = query.task if isinstance(query, Episode) else query
        seen_by = query.id if isinstance(query, Episode) and episode is None else episode
        links = widening(widen, self._c.widen)
        return recall_steps(self._c, text, k, budget_tokens, as_of, kinds, seen_by, place, links)

    def _open_episode(
        self, task: str, id: str | None, group: str, metadata: Mapping[str, Any] | None, resumable: bool
    ) -> Episode:
        c = self._c
        kept = (task, dict(metadata or {})) if c.secrets == "keep" else (redact(task), redact_data(metadata or {}))
        made = Episode(id or c.new_id(), c.scope, kept[0], group=group, opened_at=c.clock(), metadata=kept[1])
        if not c.store.open_episode(made, ANYBODY if resumable else owner()):
            return c.store.episode(c.scope, made.id) or made
        c.emit("opened", episode=made.id)
        return made

    def _observe(self, episode_id: str, step: Mapping[str, Any]) -> int:
        kept = dict(step) if self._c.secrets == "keep" else redact_data(step)
        return self._c.store.add_step(self._c.scope, episode_id, kept)
