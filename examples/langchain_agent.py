"""A LangChain agent that gets better over a stream of tasks, because it remembers what worked.

    python examples/langchain_agent.py                      # a scripted model; needs no key and no network
    vllm serve Qwen/Qwen3-8B --enable-auto-tool-choice --tool-call-parser hermes
    python examples/langchain_agent.py --base-url http://localhost:8000/v1 --model Qwen/Qwen3-8B

Each task asks for a chest to be opened, with two tries; which key fits depends on what the chest is made of, and nobody
says so. Runs that succeed are distilled into lessons (`reasoningbank`), which later runs are shown.
The agent's own model distils. Any chat model of LangChain takes the place of the two below, and keeps the file.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.utils import convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool

from remnant.memory import Episode
from remnant_langchain import MemoryMiddleware

FITS = {"iron": "copper", "oak": "silver", "bone": "glass", "clay": "brass"}
KEYS = ("copper", "silver", "glass", "brass", "tin")
TRIES = 2
SYSTEM = (
    f"You open chests with try_key. The keys: {', '.join(KEYS)}. You have {TRIES} tries per chest; one key at a time. "
    "When it is open, or no try is left, say so in one sentence."
)


@tool
def try_key(chest: str, key: str) -> str:
    """Try one key on a chest, which is named by what it is made of."""
    return "it opens" if FITS.get(chest) == key else "it stays shut"


def opened(episode: Episode) -> str:
    """The verdict: a test of the world, not of what the agent claims."""
    tried = [step for step in episode.steps if step.get("name") == "try_key"]
    return "success" if any(step["content"] == "it opens" for step in tried[:TRIES]) else "failure"


class Scripted(BaseChatModel):
    """Tries the key that a note names, else keys at random; as a distiller it says which key did it."""

    seed: int = 0

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **rest: Any) -> Scripted:
        """It knows its tool."""
        return self

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **rest: Any
    ) -> ChatResult:
        text = "\n".join(str(message.text) for message in messages)
        said = _lesson(text) if "JSON Schema" in text else self._move(messages, text)
        return ChatResult(generations=[ChatGeneration(message=said)])

    def _move(self, messages: list[BaseMessage], text: str) -> AIMessage:
        task = next(str(message.text) for message in reversed(messages) if message.type == "human")
        found = re.search(r"the (\w+) chest", task)
        chest = found[1] if found else ""
        results = [str(message.text) for message in messages if message.type == "tool"]
        if "it opens" in results:
            return AIMessage("The chest is open.")
        if len(results) == TRIES:
            return AIMessage("The chest stays shut.")
        known = re.search(rf"For {chest}, take the (\w+) key", text)
        order = random.Random(f"{self.seed} {task}").sample(KEYS, len(KEYS))
        key = known[1] if known and not results else order[len(results)]
        call = {"name": "try_key", "args": {"chest": chest, "key": key}, "id": f"try-{len(results)}"}
        return AIMessage("", tool_calls=[call])


def _lesson(prompt: str) -> AIMessage:
    """The key that opened the chest, out of the transcript that a distiller is shown."""
    tried = re.findall(r"it opens.*?\"chest\": \"(\w+)\", \"key\": \"(\w+)\"", prompt)
    items = [
        {
            "title": f"Key of {chest}",
            "description": f"Chests of {chest}.",
            "content": f"For {chest}, take the {key} key.",
        }
        for chest, key in tried[:1]
    ]
    return AIMessage(json.dumps({"items": items}))


class Endpoint(BaseChatModel):
    """Any endpoint that speaks OpenAI's chat protocol with tools, such as vLLM's server."""

    client: Any
    model: str
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def _llm_type(self) -> str:
        return "openai-compatible"

    def bind_tools(self, tools: Any, **rest: Any) -> Endpoint:
        """The same endpoint with tools."""
        return self.model_copy(update={"tools": tuple(convert_to_openai_tool(item) for item in tools)})

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **rest: Any
    ) -> ChatResult:
        request = {"model": self.model, "messages": convert_to_openai_messages(messages), **rest}
        if self.tools:
            request["tools"] = list(self.tools)
        answer = self.client.chat.completions.create(**request)
        said = answer.choices[0].message
        calls: Any = [
            {"name": call.function.name, "args": json.loads(call.function.arguments or "{}"), "id": call.id}
            for call in said.tool_calls or ()
        ]
        used = answer.usage
        usage: Any = used and {
            "input_tokens": used.prompt_tokens,
            "output_tokens": used.completion_tokens,
            "total_tokens": used.total_tokens,
        }
        message = AIMessage(said.content or "", tool_calls=calls, usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])


def main(argv: list[str] | None = None) -> int:
    """Run the stream twice, without and with memory, and print how many chests were opened."""
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
    rng = random.Random(args.seed)
    tasks = [f"Open the {rng.choice(sorted(FITS))} chest of room {number}." for number in range(1, args.tasks + 1)]
    without = [_run(create_agent(_model(args), [try_key], system_prompt=SYSTEM), task) for task in tasks]
    print(f"without memory  {_marks(without)}")
    with tempfile.TemporaryDirectory() as folder:
        path = args.file or Path(folder) / "agent.db"
        middleware = MemoryMiddleware(path, strategy="reasoningbank", verdict=opened)
        agent = create_agent(_model(args), [try_key], middleware=[middleware], system_prompt=SYSTEM)
        with_memory: list[bool] = []
        for task in tasks:
            with_memory.append(_run(agent, task))
            middleware.memory.flush(60)  # so that a short stream shows it; a real agent need not wait
        print(f"with memory     {_marks(with_memory)}")
        for lesson in sorted({record.content.splitlines()[-1] for record in middleware.memory.records()}):
            print("  learnt:", lesson)
        middleware.memory.close()
    return 0


def _model(args: argparse.Namespace) -> BaseChatModel:
    if not args.base_url:
        return Scripted(seed=args.seed)
    import openai

    return Endpoint(client=openai.OpenAI(base_url=args.base_url, api_key=args.api_key), model=args.model)


def _run(agent: Any, task: str) -> bool:
    """Whether the chest opened within the tries."""
    result = agent.invoke({"messages": [("user", task)]})
    tried = [str(message.text) for message in result["messages"] if message.type == "tool"]
    return "it opens" in tried[:TRIES]


def _marks(done: list[bool]) -> str:
    half = len(done) // 2
    share = [f"{sum(part)}/{len(part)}" for part in (done[:half], done[half:])]
    return f"{''.join('+' if ok else '.' for ok in done)}  first half {share[0]}, second half {share[1]}"


if __name__ == "__main__":
    sys.exit(main())
