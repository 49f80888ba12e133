"""A LlamaIndex agent that gets better over a stream of tasks, because it remembers what it found out.

    python examples/llamaindex_agent.py                     # a scripted model; needs no key and no network
    vllm serve Qwen/Qwen3-8B
    python examples/llamaindex_agent.py --base-url http://localhost:8000/v1 --model Qwen/Qwen3-8B

Each task asks for a parcel to be delivered, with two tries; which courier goes to which island nobody says. What a run
concludes is kept as thoughts (`tim`), which later runs are shown. The agent's own model distils. It is a ReActAgent, so
any chat model of LlamaIndex takes the place of the two below, whether it calls functions or not, and keeps the file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, LLMMetadata
from llama_index.core.llms import CustomLLM
from llama_index.core.memory import Memory
from pydantic import PrivateAttr

from remnant.memory import Episode, Message, OpenAIChatModel
from remnant.memory.record import Outcome
from remnant_llamaindex import RemnantMemory

GOES_TO = {"Skerry": "Blue", "Holm": "Gull", "Vik": "Tern", "Sand": "Kite"}
COURIERS = ("Blue", "Gull", "Tern", "Kite", "Wren")
TRIES = 2
SYSTEM = (
    f"You deliver parcels with the tool send. The couriers: {', '.join(COURIERS)}. You have {TRIES} tries per parcel, "
    "one courier at a time. When it is delivered, or no try is left, say so in one sentence."
)


def send(island: str, courier: str) -> str:
    """Send a courier with the parcel to an island."""
    return "delivered" if GOES_TO.get(island) == courier else "that courier does not go there"


def delivered(episode: Episode) -> Outcome:
    """The verdict: a test of the world, not of what the agent claims."""
    tried = [step for step in episode.steps if step.get("name") == "send"]
    return "success" if any(step["content"] == "delivered" for step in tried[:TRIES]) else "failure"


class Chat(CustomLLM):
    """A chat model around a function of the messages."""

    _answer: Callable[[Sequence[ChatMessage]], str] = PrivateAttr()

    def __init__(self, answer: Callable[[Sequence[ChatMessage]], str]) -> None:
        """See the class."""
        super().__init__()
        self._answer = answer

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks of a model."""
        return LLMMetadata(is_chat_model=True, model_name="example")

    def chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        """Answer."""
        return ChatResponse(message=ChatMessage(role="assistant", content=self._answer(messages)))

    async def achat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        """Answer without blocking."""
        return await asyncio.to_thread(self.chat, messages)

    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        """Answer a single prompt."""
        return CompletionResponse(text=self._answer([ChatMessage(role="user", content=prompt)]))

    def stream_complete(self, prompt: str, formatted: bool = False, **_: Any) -> Any:
        """The same at once: these agents do not stream."""
        yield self.complete(prompt)


def script(messages: Sequence[ChatMessage], seed: int = 0) -> str:
    """Sends the courier that a note names, else couriers at random; as a distiller it says who went where."""
    text = "\n".join(message.content or "" for message in messages)
    if "JSON Schema" in text:
        return _thoughts(text)
    said = [message.content or "" for message in messages]
    place = max(number for number, line in enumerate(said) if "Deliver parcel" in line)
    task = re.findall(r"Deliver parcel \d+ to (\w+)", said[place])[-1]
    seen = [line for line in said[place + 1 :] if line.startswith("Observation: ")]
    if "Observation: delivered" in seen:
        return "Thought: I can answer without using any more tools.\nAnswer: The parcel is delivered."
    if len(seen) >= TRIES:
        return "Thought: I cannot answer with the tools I have.\nAnswer: Nobody took the parcel."
    known = re.search(rf"(\w+) goes to {task}", text)
    order = random.Random(f"{seed} {said[place][-40:]}").sample(COURIERS, len(COURIERS))
    courier = known[1] if known and not seen else order[len(seen)]
    asked = json.dumps({"island": task, "courier": courier})
    return f"Thought: I need to send a courier.\nAction: send\nAction Input: {asked}"


def _thoughts(prompt: str) -> str:
    """Who delivered, out of the transcript that a distiller is shown; nothing to end and nothing to merge."""
    if '"thoughts"' not in prompt:
        return json.dumps({"remove": []} if '"remove"' in prompt else {"groups": []})
    found = re.findall(r"delivered.*?\"island\": \"(\w+)\", \"courier\": \"(\w+)\"", prompt)
    thoughts = [
        {"head": courier, "relation": "goes to", "tail": island, "text": f"{courier} goes to {island}."}
        for island, courier in found[:1]
    ]
    return json.dumps({"thoughts": thoughts})


def endpoint(args: argparse.Namespace) -> Callable[[Sequence[ChatMessage]], str]:
    """Any endpoint that speaks OpenAI's chat protocol, such as vLLM's server."""
    model = OpenAIChatModel(args.model, base_url=args.base_url, api_key=args.api_key)

    def answer(messages: Sequence[ChatMessage]) -> str:
        sent = [Message(message.role.value, message.content or "") for message in messages]  # type: ignore[arg-type]
        return model.generate(sent).text

    return answer


async def stream(agent: ReActAgent, tasks: Sequence[str], memory: RemnantMemory | None) -> list[bool]:
    """Whether each parcel arrived; every task is a conversation of its own."""
    done: list[bool] = []
    for task in tasks:
        if memory is None:
            result = await agent.run(user_msg=task, memory=Memory.from_defaults())
        else:
            session = memory.session()
            result = await session.track(agent.run(user_msg=task, memory=session))
            await memory.aflush(60)  # so that a short stream shows it; a real agent need not wait
        tried = [call.tool_output.content for call in result.tool_calls if hasattr(call, "tool_output")]
        done.append("delivered" in tried[:TRIES])
    return done


async def compare(args: argparse.Namespace, path: Path) -> None:
    """Run the stream without and with memory, and print how many parcels arrived."""
    rng = random.Random(args.seed)
    tasks = [f"Deliver parcel {n} to {rng.choice(sorted(GOES_TO))}." for n in range(1, args.tasks + 1)]
    answer = endpoint(args) if args.base_url else lambda messages: script(messages, args.seed)
    agent = ReActAgent(tools=[send], llm=Chat(answer), system_prompt=SYSTEM, streaming=False)
    print(f"without memory  {_marks(await stream(agent, tasks, None))}")
    memory = RemnantMemory.open(path, strategy="tim", scope="example", verdict=delivered)
    print(f"with memory     {_marks(await stream(agent, tasks, memory))}")
    for thought in sorted(record.content for record in memory.core.records()):
        print("  learnt:", thought)
    await memory.aclose()


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", type=Path, help="where memory lies; a file of its own if left out")
    parser.add_argument("--base-url", help="an OpenAI-compatible endpoint")
    parser.add_argument("--model", help="the model's name there")
    parser.add_argument("--api-key", default="none")
    args = parser.parse_args(argv)
    if bool(args.base_url) != bool(args.model):
        parser.error("--base-url and --model go together")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(args, args.file or Path(folder) / "agent.db"))
    return 0


def _marks(done: list[bool]) -> str:
    half = len(done) // 2
    share = [f"{sum(part)}/{len(part)}" for part in (done[:half], done[half:])]
    return f"{''.join('+' if ok else '.' for ok in done)}  first half {share[0]}, second half {share[1]}"


if __name__ == "__main__":
    sys.exit(main())
