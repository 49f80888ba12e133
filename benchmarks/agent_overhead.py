"""What the memory middleware costs an agent of LangChain, per step, at several sizes of memory.

    python benchmarks/run.py agent_overhead [--sizes N ...] [--runs N] [--rounds N] [--out FILE]

The same agent runs with and without the middleware, in turns; its model answers at once. A step is a model call or a
tool call; a run has `rounds` of both and a last model call. All that the middleware does is divided by the steps:
opening the episode, recall (words only, eight records), the prompt, the journal and the close. Times are wall clock,
and the processor time of all threads of the process, which says the same on a machine that others use too.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import langchain
from langchain.agents import create_agent
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool

import remnant
from remnant.memory import Memory
from remnant_langchain import MemoryMiddleware

ROOT = Path(__file__).parents[1]
BATCH, VOCABULARY, WARM = 1000, 20_000, 5
GOAL_MS = 5.0


class Instant(BaseChatModel):
    """Asks for the tool some times, then answers."""

    rounds: int

    @property
    def _llm_type(self) -> str:
        return "instant"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **rest: Any) -> ChatResult:
        done = sum(message.type == "tool" for message in messages)
        asked = AIMessage("", tool_calls=[{"name": "look", "args": {"word": f"w{done}x"}, "id": str(done)}])
        message = asked if done < self.rounds else AIMessage("the answer")
        return ChatResult(generations=[ChatGeneration(message=message)])

    def bind_tools(self, tools: Any, **rest: Any) -> Any:
        """It knows its tool."""
        return self


@tool
def look(word: str) -> str:
    """Looks a word up."""
    return f"seen {word}"


def main(argv: list[str] | None = None) -> int:
    """Measure, write JSON lines and print them."""
    parser = argparse.ArgumentParser(prog="run.py agent_overhead", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 10_000], help="texts in memory")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "agent-overhead.jsonl")
    args = parser.parse_args(argv)
    facts = _facts(sys.argv[1:] if argv is None else argv)
    lines: list[str] = []
    for size, mode in itertools.product(args.sizes, ("sync", "async")):
        lines.append(json.dumps({**measure(size, mode, args.runs, args.rounds, args.seed), **facts}))
        print(lines[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(line + "\n" for line in lines))
    return 0


def measure(size: int, mode: str, runs: int, rounds: int, seed: int) -> dict[str, Any]:
    """The extra time of a step at one size, by the median and the 95th percentile of runs in turns."""
    rng = random.Random(seed)
    weights = list(itertools.accumulate(1 / (i + 1) for i in range(VOCABULARY)))
    known = [f"w{i}x" for i in range(VOCABULARY)]

    def text(length: int) -> str:
        return " ".join(rng.choices(known, cum_weights=weights, k=length))

    texts, tasks = [text(30) for _ in range(size)], [text(8) for _ in range(runs + WARM)]
    with (
        tempfile.TemporaryDirectory() as folder,
        Memory.open(Path(folder) / "m.db", scope="a", write="manual") as memory,
    ):
        for start in range(0, size, BATCH):
            memory.add(texts[start : start + BATCH])
        agents = {
            name: create_agent(Instant(rounds=rounds), [look], middleware=middleware)
            for name, middleware in (("without", []), ("with", [MemoryMiddleware(memory)]))
        }
        took = _timed(agents, tasks) if mode == "sync" else asyncio.run(_atimed(agents, tasks))
    steps = 2 * rounds + 1
    pairs = list(zip(took["with"], took["without"], strict=True))
    wall, cpu = (sorted(1000 * (w[part] - o[part]) / steps for w, o in pairs) for part in (0, 1))
    return {
        "benchmark": "agent_overhead", "size": size, "mode": mode, "runs": runs, "steps": steps, "seed": seed,
        "step_ms_without": round(1000 * statistics.median(o[0] for _, o in pairs) / steps, 2),
        "step_cpu_ms_without": round(1000 * statistics.median(o[1] for _, o in pairs) / steps, 2),
        "extra_step_ms_p50": round(statistics.median(wall), 2), "extra_step_ms_p95": round(wall[runs * 95 // 100], 2),
        "extra_step_cpu_ms_p50": round(statistics.median(cpu), 2), "goal_ms": GOAL_MS,
        "met": statistics.median(wall) <= GOAL_MS, "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


Times = dict[str, list[tuple[float, float]]]
"""By agent: seconds of each run, on the wall and of the processor."""


def _timed(agents: dict[str, Any], tasks: list[str]) -> Times:
    took: Times = {name: [] for name in agents}
    for task in tasks:
        for name, agent in agents.items():
            begin = _now()
            agent.invoke({"messages": [("user", task)]})
            took[name].append(_since(begin))
    return {name: times[WARM:] for name, times in took.items()}


async def _atimed(agents: dict[str, Any], tasks: list[str]) -> Times:
    took: Times = {name: [] for name in agents}
    for task in tasks:
        for name, agent in agents.items():
            begin = _now()
            await agent.ainvoke({"messages": [("user", task)]})
            took[name].append(_since(begin))
    return {name: times[WARM:] for name, times in took.items()}


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(begin: tuple[float, float]) -> tuple[float, float]:
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def _facts(arguments: list[str]) -> dict[str, Any]:
    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    paths = ("core/remnant/index", "core/remnant/memory", "plugins/langchain_ext", "benchmarks/agent_overhead.py")
    return {
        "command": " ".join(["python benchmarks/run.py agent_overhead", *arguments]),
        "git": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", *paths)),
        "remnant": remnant.__version__,
        "langchain": langchain.__version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, shared",
    }


if __name__ == "__main__":
    sys.exit(main())
