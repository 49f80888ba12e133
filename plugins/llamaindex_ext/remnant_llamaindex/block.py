"""`RemnantMemoryBlock`: what Remnant remembers, as a block of a LlamaIndex `Memory`."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import BaseMemoryBlock
from llama_index.core.utils import get_tokenizer
from pydantic import PrivateAttr

from remnant.memory import Embedder, Hit, Memory, Strategy
from remnant.memory.verdict import Wanted, judge_of
from remnant_llamaindex._injected import marked
from remnant_llamaindex._journal import Journal, Turn
from remnant_llamaindex._opening import Llm, open_memory
from remnant_llamaindex._steps import of_messages, role_of, text_of

MOST_HELD = 64
"""Questions whose hits are held, for the later steps of their turns."""


class Ask(NamedTuple):
    """What a turn wants from memory.

    Args:
        question: what hits are looked for.
        turn: names the turn; while it lasts, hits stay as they are.
        episode: which is shown the hits; empty if none.
        as_of: the change of memory that is read; None is now.
    """

    question: str
    turn: str
    episode: str = ""
    as_of: int | None = None


class _Shown(NamedTuple):
    hits: tuple[Hit, ...]
    as_of: int | None
    text: str


class RemnantMemoryBlock(BaseMemoryBlock[str]):
    """Shows what is remembered about the user's last message, and learns from messages that leave the queue.

    For people who have a `Memory` of their own. LlamaIndex hands a block messages only when the queue overflows, so a
    block by itself learns late or never: use `RemnantMemory`, or call `aput` from an event handler (and then set
    `accept_short_term_memory=False`, or the same messages teach twice).

    Nothing here raises into an agent: a fault shows nothing, and is told as an event of the memory.

    Args:
        memory: the core's memory; bound to one scope.
        verdict: says how an episode ended, see `remnant.memory.verdict`.
        data: `name`, `priority` (1 by default: truncated under token pressure, weakest records first; 0 is never
            truncated), `k`, `budget_tokens`, `timeout`, `description`, `accept_short_term_memory`.
    """

    name: str = "remnant"
    priority: int = 1
    k: int = 5
    """Records shown at most."""
    budget_tokens: int | None = 1500
    """Tokens of all records together at most."""
    timeout: float | None = 5.0
    """Seconds after which a recall is given up, and a write goes on without being waited for; None waits for ever."""

    _memory: Memory = PrivateAttr()
    _journal: Journal = PrivateAttr()
    _ask: Ask | None = PrivateAttr(default=None)
    _held: OrderedDict[Any, _Shown] = PrivateAttr(default_factory=OrderedDict)
    _tokens: Callable[[str], int] | None = PrivateAttr(default=None)

    def __init__(self, memory: Memory, *, verdict: Wanted = "rules", **data: Any) -> None:
        """See the class."""
        super().__init__(**data)
        self._memory, self._journal = memory, Journal(memory, judge_of(verdict, memory.context.llm), self.timeout)

    @classmethod
    def open(
        cls,
        path_or_url: str | Path,
        strategy: str | Strategy = "facts",
        *,
        scope: str | Mapping[str, str] | None = None,
        llm: Llm = None,
        embedder: BaseEmbedding | Embedder | None = None,
        verdict: Wanted = "rules",
        settings: Mapping[str, Any] | None = None,
        **data: Any,
    ) -> RemnantMemoryBlock:
        """A block over a memory that is opened for it.

        Args:
            path_or_url: see `remnant.memory.Memory.open`, as for `strategy` and `scope`.
            strategy: how it learns.
            scope: whose memory.
            llm: the model that distils; None takes `Settings.llm` once it is set; False is no model.
            embedder: None searches by words only.
            verdict: says how an episode ended.
            settings: further arguments of `Memory.open`.
            data: fields of the block.
        """
        return cls(
            open_memory(path_or_url, strategy, scope, llm, embedder, **(settings or {})), verdict=verdict, **data
        )

    @property
    def core(self) -> Memory:
        """The core's memory, for everything else that it does."""
        return self._memory

    @property
    def journal(self) -> Journal:
        """How it writes episodes."""
        return self._journal

    def of_session(self, count_tokens: Callable[[str], int], memory: Memory | None = None) -> RemnantMemoryBlock:
        """A copy for one `RemnantMemory`, which sees every message itself and so wants none from the queue.

        Args:
            count_tokens: that memory's counter.
            memory: the core's memory of another scope; None keeps the present one.
        """
        made = self.model_copy(update={"accept_short_term_memory": False})
        made._memory = memory or self._memory
        made._journal = Journal(made._memory, self._journal.judge, self.timeout)
        made._held, made._ask, made._tokens = OrderedDict(), None, count_tokens
        return made

    def ask(self, ask: Ask | None) -> None:
        """Say what the next `aget` is about; None goes by the last user message."""
        self._ask = ask

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        ask = self._ask or _ask_of(messages or [], str(block_kwargs.get("session_id", "")))
        if not ask.question.strip():
            return ""
        try:
            held = self._held.get(ask)
            shown = await self._recalled(ask) if held is None else await asyncio.to_thread(self._standing, held)
        except Exception as error:  # the store's, the embedder's, a strategy's: reads fail open
            self._memory.context.emit("recall_failed", error=f"{type(error).__name__}: {error}")
            shown = _Shown((), ask.as_of, "")
        self._hold(ask, shown)
        return shown.text

    async def _aput(self, messages: list[ChatMessage]) -> None:
        before: ChatMessage | None = None
        parts: list[list[ChatMessage]] = []
        for message in messages:
            if not parts or role_of(message, before) == "user":
                parts.append([])
            parts[-1].append(message)
            before = message
        for part in parts:
            await asyncio.to_thread(self._write, part)

    async def atruncate(self, content: str, tokens_to_truncate: int) -> str | None:
        """Drop the weakest records until enough tokens are saved; None if none may stay.

        Args:
            content: what `aget` gave.
            tokens_to_truncate: how many tokens too many there are.
        """
        shown = next((s for s in self._held.values() if content and s.text == content), None)
        if shown is None:
            return None
        count = self._tokens or _counter()
        most = count(content) - tokens_to_truncate
        hits = shown.hits
        while hits := hits[:-1]:
            text = await asyncio.to_thread(self._rendered, hits)
            if count(text) <= most:
                return text
        return None

    async def _recalled(self, ask: Ask) -> _Shown:
        finding = self._memory.arecall(ask.question, self.k, self.budget_tokens, ask.as_of, episode=ask.episode or None)
        hits = tuple(await asyncio.wait_for(finding, self.timeout))
        return _Shown(hits, ask.as_of, await asyncio.to_thread(self._rendered, hits))

    def _standing(self, held: _Shown) -> _Shown:
        """What was shown before, without what was forgotten, ended or changed since; a turn's prompt stays else."""
        now = self._memory.store.get(self._memory.scope, [hit.id for hit in held.hits]) if held.hits else {}
        kept: list[Hit] = []
        for hit in held.hits:
            record = now.get(hit.id)
            if record is None:
                continue
            if held.as_of is not None or record.version == hit.record.version:
                kept.append(hit)
            elif record.status == "active":
                kept.append(replace(hit, text=record.content, record=record))
        return held if tuple(kept) == held.hits else _Shown(tuple(kept), held.as_of, self._rendered(kept))

    def _rendered(self, hits: Sequence[Hit]) -> str:
        text = self._memory.render(hits) if hits else ""
        return marked(text) if text else ""

    def _hold(self, ask: Ask, shown: _Shown) -> None:
        self._held.pop(ask, None)
        self._held[ask] = shown
        while len(self._held) > MOST_HELD:
            self._held.popitem(last=False)

    def _write(self, messages: Sequence[ChatMessage]) -> None:
        first = messages[0]
        task = text_of(first) if role_of(first, None) == "user" else ""
        turn = Turn(self._memory.context.new_id(), task or "(part of a conversation)", metadata={"host": "llamaindex"})
        self._journal.write(turn, *of_messages(messages, None))


def _ask_of(messages: Sequence[ChatMessage], session: str) -> Ask:
    """The last user message is the question; how many there were tells one turn from another."""
    asked = [text for text in map(text_of, (m for m in messages if m.role.value == "user")) if text]
    return Ask(asked[-1] if asked else "", f"{session}:{len(asked)}")


def _counter() -> Callable[[str], int]:
    tokenizer = get_tokenizer()
    return lambda text: len(tokenizer(text))
