"""Whose memory it is: two tenants through every door, and what is forgotten is nowhere."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.memory import Memory

from remnant_llamaindex import RemnantMemory, RemnantMemoryBlock, RemnantRetriever

WORDS = ("tea", "milk", "lemon", "sugar", "coffee")
SECRET = "zanzibar"


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


async def through_every_door(memory: RemnantMemory, question: str) -> str:
    """All that memory, block and retriever show about a question."""
    own = memory.session()
    await own.aput(user(question))
    told = [message.content or "" for message in await own.aget()]
    beside = Memory.from_defaults(memory_blocks=[RemnantMemoryBlock(memory.core)])
    await beside.aput(user(question))
    told += [message.content or "" for message in await beside.aget()]
    retriever = RemnantRetriever(memory)
    told += [node.get_content() for node in retriever.retrieve(question)]
    told += [node.get_content() for node in await retriever.aretrieve(question)]
    return "\n".join(told)


DOORS = st.sampled_from(["add", "turn", "block", "feedback"])
ACTIONS = st.lists(st.tuples(st.sampled_from("ab"), DOORS, st.lists(st.sampled_from(WORDS), min_size=1)), max_size=8)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTIONS)
def test_nothing_of_one_tenant_shows_through_any_door_of_the_other(actions: Any):
    async def main(path: Path) -> None:
        first = RemnantMemory.open(path, "facts", scope="a", llm=False, write="inline")
        memories = {"a": first, "b": first.session(scope="b")}
        for tenant, door, words in actions:
            memory = memories[tenant]
            text = " ".join((*words, f"of-{tenant}"))
            if door == "add":
                await memory.core.aadd(text)
            elif door == "turn":
                await memory.aput_messages([user(text), ChatMessage(role="assistant", content=f"yes, {text}")])
            elif door == "block":
                await RemnantMemoryBlock(memory.core).aput([user(text), ChatMessage(role="assistant", content=text)])
            elif memory.episode:
                await memory.afeedback(True)
        for tenant, other in ("ab", "ba"):
            told = await through_every_door(memories[tenant], f"{' '.join(WORDS)} of-{tenant} of-{other}")
            assert f"of-{other}" not in told.replace(f"of-{tenant} of-{other}", "")
            assert not any(f"of-{other}" in r.content for r in memories[tenant].core.records())
        first.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder) / "m.db"))


async def test_session_of_another_scope_shares_no_history_and_no_blocks(stage: Any):
    from llama_index.core.memory import StaticMemoryBlock

    uri = f"sqlite+aiosqlite:///{stage.path}.chat"
    block = StaticMemoryBlock(name="of-a", static_content=[TextBlock(text="only for a")])
    first = stage.open(session_id="s", async_database_uri=uri, memory_blocks=[block])
    await first.aput(user("hello from a"))
    other = first.session("s", scope="tenant-b")
    assert other.core.scope == "tenant-b"
    assert await other.aget() == []
    assert [m.content for m in await first.session("s").aget_all()] == ["hello from a"]


async def test_forgotten_text_is_in_no_door_and_no_byte(stage: Any, say_: Any):
    memory = stage.open(write="inline")
    text = f"The password of the old shed is {SECRET}, says Ada."
    agent = stage.agent(lambda _: say_("noted"))
    await memory.track(agent.run(user_msg=text, memory=memory))
    await memory.session().aput(user("What is the word for the old shed?"))
    await memory.aput(user("What did Ada say of the old shed?"))
    assert SECRET in "".join(m.content or "" for m in await memory.aget())
    assert SECRET.encode() in b"".join(path.read_bytes() for path in stage.path.parent.iterdir())

    found = [record.id for record in memory.core.records() if SECRET in record.content]
    assert found
    receipt = await memory.core.aforget(found)
    assert receipt.clean
    assert receipt.steps
    assert SECRET not in await through_every_door(memory, "What is the word for the old shed?")
    for episode in memory.core.store.episodes("tenant-a"):
        assert SECRET not in episode.task
        assert SECRET not in str(stage.episode(memory, episode.id).steps)
    assert SECRET.encode() not in b"".join(path.read_bytes() for path in stage.path.parent.iterdir())
    memory.set([])  # LlamaIndex's own history is the user's to empty
    await memory.aput(user("What did Ada say of the old shed?"))
    assert SECRET not in "".join(m.content or "" for m in await memory.aget())


async def test_run_whose_episode_is_forgotten_meanwhile_goes_on(stage: Any, say_: Any):
    memory = stage.open(write="inline")
    (id,) = memory.core.add("Ada takes tea.")

    def answer(messages: list[ChatMessage]) -> ChatMessage:
        memory.core.forget(id)
        return say_("without milk")

    agent = stage.agent(answer)
    assert str(await memory.track(agent.run(user_msg="How does Ada take tea?", memory=memory))) == "without milk"
