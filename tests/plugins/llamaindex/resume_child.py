"""A process whose agent asks a person and is killed while it waits; prints its context before."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent, JsonSerializer

from remnant_llamaindex import RemnantMemory

SESSION = "thread-1"


async def ask(ctx: Context) -> str:
    """Ask the person."""
    waiting = InputRequiredEvent(prefix="sure?")  # pyright: ignore[reportCallIssue]
    answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=waiting)
    return answer.response


def respond(messages: Sequence[ChatMessage], **_: Any) -> ChatMessage:
    if any(message.role == "tool" for message in messages):
        return ChatMessage(role="assistant", content="done")
    return ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_call_id="1", tool_name="ask", tool_kwargs={})])


def make_agent() -> FunctionAgent:
    llm = MockFunctionCallingLLM(response_generator=respond, is_chat_model=True)
    return FunctionAgent(tools=[FunctionTool.from_defaults(async_fn=ask, name="ask")], llm=llm)


def open_memory(folder: str) -> RemnantMemory:
    uri = f"sqlite+aiosqlite:///{folder}/chat.db"
    path = f"{folder}/memory.db"
    options: dict[str, Any] = {"session_id": SESSION, "async_database_uri": uri, "write": "manual"}
    return RemnantMemory.open(path, "facts", scope="tenant-a", llm=False, **options)


def steps(memory: RemnantMemory) -> Sequence[Any]:
    episode = memory.core.store.episode("tenant-a", memory.episode)
    return episode.steps if episode else ()


async def main(folder: str) -> None:
    memory, agent = open_memory(folder), make_agent()
    context = Context(agent)
    run = memory.track(agent.run(user_msg="close the shop", memory=memory, ctx=context))
    async for event in run.stream_events():
        if isinstance(event, InputRequiredEvent):
            break
    while len(steps(memory)) < 2:  # the wish for the tool is on its way to the disk
        await asyncio.sleep(0.01)
    data = context.to_dict(serializer=JsonSerializer())
    with open(f"{folder}/context.json", "w") as file:
        json.dump(data, file)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
