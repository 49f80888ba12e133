"""Accuracy and perplexity of every policy on the testbed, with the bytes that it held: appended to a JSONL file."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from registry import EXAMPLES, LENGTH, SEEDS, Cell, cells

from remnant.errors import ConfigError
from remnant.kv import list_policies
from remnant.testbed.drive import Scored
from remnant.testbed.evaluate import accuracy, budget_tokens, measure, perplexity, summary, versions, with_defaults
from remnant.testbed.examples import make_examples
from remnant.testbed.model import WEIGHTS_FILE, load
from remnant.testbed.tasks import BENCHMARK_SEED_BASE, Example

RESULTS = Path(__file__).resolve().parent / "results" / "quality.jsonl"


def main(arguments: list[str]) -> int:
    """Measure what is not in the file yet."""
    args = _parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    model, _ = load(device=args.device)
    facts = _facts(model, arguments)
    index, parts = (int(x) for x in args.part.split("/"))
    todo = [c for c in cells(list_policies(), args.quick) if _wanted(c, args)]
    known = _known(args.out)
    examples: dict[str, list[list[Example]]] = {}
    for i, cell in enumerate(todo[index::parts]):
        n = max(1, round((2 if args.quick else EXAMPLES[cell.task]) * args.scale))
        options = with_defaults(cell.task, cell.policy, cell.options)
        head = {"benchmark": "quality", "task": cell.task, "policy": cell.policy, "options": options,
                "budget": cell.budget, "length": LENGTH, "n": n}  # fmt: skip
        if _key({**head, **facts, "seed": BENCHMARK_SEED_BASE}) in known:
            continue
        sets = examples.get(cell.task) or [
            make_examples(cell.task, LENGTH, n, BENCHMARK_SEED_BASE + s) for s in range(1 if args.quick else SEEDS)
        ]
        examples = {cell.task: sets}
        began = time.perf_counter()
        try:
            rows = _measure(model, cell, sets, {**head, **facts}, dict(options))
        except ConfigError as error:
            print(f"skipped {cell.task} {cell.policy} {cell.budget:.0%}: {error}", file=sys.stderr)
            continue
        _append(args.out, rows)
        _say(rows, args.json, f"{i + 1}/{len(todo[index::parts])}", time.perf_counter() - began)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py quality", description=__doc__)
    parser.add_argument("--part", default="0/1", metavar="I/K", help="the I-th of K shares of the work, from 0")
    parser.add_argument("--quick", action="store_true", help="three policies, one task, one seed, two examples")
    parser.add_argument("--json", action="store_true", help="print the rows")
    parser.add_argument("--task", action="append", help="only this task; may be repeated")
    parser.add_argument("--policy", action="append", help="only this policy; may be repeated")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the examples per cell")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser


def _wanted(cell: Cell, args: argparse.Namespace) -> bool:
    return (not args.task or cell.task in args.task) and (not args.policy or cell.policy in args.policy)


def _measure(
    model: Any, cell: Cell, sets: list[list[Example]], head: dict[str, Any], options: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row per seed; all seeds share the batches."""
    tokens = budget_tokens(cell.budget, LENGTH)
    flat = [example for one in sets for example in one]
    scored = measure(model, flat, cell.task, cell.policy, tokens, rows=36, **options)
    rows: list[dict[str, Any]] = []
    n = len(sets[0])
    for s, one in enumerate(sets):
        part = _slice(scored, s * n, s * n + n)
        score = {"perplexity": perplexity(part)} if cell.task == "perplexity" else {"accuracy": accuracy(part, one)}
        rows.append(
            {**head, "budget_tokens": tokens, "seed": BENCHMARK_SEED_BASE + s, **score, **summary(part),
             "simulation": False}
        )  # fmt: skip
    return rows


def _slice(scored: Scored, start: int, end: int) -> Scored:
    """The examples `start:end`; time is shared by all."""
    lists = {name: getattr(scored, name)[start:end] for name in ("hits", "nll", "bytes", "peak_bytes")}
    rest = {name: getattr(scored, name)[start:end] for name in ("bytes_full", "kept")}
    extra = {name: values[start:end] for name, values in scored.extra.items()}
    return Scored(**lists, **rest, tokens=scored.tokens, seconds=scored.seconds, extra=extra)


def _facts(model: Any, arguments: list[str]) -> dict[str, Any]:
    """Where and with what a row was measured."""
    folder = Path(__file__).resolve().parent
    sha = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    weights = hashlib.sha256(WEIGHTS_FILE.read_bytes()).hexdigest()[:16]
    command = " ".join(["python benchmarks/run.py quality", *arguments])
    return {"weights": weights, "git_sha": sha.stdout.strip(), "command": command, **versions(model)}


def _key(row: dict[str, Any]) -> str:
    names = ("task", "policy", "options", "budget", "length", "n", "seed", "weights")
    return json.dumps([row[name] for name in names], sort_keys=True)


def _known(path: Path) -> set[str]:
    if not path.exists():
        return set()
    return {_key(json.loads(line)) for line in path.read_text().splitlines() if line.strip()}


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    """In one write, so that two processes can share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def _say(rows: list[dict[str, Any]], as_json: bool, count: str, seconds: float) -> None:
    if as_json:
        print("\n".join(json.dumps(row) for row in rows), flush=True)
    first = rows[0]
    name = "perplexity" if "perplexity" in first else "accuracy"
    mean = sum(row[name] for row in rows) / len(rows)
    text = f"{count} {first['task']} {first['policy']} {first['budget']:.0%}: {name} {mean:.3f}"
    print(
        f"{text}, {first['bytes'] / first['bytes_full']:.1%} of the bytes, {seconds:.1f} s", file=sys.stderr, flush=True
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
