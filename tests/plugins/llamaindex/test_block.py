"""The contract of a memory block, for people who own a `Memory`: what it shows, learns, cuts, and never raises."""

import json
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentOutput
from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.memory import BaseMemoryBlock, InsertMethod, Memory, StaticMemoryBlock

from remnant.memory import Record, StoreError
from remnant_llamaindex import RemnantMemoryBlock

FACT = "Ada takes her tea without milk."
QUESTION = "How does Ada take her tea?"


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def said(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)


async def read(memory: Memory) -> str:
    return "\n".join(message.content or "" for message in await memory.aget())


def steps_of(block: RemnantMemoryBlock, id: str) -> list[str]:
    episode = block.core.store.episode("tenant-a", id)
    assert episode is not None
    return [step["content"] for step in episode.steps]


def notes(count: int) -> list[Record]:
    """Records that answer the question the less, the higher their number."""
    return [Record(f"note {n}: " + "Ada tea " * (count - n) + "word " * (4 * n)) for n in range(count)]


async def test_block_shows_what_answers_the_last_user_message(stage: Any):
    block = RemnantMemoryBlock(stage.core())
    block.core.add([FACT, "Bob prefers coffee."])
    memory = Memory.from_defaults(memory_blocks=[block])
    await memory.aput(user(QUESTION))
    text = await read(memory)
    assert FACT in text
    assert "Bob" not in text
    await memory.aput(said("without milk"))
    await memory.aput(user("And what does Bob prefer?"))
    assert "Bob prefers coffee." in await read(memory)


async def test_block_opens_a_memory_of_its_own(stage: Any):
    block = RemnantMemoryBlock.open(stage.path, "facts", scope="tenant-a", llm=False, k=1, settings={"write": "manual"})
    assert (block.k, block.core.scope) == (1, "tenant-a")
    block.core.close()


@pytest.mark.parametrize("messages", [None, [], [said("hello")], [user("")], [user("zzz")]])
async def test_nothing_to_show_is_an_empty_text(stage: Any, messages: Any):
    block = RemnantMemoryBlock(stage.core())
    block.core.add(FACT)
    assert await block.aget(messages, session_id="s") == ""


class Blocks(BaseMemoryBlock[list]):
    """A block of the second kind of content."""

    async def _aget(self, messages: Any = None, **_: Any) -> Any:
        return [TextBlock(text="as blocks")]

    async def _aput(self, messages: Any) -> None:
        """Nothing."""


class Messages(Blocks):
    """A block of the third kind of content."""

    async def _aget(self, messages: Any = None, **_: Any) -> Any:
        return [said("as messages")]


@pytest.mark.parametrize("method", list(InsertMethod))
async def test_block_lives_beside_blocks_of_every_kind(stage: Any, method: InsertMethod):
    ours = RemnantMemoryBlock(stage.core())
    ours.core.add(FACT)
    others = [
        Blocks(name="b"),
        Messages(name="m"),
        StaticMemoryBlock(name="s", static_content=[TextBlock(text="as text")]),
    ]
    memory = Memory.from_defaults(memory_blocks=[ours, *others], insert_method=method)
    await memory.aput(user(QUESTION))
    text = await read(memory)
    assert all(part in text for part in (FACT, "as blocks", "as messages", "as text", QUESTION))


@pytest.mark.parametrize("content", ["", [], [TextBlock(text="x")], "what others made"])
async def test_content_that_is_not_its_own_is_cut_whole(stage: Any, content: Any):
    assert await RemnantMemoryBlock(stage.core()).atruncate(content, 1) is None


async def test_cut_drops_the_weakest_records_first(stage: Any):
    block = RemnantMemoryBlock(stage.core(), k=6, budget_tokens=None)
    block.core.add(notes(6))
    whole = await block.aget([user(QUESTION)])
    order = [part[0] for part in whole.split("note ")[1:]]
    assert order == list("012345")
    previous = order
    for tokens in (1, 30, 60, 90, 120):
        text = await block.atruncate(whole, tokens)
        assert text is not None
        left = [part[0] for part in text.split("note ")[1:]]
        assert left == order[: len(left)]
        assert len(left) <= len(previous)
        previous = left
    assert len(previous) < 4
    assert await block.atruncate(whole, 100_000) is None


async def test_cut_saves_at_least_the_tokens_asked_for(stage: Any):
    """Where it saves less, LlamaIndex drops the whole block."""
    from llama_index.core.utils import get_tokenizer

    block = RemnantMemoryBlock(stage.core(), k=6, budget_tokens=None)
    block.core.add(notes(6))
    whole = await block.aget([user(QUESTION)])
    count = get_tokenizer()
    for tokens in range(1, 150, 7):
        text = await block.atruncate(whole, tokens)
        assert text is None or len(count(whole)) - len(count(text)) >= tokens


async def test_token_pressure_cuts_within_the_limit_and_keeps_the_best(stage: Any):
    block = RemnantMemoryBlock(stage.core(), k=6, budget_tokens=None)
    block.core.add(notes(6))
    memory = Memory.from_defaults(memory_blocks=[block], token_limit=250)
    await memory.aput(user(QUESTION))
    text = await read(memory)
    assert "note 0" in text
    assert "note 5" not in text


async def test_priority_zero_is_never_cut(stage: Any):
    block = RemnantMemoryBlock(stage.core(), k=6, budget_tokens=None, priority=0)
    block.core.add(notes(6))
    memory = Memory.from_defaults(memory_blocks=[block], token_limit=100)
    await memory.aput(user(QUESTION))
    assert "note 5" in await read(memory)


async def test_empty_block_under_pressure_is_no_fault(stage: Any):
    blocks = [
        RemnantMemoryBlock(stage.core()),
        StaticMemoryBlock(name="s", priority=0, static_content=[TextBlock(text="word " * 40)]),
    ]
    memory = Memory.from_defaults(memory_blocks=blocks, token_limit=20, chat_history_token_ratio=0.9)
    await memory.aput(user("hello there my friend how are you today"))
    assert "word" in await read(memory)


async def test_overflow_teaches_what_leaves_the_queue(stage: Any):
    block = RemnantMemoryBlock(stage.core())
    memory = Memory.from_defaults(memory_blocks=[block], token_limit=60, token_flush_size=20)
    for turn in range(6):
        await memory.aput(user(f"fact number {turn} about the project with more words"))
        await memory.aput(said("noted"))
    left = len([m for m in await memory.aget_all() if m.role == "user"]) - len(block.core.store.episodes("tenant-a"))
    assert 0 < left < 6
    episodes = block.core.store.episodes("tenant-a")
    assert all(episode.closed_at is not None for episode in episodes)
    assert episodes[-1].task == "fact number 0 about the project with more words"
    assert steps_of(block, episodes[-1].id) == [episodes[-1].task, "noted"]
    block.core.flush(10)
    assert "noted" in [record.content for record in block.core.records()]


async def test_session_that_llamaindex_writes_into_messages_is_not_learnt(stage: Any):
    block = RemnantMemoryBlock(stage.core())
    await block.aput([user("remember the plan"), said("I will")], session_id="secret-session")
    block.core.flush(10)
    assert block.core.records()
    assert not any("secret-session" in json.dumps(record.to_dict()) for record in block.core.records())


async def test_event_handler_may_hand_over_messages(stage: Any):
    block = RemnantMemoryBlock(stage.core(), accept_short_term_memory=False)
    memory = Memory.from_defaults(memory_blocks=[block], token_limit=60, token_flush_size=20)
    handler = stage.agent(stage.once("function")).run(user_msg="what is one and two", memory=memory)
    async for event in handler.stream_events():
        if isinstance(event, AgentOutput) and event.response.content:
            await block.aput([user("what is one and two"), event.response])
    await handler
    for turn in range(6):
        await memory.aput(user(f"fact number {turn} about the project with more words"))
        await memory.aput(said("noted"))
    (episode,) = block.core.store.episodes("tenant-a")
    assert episode.task == "what is one and two"


async def test_part_of_a_conversation_is_kept_too(stage: Any):
    block = RemnantMemoryBlock(stage.core())
    await block.aput([said("so, as I told you"), user("yes?"), said("it rains")])
    tasks = [episode.task for episode in block.core.store.episodes("tenant-a")]
    assert tasks == ["yes?", "(part of a conversation)"]


async def test_what_it_showed_is_not_learnt(stage: Any):
    block = RemnantMemoryBlock(stage.core())
    block.core.add(FACT)
    shown = await block.aget([user(QUESTION)])
    await block.aput([user(f"{shown}\n{QUESTION}"), said(f"You gave me {shown}")])
    (episode,) = block.core.store.episodes("tenant-a")
    assert episode.task == QUESTION
    assert FACT not in json.dumps(steps_of(block, episode.id))


@pytest.mark.parametrize("fault", [StoreError("down"), OSError("disk"), ValueError("bug"), TimeoutError()])
async def test_faults_show_nothing_and_raise_nothing(stage: Any, monkeypatch: pytest.MonkeyPatch, fault: Exception):
    def down(*_: Any, **__: Any) -> Any:
        raise fault

    block = RemnantMemoryBlock(stage.core(strict=True))
    events: list[str] = []
    block.core.events.subscribe(lambda event: events.append(event.name))
    block.core.add(FACT)
    for name in ("words", "get", "open_episode", "add_step"):
        monkeypatch.setattr(type(block.core.store), name, down)
    memory = Memory.from_defaults(memory_blocks=[block], token_limit=60, token_flush_size=20)
    await stage.agent(stage.once("function")).run(user_msg=QUESTION, memory=memory)
    await block.aput([user("x"), said("y")])
    assert "recall_failed" in events
    assert "journal_failed" in events
    assert not stage.shown(FACT)


async def test_strategy_that_cannot_render_shows_nothing(stage: Any):
    from remnant.memory.strategies.facts import Facts

    class Mute(Facts):
        def render(self, hits: Any) -> str:
            raise KeyError("no template")

    block = RemnantMemoryBlock(stage.core(strategy=Mute()))
    block.core.add(FACT)
    assert await block.aget([user(QUESTION)]) == ""


async def test_block_shared_by_two_conversations_keeps_them_apart(stage: Any):
    block = RemnantMemoryBlock(stage.core())
    block.core.add([FACT, "Bob prefers coffee."])
    first, second = (Memory.from_defaults(session_id=name, memory_blocks=[block]) for name in "ab")
    await first.aput(user(QUESTION))
    await second.aput(user("What does Bob prefer?"))
    for _ in range(2):
        assert FACT in await read(first)
        assert FACT not in await read(second)
