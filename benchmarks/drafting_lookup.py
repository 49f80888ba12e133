"""How much of known continuations `lookup` foretells, and in what time, against vLLM's ngram and HF's prompt lookup.

    python benchmarks/drafting_lookup.py [--count N] [--drafts N ...] [--rows N ...] [--rounds N] [--out FILE]

A replay on the CPU: no model runs. A transcript is taken for what a greedy target emits; each pass accepts the part of
the draft that agrees with it and adds one token. Tokens per pass and per draft are those that the target would see;
times are those of the proposers alone, per row and pass, all proposers in turns over the same transcripts. Needs vllm.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from drafting_proposers import PROPOSERS, SINGLE, Proposer
from drafting_texts import ROOT, Transcript, digest, workloads

PARTS = (
    "benchmarks/drafting_lookup.py", "benchmarks/drafting_proposers.py", "benchmarks/drafting_texts.py",
    "core/remnant/speculative/suffix.py", "core/remnant/speculative/match.py",
    "core/remnant/speculative/output_store.py", "core/remnant/speculative/drafters/lookup.py",
    "plugins/langchain_ext", "plugins/llamaindex_ext", "plugins/vllm_ext/remnant_vllm/drafter.py",
    "plugins/vllm_ext/remnant_vllm/histories.py",
)  # fmt: skip
"""What the figures depend on."""
SCALED = ("lookup", "lookup in vllm", "vllm ngram 2-4")
CONTEXTS = (1_000, 4_000, 16_000, 64_000)
SCALE_STEPS = 300


@dataclass
class Counts:
    """Of one proposer over one workload.

    Attributes:
        us: microseconds per row of every pass but a row's first.
        cpu_us: the same of the processor, of this thread.
        first_ms: milliseconds per row of starting and of the first pass: indexing the prompt is in them.
    """

    passes: int = 0
    drafts: int = 0
    proposed: int = 0
    accepted: int = 0
    emitted: int = 0
    us: list[float] = field(default_factory=list[float])
    cpu_us: list[float] = field(default_factory=list[float])
    first_ms: list[float] = field(default_factory=list[float])

    def told(self) -> dict[str, Any]:
        """The figures."""
        whole = sum(self.us) / len(self.us) * self.passes + 1000 * sum(self.first_ms)
        return {
            "passes": self.passes, "drafts": self.drafts, "proposed": self.proposed, "accepted": self.accepted,
            "accepted_per_draft": round(self.accepted / max(1, self.drafts), 3),
            "accepted_per_token": round(self.accepted / max(1, self.proposed), 3),
            "block_efficiency": round(self.emitted / self.passes, 3),
            **_times(self.us), "cpu_us_mean": round(statistics.fmean(self.cpu_us), 2),
            "first_ms_p50": round(statistics.median(self.first_ms), 3),
            "us_mean_with_first": round(whole / self.passes, 2),
        }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Measure, write JSON lines and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=16, help="transcripts of each kind")
    parser.add_argument("--drafts", type=int, nargs="+", default=[4, 8], help="tokens per draft")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16], help="rows of a batch")
    parser.add_argument("--rounds", type=int, default=3, help="times over, proposers in turns")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "drafting-lookup.jsonl")
    args = parser.parse_args(argv)
    gc.freeze()  # what is loaded by now is not looked through again while proposers are timed
    facts, lines = _facts(sys.argv[1:] if argv is None else argv), list[str]()
    for line in (*_replays(args), *_scaling(args)):
        lines.append(json.dumps({"benchmark": "drafting_lookup", **line, "seed": args.seed, **facts}))
        print(_shown(line), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(line + "\n" for line in lines))
    return 0


def _replays(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name, transcripts in workloads(args.count, args.seed).items():
        for rows in args.rows:
            for num_draft in args.drafts:
                counted = _compare(transcripts, num_draft, rows, args.rounds)
                for proposer, counts in counted.items():
                    yield {
                        "kind": "replay", "workload": name, "proposer": proposer, "num_draft": num_draft, "rows": rows,
                        "transcripts": len(transcripts), "digest": digest(transcripts), **counts.told(),
                        "load": round(os.getloadavg()[0], 1),
                    }  # fmt: skip


def _compare(transcripts: list[Transcript], num_draft: int, rows: int, rounds: int) -> dict[str, Counts]:
    """Every proposer over the same batches, in turns, another one first in every round."""
    proposers = {name: make for name, make in PROPOSERS.items() if rows == 1 or name not in SINGLE}
    counted = {name: Counts() for name in proposers}
    most = max(len(t.prompt) + len(t.answer) for t in transcripts) + num_draft + 1
    batches = [transcripts[at : at + rows] for at in range(0, len(transcripts), rows)]
    for turn in range(rounds):
        made = {name: make(num_draft, rows, most) for name, make in proposers.items()}
        order = [*made][turn % len(made) :] + [*made][: turn % len(made)]
        for batch in batches:
            for name in order:
                _replay(made[name], batch, num_draft, most, counted[name])
    return counted


def _replay(proposer: Proposer, batch: list[Transcript], num_draft: int, most: int, counts: Counts) -> None:
    """One batch from its prompts to its ends."""
    texts, lengths = np.zeros((len(batch), most), np.int32), np.zeros(len(batch), np.int32)
    for row, one in enumerate(batch):
        texts[row, : len(one.prompt)] = one.prompt
        lengths[row] = len(one.prompt)
    start = time.perf_counter()
    proposer.start([texts[row, :length] for row, length in enumerate(lengths)], [one.tenant for one in batch])
    started, first = time.perf_counter() - start, True
    new = [one.answer[:1] for one in batch]
    while any(new):
        for row, tokens in enumerate(new):
            texts[row, lengths[row] : lengths[row] + len(tokens)] = tokens
            lengths[row] += len(tokens)
        live = sum(map(bool, new))
        begin, cpu = time.perf_counter(), time.thread_time()
        drafts = proposer.step(new, lengths, texts)
        took, cpu = time.perf_counter() - begin, time.thread_time() - cpu
        if first:
            counts.first_ms += [1000 * (started + took) / live] * live
        else:
            counts.us.append(1e6 * took / live)
            counts.cpu_us.append(1e6 * cpu / live)
        first = False
        new = [_verify(one, int(lengths[row]), drafts[row], counts) if new[row] else []
               for row, one in enumerate(batch)]  # fmt: skip
    proposer.finish()


def _verify(one: Transcript, length: int, draft: list[int], counts: Counts) -> list[int]:
    """What a pass emits: the part of the draft that is right, and one token more; none at the end."""
    done = length - len(one.prompt)
    rest = one.answer[done:]
    if not rest:
        return []
    draft = draft[: len(rest) - 1]
    pairs = zip(draft, rest, strict=False)
    right = next((i for i, (guess, token) in enumerate(pairs) if guess != token), len(draft))
    counts.passes += 1
    counts.drafts += bool(draft)
    counts.proposed += len(draft)
    counts.accepted += right
    counts.emitted += right + 1
    return rest[: right + 1]


def _scaling(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Time per proposal by the length of the text, one new token a step, tokens drawn as words are."""
    rng = random.Random(args.seed)
    weights = list(accumulate(1 / (i + 1) for i in range(30_000)))
    for context in CONTEXTS:
        text = rng.choices(range(30_000), cum_weights=weights, k=context + SCALE_STEPS)
        one = Transcript(text[:context], text[context:])
        counted = {name: Counts() for name in SCALED}
        for _ in range(args.rounds):
            for name in SCALED:
                most = len(text) + 8
                _replay(_Silent(PROPOSERS[name](4, 1, most)), [one], 4, most, counted[name])
        for name, counts in counted.items():
            yield {
                "kind": "scaling", "workload": "zipf", "context": context, "proposer": name, "num_draft": 4, "rows": 1,
                **_times(counts.us), "first_ms_p50": round(statistics.median(counts.first_ms), 3),
                "load": round(os.getloadavg()[0], 1),
            }  # fmt: skip


class _Silent:
    """A proposer whose drafts are computed and thrown away, so that every step adds exactly one token."""

    def __init__(self, inner: Proposer) -> None:
        self.start, self.finish, self._step = inner.start, inner.finish, inner.step

    def step(self, new: list[list[int]], lengths: np.ndarray, texts: np.ndarray) -> list[list[int]]:
        """No drafts."""
        return [[] for _ in self._step(new, lengths, texts)]


def _times(us: list[float]) -> dict[str, float]:
    ordered = sorted(us)
    return {
        "us_p50": round(ordered[len(ordered) // 2], 2), "us_p95": round(ordered[len(ordered) * 95 // 100], 2),
        "us_mean": round(statistics.fmean(ordered), 2),
    }  # fmt: skip


def _shown(line: dict[str, Any]) -> str:
    where = f"{line['workload']:<10} rows {line['rows']:<3} draft {line['num_draft']}  {line['proposer']:<20}"
    times = f"us p50 {line['us_p50']:>7} p95 {line['us_p95']:>8} first ms {line['first_ms_p50']:>7}"
    if line["kind"] == "scaling":
        return f"{where} context {line['context']:>6}  {times}"
    figures = f"a/draft {line['accepted_per_draft']:<6} a/token {line['accepted_per_token']:<6}"
    return f"{where} {figures} per pass {line['block_efficiency']:<6} {times}"


def _facts(argv: list[str]) -> dict[str, Any]:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    packages = ("remnant", "vllm", "transformers", "numba", "numpy", "torch")
    versions = {name: import_module(name).__version__ for name in packages}
    return {
        "command": " ".join(["python benchmarks/drafting_lookup.py", *argv]), "note": "replay of transcripts, CPU only",
        "versions": {"python": platform.python_version(), **versions},
        "sha": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", *PARTS)),
        "device": "cpu", "machine": platform.machine(), "cpus": os.cpu_count(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
