"""`RemnantMemory`: a LlamaIndex `Memory` that learns from every run and shows what it learnt."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.async_utils import asyncio_run
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import ChatMessage, ContentBlock
from llama_index.core.memory import BaseMemoryBlock, InsertMethod
from llama_index.core.memory import Memory as LlamaMemory
from llama_index.core.memory.memory import generate_chat_store_key
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore
from pydantic import PrivateAttr

from remnant.errors import ConfigError
from remnant.memory import Embedder, Memory, Rollout, Strategy
from remnant.memory.verdict import Wanted
from remnant_llamaindex._chat import FirstUse
from remnant_llamaindex._injected import all_without_injected, without_injected
from remnant_llamaindex._opening import Llm, open_memory
from remnant_llamaindex._steps import text_of
from remnant_llamaindex._talk import Talk
from remnant_llamaindex.block import RemnantMemoryBlock
from remnant_llamaindex.models import AgentModel
from remnant_llamaindex.tracking import Tracked

DEFAULT_TABLE = "llama_index_memory"
_OF_LLAMA = frozenset(inspect.signature(LlamaMemory.from_defaults).parameters)


class RemnantMemory(LlamaMemory):
    """The chat history of LlamaIndex's `Memory` as it is, with a lasting memory beside it.

    Made by `open`. Each user turn is an episode: journaled as messages arrive, closed with a verdict when the agent has
    answered, distilled in the background. What is remembered about the user's message is put before it, in the same
    message (`InsertMethod.USER`): a ReActAgent drops the first system message and a CodeActAgent overwrites it, so with
    `InsertMethod.SYSTEM` they see no memory unless the agent has a `system_prompt`. Where nothing is remembered,
    prompts are those of `Memory`.

    An agent tells its memory nothing when a model raises or a limit is hit; `await memory.track(agent.run(...))` sees
    that, journals step by step, and knows which tools failed. One object is one conversation: for runs side by side
    take one `session` each.

    `Context.to_dict` leaves memories out. Give a new run a memory with the same `session_id`; a run that goes on gets
    it by `await run.ctx.store.set("memory", memory)`, and its episode goes on too. The chat history comes back if it
    lies in a database (`async_database_uri=`), what was learnt does in any case.
    """

    _block: RemnantMemoryBlock = PrivateAttr()
    _talk: Talk = PrivateAttr()
    _used: FirstUse = PrivateAttr()
    _alone: bool = PrivateAttr(default=False)

    def __init__(self, **data: Any) -> None:
        """Take the one block that remembers, as a copy of this conversation's own.

        Args:
            data: fields of `Memory`.

        Raises:
            ConfigError: not exactly one of the blocks is a `RemnantMemoryBlock`.
        """
        found = [block for block in data.get("memory_blocks") or () if isinstance(block, RemnantMemoryBlock)]
        if len(found) != 1:
            given = f"RemnantMemory with {len(found)} blocks that remember"
            raise ConfigError(given, accepted="one RemnantMemoryBlock", do="use RemnantMemory.open")
        super().__init__(**data)
        self._block = found[0].of_session(lambda text: len(self.tokenizer_fn(text)))
        self.memory_blocks = [self._block if block is found[0] else block for block in self.memory_blocks]
        self._talk = Talk(self.core, self._block.journal, self.session_id, self._active)
        self._used = FirstUse(self.sql_store)

    @classmethod
    def open(
        cls,
        path_or_url: str | Path,
        strategy: str | Strategy = "facts",
        *,
        scope: str | Mapping[str, str] | None = None,
        llm: Llm = None,
        embedder: BaseEmbedding | Embedder | None = None,
        session_id: str | None = None,
        k: int = 5,
        budget_tokens: int | None = 1500,
        timeout: float | None = 5.0,
        priority: int = 1,
        verdict: Wanted = "rules",
        insert_method: InsertMethod = InsertMethod.USER,
        memory_blocks: Sequence[BaseMemoryBlock[Any]] = (),
        **options: Any,
    ) -> RemnantMemory:
        """Open a memory; a file that does not exist is created.

        Args:
            path_or_url: see `remnant.memory.Memory.open`, as for `strategy` and `scope`.
            strategy: how it learns.
            scope: whose memory; nothing is readable or writable outside it. Left out, it is `default`, as in
                LangChain: name one per tenant and user where there are several.
            llm: the model that distils, of LlamaIndex or of the core. None takes `Settings.llm` once it is set, or the
                model of the first tracked agent; distillation waits for it. With False a strategy does what it can
                without one.
            embedder: None searches by words only.
            session_id: names the conversation in the chat store; unique across tenants, for chat stores know no scopes.
            k: records shown at most.
            budget_tokens: tokens of all records together at most.
            timeout: seconds after which a recall is given up, and a write goes on without being waited for; None
                waits for ever.
            priority: of the block under token pressure: 1 goes first, 0 is never truncated.
            verdict: says how an episode ended: `rules`, `judge` (the memory's model is asked), `manual`, or a function
                of the episode that gives an outcome or a `Verdict`.
            insert_method: where memories are put.
            memory_blocks: further blocks of LlamaIndex.
            options: of `Memory.from_defaults` (`token_limit`, `chat_store`, `async_database_uri`, ...) and of
                `remnant.memory.Memory.open` (`write`, `secrets`, `weight`, ...).

        Raises:
            ConfigError: an empty scope, an unknown strategy or option.
            StoreError: the file cannot be opened or is not ours.
        """
        of_core = {name: value for name, value in options.items() if name not in _OF_LLAMA}
        core = open_memory(path_or_url, strategy, scope, llm, embedder, **of_core)
        shown: dict[str, Any] = {"k": k, "budget_tokens": budget_tokens, "timeout": timeout, "priority": priority}
        of_llama = {name: value for name, value in options.items() if name in _OF_LLAMA}
        made = cls.from_defaults(
            session_id=session_id,
            memory_blocks=[*memory_blocks, RemnantMemoryBlock(core, verdict=verdict, **shown)],
            insert_method=insert_method,
            **of_llama,
        )
        assert isinstance(made, cls)
        made._alone = not {"chat_store", "async_database_uri", "async_engine"}.intersection(options)
        return made

    @classmethod
    def class_name(cls) -> str:
        """The name of the class, for LlamaIndex."""
        return "RemnantMemory"

    @property
    def core(self) -> Memory:
        """The core's memory: `recall`, `add`, `forget`, `undo`, `export`, `events`, `costs`, ..."""
        return self._block.core

    @property
    def episode(self) -> str:
        """The id of the present turn's episode, or of the last one; empty before the first."""
        return self._talk.ask.episode if self._talk.ask else ""

    def session(self, session_id: str | None = None, *, scope: str | Mapping[str, str] | None = None) -> RemnantMemory:
        """Another conversation over the same memory; closing one closes all.

        Args:
            session_id: names it in the chat store; None makes a name.
            scope: whose memory, if not the same; other blocks than ours do not go along then, and the name in the
                chat store begins with the scope.
        """
        fields: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        fields["session_id"] = session_id or generate_chat_store_key()
        if scope is not None:
            core = self.core.scoped(scope)
            fields["session_id"] = f"{core.scope}/{fields['session_id']}"
            fields["memory_blocks"] = [self._block.of_session(len, core)]
        if self._alone:  # a database in this process's memory is one connection: not for several conversations
            fields["sql_store"] = SQLAlchemyChatStore(DEFAULT_TABLE)
        made = type(self)(**fields)
        made._alone, made._used = self._alone, made._used if self._alone else self._used
        return made

    def track(self, run: Any) -> Tracked:
        """Journal a run of an agent as it goes, and record how it ends, whatever way it ends.

        Args:
            run: what `agent.run(..., memory=memory)` returned, or any other awaitable of a run with this memory.

        Returns:
            To be awaited in its place: gives the same result or raises the same error. `stream_events` of both, the
            given handler and this, yield every event once.

        Example: result = await memory.track(agent.run("book a table", memory=memory))
        """
        self._meet(run)
        self._talk.tracked = Tracked(self._talk, self.core, run)
        return self._talk.tracked

    def for_rollout(self, task: str, rollout: Rollout) -> None:
        """Let the next turns be one rollout of a group: see `remnant_llamaindex.matts`.

        Args:
            task: the group's.
            rollout: what it reads, and what its episode belongs to.
        """
        self._talk.rollout = (task, rollout)

    async def aput(self, message: ChatMessage) -> None:
        """Keep a message; a user's begins an episode, and an answer ends it."""
        message = without_injected(message)
        await self._used.over(self.session_id)
        await super().aput(message)
        await self._talk.saw([message])

    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        """Keep messages, such as a whole run that an agent hands over at its end."""
        messages = all_without_injected(messages)
        await self._used.over(self.session_id)
        await super().aput_messages(messages)
        await self._talk.saw(messages)

    async def aset(self, messages: list[ChatMessage]) -> None:
        """Replace the chat history; one that ends with the user's words begins an episode when it is read."""
        messages = all_without_injected(messages)
        await self._used.over(self.session_id)
        await super().aset(messages)
        self._talk.replaced(messages)

    async def aget(self, input: str | ChatMessage | None = None, **block_kwargs: Any) -> list[ChatMessage]:
        """The chat history with what is remembered about the user's last message."""
        text = text_of(input) if isinstance(input, ChatMessage) else input
        self._block.ask(await self._talk.asked(text))
        await self._used.over(self.session_id)
        return await super().aget(input=input, **block_kwargs)

    async def areset(self, status: MessageStatus | None = None) -> None:
        """Empty the chat history. What was learnt stays; `core.forget` erases that."""
        await super().areset(status)
        await self._talk.reset()

    async def afeedback(self, success: bool, *, episode: str = "", source: str = "user") -> None:
        """Say afterwards how a turn went; what was learnt from it is taken back and learnt anew.

        Args:
            success: whether it went well.
            episode: which; empty is the last one.
            source: who says so.

        Raises:
            ConfigError: that episode is unknown or still open.
        """
        await self.core.afeedback(episode or self.episode, success, source=source)

    async def aflush(self, timeout: float = 60.0) -> bool:
        """Wait until every closed episode is distilled; False if some were not within the time (seconds)."""
        end = time.monotonic() + timeout
        settled = await self._block.journal.settle(timeout)
        return await self.core.aflush(max(0.0, end - time.monotonic())) and settled

    async def aclose(self, timeout: float = 10.0) -> None:
        """Close the present episode and the memory; distillations that wait are done when it is opened again."""
        await self._talk.abandon("closed")
        await self._block.journal.settle(timeout)
        await self.core.aclose(timeout)

    def feedback(self, success: bool, *, episode: str = "", source: str = "user") -> None:
        """See `afeedback`."""
        asyncio_run(self.afeedback(success, episode=episode, source=source))

    def flush(self, timeout: float = 60.0) -> bool:
        """See `aflush`."""
        return asyncio_run(self.aflush(timeout))

    def close(self, timeout: float = 10.0) -> None:
        """See `aclose`."""
        asyncio_run(self.aclose(timeout))

    async def _active(self) -> list[ChatMessage]:
        return await self.sql_store.get_messages(self.session_id, status=MessageStatus.ACTIVE)

    def _meet(self, run: Any) -> None:
        """Let a memory without a model of its own use the agent's."""
        model: Any = self.core.context.llm
        if not isinstance(model, AgentModel):
            return
        agent: Any = getattr(run, "_workflow", None)
        agents: dict[str, Any] = getattr(agent, "agents", None) or {}
        agent = agents.get(getattr(agent, "root_agent", ""), agent)
        model.meet(getattr(agent, "llm", None))

    def _insert_memory_content(
        self, chat_history: list[ChatMessage], memory_content: list[ContentBlock], chat_message_data: list[ChatMessage]
    ) -> list[ChatMessage]:
        """On copies: a chat store may give out its own objects, and memories must not enter the history."""
        copies = [message.model_copy(update={"blocks": [*message.blocks]}) for message in chat_history]
        return super()._insert_memory_content(copies, memory_content, chat_message_data)
