"""Adding to agent memory and recalling from it, at several sizes, in a real file.

    python benchmarks/run.py memory [--sizes N ...] [--modes words vectors] [--queries N] [--out FILE]

Texts of 30 words and queries of 8 are drawn from a Zipf distribution over 20,000 words, with a seed. `agree` is the
share of the ten best hits of a ranking of all documents that recall gives too (words only). Times are wall clock.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import remnant
from remnant.memory import Memory
from remnant.memory.models import HashEmbedder
from remnant.memory.sqlite import words

ROOT = Path(__file__).parents[1]
BATCH, VOCABULARY, CHECKED = 1000, 20_000, 20


def main(argv: list[str] | None = None) -> int:
    """Measure, write JSON lines and print them."""
    parser = argparse.ArgumentParser(prog="run.py memory", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="texts in memory")
    parser.add_argument("--modes", nargs="+", choices=("words", "vectors"), default=["words", "vectors"])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "memory.jsonl")
    args = parser.parse_args(argv)
    facts = _facts(sys.argv[1:] if argv is None else argv)
    lines: list[str] = []
    for size, mode in itertools.product(args.sizes, args.modes):
        lines.append(json.dumps({**measure(size, mode, args.queries, args.seed), **facts}))
        print(lines[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(line + "\n" for line in lines))
    return 0


def measure(size: int, mode: str, queries: int, seed: int) -> dict[str, Any]:
    """Times of one size: of adding in batches, and of each recall after the first ten."""
    rng = random.Random(seed)
    weights = list(itertools.accumulate(1 / (i + 1) for i in range(VOCABULARY)))
    known = [f"w{i}x" for i in range(VOCABULARY)]

    def text(length: int) -> str:
        return " ".join(rng.choices(known, cum_weights=weights, k=length))

    texts, asked = [text(30) for _ in range(size)], [text(8) for _ in range(queries + 10)]
    with tempfile.TemporaryDirectory() as folder:
        embedder = HashEmbedder() if mode == "vectors" else None
        with Memory.open(Path(folder) / "m.db", scope="a", embedder=embedder, write="manual", strict=True) as memory:
            begin = time.perf_counter()
            for start in range(0, size, BATCH):
                memory.add(texts[start : start + BATCH])
            added = time.perf_counter() - begin
            times: list[float] = []
            for query in asked:
                begin = time.perf_counter()
                memory.recall(query, k=10)
                times.append(1000 * (time.perf_counter() - begin))
            steady = sorted(times[10:])
            agree = _agreement(memory, asked[:CHECKED]) if mode == "words" else None
    return {
        "benchmark": "memory", "size": size, "mode": mode, "queries": queries, "seed": seed,
        "add_ms_each": round(1000 * added / size, 3), "first_recall_ms": round(times[0], 2),
        "recall_p50_ms": round(steady[len(steady) // 2], 2), "recall_p95_ms": round(steady[len(steady) * 95 // 100], 2),
        "agree": agree,
    }  # fmt: skip


def _agreement(memory: Memory, asked: list[str]) -> float:
    usual = [{hit.id for hit in memory.recall(query, k=10)} for query in asked]
    held, words.MOST_RANKED = words.MOST_RANKED, sys.maxsize
    try:
        whole = [{hit.id for hit in memory.recall(query, k=10)} for query in asked]
    finally:
        words.MOST_RANKED = held
    return round(sum(len(a & b) for a, b in zip(usual, whole, strict=True)) / sum(map(len, whole)), 3)


def _facts(arguments: list[str]) -> dict[str, Any]:
    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return {
        "command": " ".join(["python benchmarks/run.py memory", *arguments]),
        "git": git("rev-parse", "HEAD"),
        "dirty": bool(
            git(
                "status",
                "--porcelain",
                "--",
                "core/remnant/index",
                "core/remnant/memory/sqlite",
                "benchmarks/memory.py",
            )
        ),
        "remnant": remnant.__version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, shared",
    }


if __name__ == "__main__":
    sys.exit(main())
