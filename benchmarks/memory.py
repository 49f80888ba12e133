"""Adding to agent memory and recalling from it, at several sizes, in a real file.

    python benchmarks/run.py memory [--sizes N ...] [--modes words text vectors indexes] [--queries N] [--out FILE]

`words`: texts of 30 words and questions of 8, drawn from a Zipf distribution over 20,000 words, with a seed. `text`:
LoCoMo's turns, MuSiQue's and HotpotQA's paragraphs and MemoryBank's turns with their questions (`REMNANT_EVAL_DATA`;
left out when unset), repeated with a word of their own until there are enough. In both, `agree` is the share of the
ten best of FTS5's own ranking of all documents that the word search gives too. `vectors`: words and random vectors
of 384 numbers; a bare numpy scan (`matrix @ vector`, `argpartition`) runs in turns with the index and with the whole
recall. `indexes`: recall@10 of the approximate indexes against the exact one, and their times, on vectors around 500
centres. Times are wall clock, in ms.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import memory_lib as lib
import numpy as np

from remnant.index import AnnIndex, DenseScan, LshIndex, match_expression, terms
from remnant.memory import Memory

BATCH, CHECKED, WARM, SINGLE = 1000, 30, 10, 50
MODES = ("words", "text", "vectors", "indexes")
Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Measure, write JSON lines and print them."""
    parser = argparse.ArgumentParser(prog="run.py memory", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="texts in memory")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=lib.ROOT / "benchmarks" / "results" / "memory.jsonl")
    args = parser.parse_args(argv)
    arguments = sys.argv[1:] if argv is None else argv
    about = lib.facts("memory", arguments, "benchmarks/memory.py", "benchmarks/memory_lib.py")
    rows: list[Row] = []
    for size, mode in itertools.product(args.sizes, args.modes):
        data = os.environ.get("REMNANT_EVAL_DATA", "")
        if mode == "text" and not data:
            print("text is left out: REMNANT_EVAL_DATA names no folder", file=sys.stderr)
            continue
        measured = _indexes(size, args.queries, args.seed) if mode == "indexes" else _memory(size, mode, args, data)
        for row in measured:
            rows.append({"benchmark": "memory", "size": size, "mode": mode, "seed": args.seed, **row, **about})
            print(json.dumps(rows[-1]), flush=True)
            lib.write(args.out, rows)
    return 0


def _memory(size: int, mode: str, args: Any, data: str) -> list[Row]:
    count = args.queries + WARM
    if mode == "text":
        texts, questions = lib.real_texts(Path(data), size + SINGLE)
        asked = list(itertools.islice(itertools.cycle(questions), count))
    else:
        zipf = lib.Zipf(args.seed)
        texts = [f"{zipf.text(30)} n{i}" for i in range(size + SINGLE)]
        asked = [f"{zipf.text(8)} q{i}" for i in range(count)]
    near = {question: texts[i * size // count] for i, question in enumerate(dict.fromkeys(asked))}
    embedder = lib.TableEmbedder(texts, near, args.seed) if mode == "vectors" else None
    with (
        tempfile.TemporaryDirectory() as folder,
        Memory.open(Path(folder) / "m.db", scope="a", embedder=embedder, write="manual", strict=True) as memory,
    ):
        batches = [texts[start : start + BATCH] for start in range(0, size, BATCH)]
        added = [lib.timed(lambda batch=batch: memory.add(batch))[0] for batch in batches]
        row = {"queries": args.queries, "add_ms_each": round(sum(added) / size, 3), **_recalled(memory, asked)}
        row |= _words(memory, asked) if embedder is None else _scanned(memory, embedder, texts[:size], asked)
        single = [lib.timed(lambda text=text: memory.add(text))[0] for text in texts[size:]]
    return [{**row, **_spread("add_one", single), "load": lib.load()}]


def _recalled(memory: Memory, asked: Sequence[str]) -> Row:
    times = [lib.timed(lambda question=question: memory.recall(question, k=10))[0] for question in asked]
    return {"first_recall_ms": round(times[0], 2), **_spread("recall", times[WARM:])}


def _words(memory: Memory, asked: Sequence[str]) -> Row:
    """The word search alone, its words in memory by now; and how far it agrees with FTS5."""
    held = [terms(question) for question in asked]
    times = [lib.timed(lambda words=words: memory.store.words("a", words, 200))[0] for words in held]
    sql = """SELECT r.id, -bm25(word_index, 0.0, 1.0) FROM word_index JOIN records r ON r.number = word_index.rowid
             WHERE word_index MATCH ? ORDER BY 2 DESC LIMIT 10"""
    agreed, whole, fts5 = 0, 0, list[float]()
    for words in held[:CHECKED]:
        with memory.store._files.read() as c:  # type: ignore[attr-defined]
            match = f"words : ({match_expression(words)})"
            took, best = lib.timed(lambda c=c, match=match: dict(c.execute(sql, (match,)).fetchall()))
        fts5.append(took)
        last = min(best.values(), default=0.0)  # whoever ties with the tenth is as good
        agreed += sum(score >= last - 1e-9 for _, score in memory.store.words("a", words, 10))
        whole += len(best)
    return {**_spread("words", times[WARM:]), "agree": round(agreed / max(1, whole), 4), **_spread("fts5", fts5)}


def _scanned(memory: Memory, embedder: lib.TableEmbedder, texts: Sequence[str], asked: Sequence[str]) -> Row:
    """The index and the whole recall in turns with a bare scan of the same vectors."""
    matrix = np.ascontiguousarray(embedder.rows[: len(texts)])
    context, found = memory.context, 0
    times: dict[str, list[float]] = {"scan": [], "index": [], "recall": []}
    for question in asked:
        vector = np.ascontiguousarray(embedder.row(question))
        took, best = lib.timed(lambda vector=vector: _bare(matrix, vector))
        times["scan"].append(took)
        blob = vector.astype("<f4").tobytes()
        took, hit = lib.timed(lambda blob=blob: context.scans.search(context, blob, 10, ()))
        times["index"].append(took)
        times["recall"].append(lib.timed(lambda question=question: memory.recall(question, k=10))[0])
        assert hit is not None
        held = memory.store.get("a", list(hit.best))
        found += {record.content for record in held.values()} == {texts[row] for row in best}
    row: Row = {f"{name}_ms": lib.quantile(values[WARM:], 0.5) for name, values in times.items() if name != "recall"}
    row["same_as_scan"] = round(found / len(asked), 3)
    for name in ("index", "recall"):
        ratios = [a / b for a, b in zip(times[name][WARM:], times["scan"][WARM:], strict=True)]
        row[f"{name}_to_scan"] = round(statistics.median(ratios), 2)
    return row


def _bare(matrix: Any, vector: Any) -> list[int]:
    scores = matrix @ vector
    return np.argpartition(-scores, 10)[:10].tolist()


def _indexes(size: int, queries: int, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((500, lib.DIM), dtype=np.float32)
    spread = rng.standard_normal((size + queries, lib.DIM), dtype=np.float32)
    vectors = centres[rng.integers(0, 500, size + queries)] + 0.7 * spread
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    blobs = [row.tobytes() for row in vectors.astype("<f4")]
    rows = [(str(i), blob) for i, blob in enumerate(blobs[:size])]
    made: dict[str, Any] = {"exact": DenseScan(lib.DIM), "lsh": LshIndex(lib.DIM), "ann": AnnIndex(lib.DIM)}
    built = {name: lib.timed(lambda index=index: _built(index, rows))[0] for name, index in made.items()}
    times: dict[str, list[float]] = {name: [] for name in made}
    kept: dict[str, list[float]] = {name: [] for name in made}
    seen: dict[str, list[int]] = {name: [] for name in made}
    exact: Any = {}
    for query in blobs[size:]:
        for name, index in made.items():
            took, found = lib.timed(lambda index=index, query=query: index.search(query, 10))
            times[name].append(took)
            seen[name].append(found.seen)
            exact = found.best if name == "exact" else exact
            kept[name].append(len(found.best.keys() & exact.keys()) / 10)
    return [
        {
            "index": name, "queries": queries, "recall_at_10": round(statistics.mean(kept[name]), 3),
            "seen_share": round(statistics.mean(seen[name]) / size, 4), **_spread("search", times[name]),
            "build_s": round(built[name] / 1000, 2), "mib": round(index.nbytes / 2**20, 1), "load": lib.load(),
        }
        for name, index in made.items()
    ]  # fmt: skip


def _built(index: Any, rows: Sequence[tuple[str, bytes]]) -> None:
    index.load(rows)
    if isinstance(index, AnnIndex):
        index.wait()


def _spread(name: str, times: Sequence[float]) -> Row:
    return {f"{name}_p50_ms": lib.quantile(times, 0.5), f"{name}_p95_ms": lib.quantile(times, 0.95)}


if __name__ == "__main__":
    sys.exit(main())
