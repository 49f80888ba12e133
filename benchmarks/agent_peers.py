"""Adding and searching against mem0, langmem and LangGraph's stores, in one run.

    python benchmarks/run.py agent_peers [--peers build|run] [--sizes N ...] [--queries N] [--seconds N] [--out FILE]

The same texts (30 words by Zipf's law) and the same vectors (384 random numbers each, looked up, so that embedding
costs nobody anything) go to every provider in turns: in batches of 100 up to each size, then one by one; then each
gets the same questions. mem0 runs without inference and with telemetry off. Remnant searches words and vectors, writes
to a file and keeps every version; the others compare vectors only. A provider that takes more than `--seconds` at
one size is left out there and above; nothing is extrapolated. `right` is the share of questions whose own text came
first. `..._to_remnant` are ratios of medians: above 1 is slower than Remnant. Times are wall clock, in ms per text or
question.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import memory_lib as lib
from memory_env import ENV, QUIET, build, missing

GOALS = {"add_one": 5.0, "add_batch": 5.0, "search": 2.0}
"""How many times as long as Remnant mem0 shall take."""

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Measure, write JSON lines and print the ratios; 2 where the peers are not installed."""
    parser = argparse.ArgumentParser(prog="run.py agent_peers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", choices=("build", "run"), default="run", help="build their environment first")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000], help="texts in memory")
    parser.add_argument("--providers", nargs="+", default=[], help="some of them only")
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=300.0, help="for one provider at one size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=lib.ROOT / "benchmarks" / "results" / "agent-peers.jsonl")
    args = parser.parse_args(argv)
    if args.peers == "build":
        build()
    if why := missing():
        print(why, file=sys.stderr)
        return 2
    arguments = sys.argv[1:] if argv is None else argv
    about = {**lib.facts("agent_peers", arguments, *_OWN), **_versions()}
    rows: list[Row] = []
    for measured in _worker(args):
        base = next((row for row in rows if row["size"] == measured["size"] and row["provider"] == "remnant"), measured)
        rows.append({"benchmark": "agent_peers", **measured, **_ratios(measured, base), "seed": args.seed, **about})
        print(_line(rows[-1]), flush=True)
        lib.write(args.out, rows)
    return 0 if rows else 1


_OWN = tuple(f"benchmarks/{name}.py" for name in ("agent_peers", "agent_peers_worker", "memory_env", "memory_lib"))


def _worker(args: Any) -> Any:
    """Each measurement as it comes."""
    worker = str(Path(__file__).with_name("agent_peers_worker.py"))
    numbers = [f"--queries={args.queries}", f"--seconds={args.seconds}", f"--seed={args.seed}"]
    command = [str(ENV / "bin" / "python"), worker, "--sizes", *map(str, args.sizes), *numbers]
    command += ["--providers", "remnant", *args.providers] if args.providers else []
    environment = {**os.environ, **QUIET, "MEM0_DIR": str(ENV / "mem0")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    if process.returncode:
        raise RuntimeError(f"the worker ended with {process.returncode}")


def _versions() -> Row:
    code = "import json, agent_peers_worker as worker; print(json.dumps(worker.versions()))"
    command = [str(ENV / "bin" / "python"), "-c", code]
    folder = Path(__file__).parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env={**os.environ, **QUIET})
    return json.loads(done.stdout)


def _ratios(row: Row, base: Row) -> Row:
    if "skipped" in row:
        return {}
    return {f"{name}_to_remnant": round(row[f"{name}_p50_ms"] / base[f"{name}_p50_ms"], 2) for name in GOALS}


def _line(row: Row) -> str:
    head = f"{row['size']:>7}  {row['provider']:<24}"
    if "skipped" in row:
        return f"{head}left out: {row['skipped']}"
    parts = [f"{name} {row[f'{name}_p50_ms']:9.3f} ms (x{row[f'{name}_to_remnant']:.1f})" for name in GOALS]
    missed = [name for name, goal in GOALS.items() if row[f"{name}_to_remnant"] < goal]
    verdict = f"  goal missed: {', '.join(missed)}" if row["provider"].startswith("mem0") and missed else ""
    return f"{head}{'  '.join(parts)}  right {row['right']:.2f}{verdict}"


if __name__ == "__main__":
    sys.exit(main())
