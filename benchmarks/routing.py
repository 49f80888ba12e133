"""Evidence recall, tokens and cost of every mode and of the router on LoCoMo, without a model.

    REMNANT_EVAL_DATA=DIR python benchmarks/run.py routing [--out FILE]

Each conversation is asked by itself, then all of them as one long history. What a mode puts into a prompt is put
together by `remnant.routing.assemble`, from what `Memory` finds by words: an answer needs its evidence in a prompt,
so `recall` is the fraction of a question's evidence turns that reach one, and `complete` the fraction of questions
with all of them. Questions without evidence (the adversarial ones) are left out. Tokens are four characters each,
money is at the prices below; `estimate` is the tokens that the router reckoned with over those really read. Nothing
is called, so how well a reader does with a prompt is not measured. Intervals are 95 %, from 2,000 bootstrap samples
of questions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import remnant
from remnant.index.words import terms
from remnant.memory import Memory, Record
from remnant.routing import (
    ContextRouter,
    Index,
    Mode,
    Model,
    Order,
    Request,
    RouteDecision,
    Settings,
    Unit,
    assemble,
    count_tokens,
    estimate,
)

ROOT = Path(__file__).parents[1]
MODEL = Model(1_000_000, price_in=0.3, price_cached_in=0.03, price_out=2.5)
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
TIMELY = ("temporal", "changing")
SAMPLES = 2000


@dataclass(frozen=True)
class Question:
    """What is asked, of which kind, and the ids of the turns that answer it."""

    text: str
    category: str
    evidence: frozenset[str]


@dataclass(frozen=True)
class Seen:
    """What one mode showed for one question.

    Args:
        category: of the question.
        recall: fraction of its evidence in the prompt.
        tokens: tokens of history read.
        foreseen: tokens that the router reckoned with.
        usd: cost of the answer, at the tokens really read.
        mode: of the prompt.
    """

    category: str
    recall: float
    tokens: int
    foreseen: float
    usd: float
    mode: str


def read(path: Path) -> list[tuple[list[Unit], list[Question]]]:
    """Turns and questions with evidence of each conversation; ids carry the conversation's number."""
    histories: list[tuple[list[Unit], list[Question]]] = []
    for number, sample in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        talk = sample["conversation"]
        names = sorted((k for k in talk if re.fullmatch(r"session_\d+", k)), key=lambda k: int(k[8:]))
        turns = [
            Unit(f"{number}/{turn['dia_id']}", f"{number}/{name}", f"{turn['speaker']}: {turn['text']}")
            for name in names
            for turn in talk[name]
        ]
        known = {turn.id for turn in turns}
        asked = [
            Question(
                q["question"], CATEGORIES[q["category"]], frozenset(f"{number}/{e}" for e in q["evidence"]) & known
            )
            for q in sample["qa"]
        ]
        histories.append((turns, [q for q in asked if q.evidence and q.category != "adversarial"]))
    return histories


def measure(units: Sequence[Unit], questions: Sequence[Question]) -> dict[str, list[Seen]]:
    """Every variant by name: the modes, two of them without what is done to their passages, and the router."""
    settings, router = Settings(), ContextRouter()
    tokens = sum(count_tokens(unit.text) for unit in units)
    sessions = len({unit.conversation for unit in units})
    rows: dict[str, list[Seen]] = defaultdict(list)
    with Memory.open(":memory:", scope="locomo", write="manual", secrets="keep") as memory:
        memory.add([Record(unit.text, id=unit.id) for unit in units])
        for question in questions:
            found = memory.store.words("locomo", terms(question.text), len(units))
            request = Request(question.text, sessions, tokens, MODEL, index=Index(True, len(units)))
            decision = router.decide(request)
            for name, taken, options in _variants(decision):
                shown = assemble(taken, units, lambda n, found=found: found[:n], settings, **options)
                rows[name].append(
                    _seen(question, taken.mode, {u.id for u in shown.units}, shown.tokens, request, taken)
                )
            rows["router"].append(rows[decision.mode.value][-1])
    return rows


def _variants(decision: RouteDecision) -> Iterator[tuple[str, RouteDecision, dict[str, Any]]]:
    """(name, the decision if it had been for that mode, options of `assemble`)."""
    for option in decision.considered:
        if option.mode is Mode.NONE:
            continue
        ranked = option.mode in (Mode.RAG, Mode.RECENT_PLUS_RAG) and decision.query_type not in TIMELY
        order = Order.RELEVANCE if ranked else Order.CHRONOLOGICAL
        taken = replace(decision, mode=option.mode, k=option.k, reorder=ranked, order=order)
        yield option.mode.value, taken, {}
        if option.mode is Mode.RAG:
            yield "rag, duplicates kept", taken, {"alike": None}
            yield "rag, weak passages dropped", taken, {"tau": 0.5}


def _seen(question: Question, mode: Mode, shown: set[str], read: int, request: Request, taken: RouteDecision) -> Seen:
    cost = estimate(mode, request, Settings(), taken.k)
    blocks = mode in (Mode.BLOCK_EXTRACT, Mode.RETRIEVE_THEN_BLOCK)
    other = 3 * 300 if blocks else request.query_tokens  # three blocks' extractions, or the question
    guess = cost.tokens_in - other
    usd = cost.usd + (read - guess) * MODEL.price_in / 1e6
    recall = len(question.evidence & shown) / len(question.evidence)
    return Seen(question.category, recall, read, guess, usd, mode.value)


def interval(values: Sequence[float], seed: int = 0) -> list[float]:
    """95 % of a mean, from bootstrap samples."""
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(SAMPLES))
    return [round(means[SAMPLES // 40], 3), round(means[-SAMPLES // 40], 3)]


def rows_of(history: str, sessions: int, found: dict[str, list[Seen]]) -> Iterator[dict[str, Any]]:
    """One row for each variant."""
    for name, seen in found.items():
        recalls = [one.recall for one in seen]
        by_kind: dict[str, list[float]] = defaultdict(list)
        taken: dict[str, int] = defaultdict(int)
        for one in seen:
            by_kind[one.category].append(one.recall)
            taken[one.mode] += 1
        yield {
            "benchmark": "routing",
            "history": history,
            "sessions": sessions,
            "mode": name,
            "questions": len(seen),
            "recall": round(_mean(recalls), 3),
            "interval": interval(recalls),
            "complete": round(_mean([float(recall == 1.0) for recall in recalls]), 3),
            "tokens": round(_mean([one.tokens for one in seen])),
            "usd": round(_mean([one.usd for one in seen]), 6),
            "estimate": round(sum(one.foreseen for one in seen) / sum(one.tokens for one in seen), 3),
            "by_category": {kind: round(_mean(values), 3) for kind, values in sorted(by_kind.items())},
            **({"taken": dict(taken)} if name == "router" else {}),
        }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(argv: list[str] | None = None) -> int:
    """Measure, write JSON lines and print a table; or say what is missing."""
    parser = argparse.ArgumentParser(prog="run.py routing", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "routing.jsonl")
    args = parser.parse_args(argv)
    root = os.environ.get("REMNANT_EVAL_DATA")
    if not root:
        print("set REMNANT_EVAL_DATA to the folder that holds locomo/; nothing was measured")
        return 0
    facts = _facts(sys.argv[1:] if argv is None else argv)
    histories = read(Path(root) / "locomo" / "locomo5.json")
    single: dict[str, list[Seen]] = defaultdict(list)
    for units, questions in histories:
        for name, seen in measure(units, questions).items():
            single[name] += seen
    units = [unit for some, _ in histories for unit in some]
    joined = measure(units, [question for _, asked in histories for question in asked])
    sessions = [len({unit.conversation for unit in some}) for some, _ in histories]
    rows = [*rows_of("one conversation", round(_mean(sessions)), single), *rows_of("all as one", sum(sessions), joined)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps({**row, **facts}) + "\n" for row in rows))
    show(rows)
    return 0


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    for history in dict.fromkeys(row["history"] for row in rows):
        some = [row for row in rows if row["history"] == history]
        print(f"\n{history}: {some[0]['sessions']} sessions, {some[0]['questions']} questions")
        print(f"{'mode':<30}{'recall':>8}{'95 %':>16}{'complete':>10}{'tokens':>9}{'USD':>10}{'estimate':>10}")
        for row in some:
            span = f"{row['interval'][0]:.3f}-{row['interval'][1]:.3f}"
            numbers = f"{row['complete']:>10.3f}{row['tokens']:>9}{row['usd']:>10.5f}{row['estimate']:>10.2f}"
            print(f"{row['mode']:<30}{row['recall']:>8.3f}{span:>16}{numbers}")


def _facts(arguments: list[str]) -> dict[str, Any]:
    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    measured = (
        "core/remnant/routing",
        "core/remnant/index/words.py",
        "core/remnant/memory/sqlite",
        "benchmarks/routing.py",
    )
    return {
        "prices": {name: value for name, value in asdict(MODEL).items() if name.startswith("price")},
        "command": " ".join(["python benchmarks/run.py routing", *arguments]),
        "git": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", *measured)),
        "remnant": remnant.__version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, shared",
    }


if __name__ == "__main__":
    sys.exit(main())
