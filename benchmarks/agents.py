"""Does an agent get better with a memory? Streams of tasks in the workshop, with and without each strategy.

    python benchmarks/run.py agents [--tasks N] [--seeds N] [--out FILE] [--chart FILE]

A simulation: solver and model are scripts that read and err (remnant.testbed.agents); it shows direction, not size.
Rates are means over seeds with 95 % bootstrap intervals over tasks; `gain` is paired with no memory on the same tasks.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import remnant
from remnant.memory.strategies import BUILTIN, ReasoningBank
from remnant.testbed.agents.stream import NONE, RAW, Settings, Trajectories
from remnant.testbed.agents.trial import compare, poison, scale

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MEASURED = ("core/remnant/memory", "core/remnant/testbed/agents", "benchmarks/agents.py")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write JSON lines and a chart, and print the lines."""
    parser = argparse.ArgumentParser(prog="run.py agents", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--many", type=int, default=40, help="seeds where a small difference is looked for")
    parser.add_argument("--out", type=Path, default=RESULTS / "agents.jsonl")
    parser.add_argument("--chart", type=Path, default=RESULTS / "agents.png")
    args = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else list(arguments)
    about = _about(given)
    rows: list[dict[str, Any]] = []
    for row in _rows(range(args.seeds), range(args.many), Settings(args.tasks)):
        rows.append({"tasks": args.tasks, "seeds": args.seeds, **row, **about})
        print(json.dumps(rows[-1]), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw(rows, args.chart)
    return 0


def _rows(seeds: Sequence[int], many: Sequence[int], plain: Settings) -> Iterator[dict[str, Any]]:
    everyone: dict[str, Callable[[], Any]] = {RAW: Trajectories, **{found.name: found for found in BUILTIN}}
    three: dict[str, Callable[[], Any]] = {"reasoningbank, 3 experiences": lambda: ReasoningBank(3)}
    one = {RAW: Trajectories, "reasoningbank": ReasoningBank}
    tables = (
        ("stream", {**everyone, **three}, plain),
        ("one experience each", one, replace(plain, k=1)),
        ("20 % wrong verdicts", everyone, replace(plain, misjudges=0.2)),
        ("half of the machines change midway", everyone, replace(plain, drift_at=plain.tasks // 2)),
        ("poisoned", everyone, replace(plain, prepare=poison)),
    )
    for name, entrants, settings in tables:
        for who, found in compare(entrants, seeds, settings).items():
            if who != NONE or name == "stream":
                yield {"experiment": name, "strategy": who, **found}
    for name, settings in (("many seeds", plain), ("many seeds, one experience each", replace(plain, k=1))):
        for who, found in compare(one, many, settings).items():
            yield {"experiment": name, "strategy": who, **found, "seeds": len(many)}
    for who, make in {"reasoningbank": ReasoningBank, **three}.items():
        yield {"experiment": "best of 4 rollouts", "strategy": who, **scale(make, seeds, 4, plain)}


def draw(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Success over the whole stream and in its second half, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in rows if row["experiment"] == "stream"]
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for offset, (part, label) in enumerate((("success", "whole stream"), ("late", "second half"))):
        rates = [row[part] for row in shown]
        spread = [
            [rate["mean"] - rate["low"] for rate in rates],
            [rate["high"] - rate["mean"] for rate in rates],
        ]
        places = [place + 0.38 * (offset - 0.5) for place in range(len(shown))]
        axes.bar(places, [rate["mean"] for rate in rates], 0.36, yerr=spread, capsize=2, label=label)
    axes.set_xticks(range(len(shown)), [row["strategy"].replace(", ", ",\n") for row in shown], fontsize=8)
    axes.set(ylabel="tasks done", ylim=(0, 1), title="Workshop (simulation): success with and without a memory")
    axes.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _about(arguments: Sequence[str]) -> dict[str, Any]:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return {
        "command": " ".join(["python benchmarks/run.py agents", *arguments]),
        "git": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", *MEASURED)),
        "remnant": remnant.__version__,
        "python": platform.python_version(),
        "device": "CPU (simulation; not a measurement of speed)",
    }


if __name__ == "__main__":
    sys.exit(main())
