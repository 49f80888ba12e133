"""What the benchmarks of agent memory share: texts, vectors, times and the facts of a run."""

from __future__ import annotations

import itertools
import json
import os
import platform
import random
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import remnant

ROOT = Path(__file__).parents[1]
DIM, VOCABULARY = 384, 20_000


class Zipf:
    """Texts of words `w0x`, `w1x`, ... by Zipf's law, with a seed.

    Args:
        seed: the same seed, the same texts.
    """

    def __init__(self, seed: int) -> None:
        """See the class."""
        self._rng = random.Random(seed)
        self._weights = list(itertools.accumulate(1 / (i + 1) for i in range(VOCABULARY)))
        self._known = [f"w{i}x" for i in range(VOCABULARY)]

    def text(self, length: int) -> str:
        """So many words."""
        return " ".join(self._rng.choices(self._known, cum_weights=self._weights, k=length))


class TableEmbedder:
    """Random unit vectors that are looked up, so that embedding costs nobody anything.

    Args:
        texts: each gets a vector of its own.
        questions: question -> the text whose vector it gets, with some noise.
        seed: of the vectors.
        lists: give lists of floats instead of rows of an array, as most embedders do.
    """

    model_id, dim = f"table-{DIM}", DIM

    def __init__(self, texts: Sequence[str], questions: dict[str, str], seed: int = 0, lists: bool = False) -> None:
        """See the class."""
        rng = np.random.default_rng(seed)
        rows = _unit(rng.standard_normal((len(texts), DIM), dtype=np.float32))
        place = {text: row for row, text in enumerate(texts)}
        noisy = rows[[place[text] for text in questions.values()]] if questions else rows[:0]
        asked = _unit(noisy + 0.04 * rng.standard_normal(noisy.shape, dtype=np.float32))
        self._place = {**place, **{question: len(rows) + i for i, question in enumerate(questions)}}
        self.rows: Any = np.concatenate((rows, asked))
        self._lists = lists

    def row(self, text: str) -> Any:
        """The vector of a text or a question, `[dim]` float32."""
        return self.rows[self._place[text]]

    def embed(self, texts: Sequence[str], *, kind: Any = "document") -> list[Any]:
        """As Remnant asks."""
        return [self.row(text).tolist() if self._lists else self.row(text) for text in texts]

    async def aembed(self, texts: Sequence[str], *, kind: Any = "document") -> list[Any]:
        """As Remnant asks."""
        return self.embed(texts)


def _unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def real_texts(data: Path, count: int) -> tuple[list[str], list[str]]:
    """(texts, questions) of LoCoMo's turns, MuSiQue's and HotpotQA's paragraphs and MemoryBank's turns.

    Args:
        data: the folder of the evaluation data.
        count: texts; repeated, each time with a word of its own, until there are enough.
    """
    texts: list[str] = []
    questions: list[str] = []
    for talk in _json(data / "locomo" / "locomo5.json"):
        held = talk["conversation"]
        for name in sorted(name for name in held if re.fullmatch(r"session_\d+", name)):
            texts += [f"{held.get(f'{name}_date_time', '')} | {turn['speaker']}: {turn['text']}" for turn in held[name]]
        questions += [item["question"] for item in talk["qa"]]
    folder = data / "musique-hotpotqa"
    texts += [f"{item['title']}\n{item['text']}" for item in _json(folder / "musique_train_100_corpus.json")]
    texts += [f"{title}\n{''.join(said)}" for title, said in _json(folder / "hotpotqa_train_100_corpus.json").items()]
    for name in ("musique_train_100.json", "hotpotqa_train_100.json"):
        questions += [item["question"] for item in _json(folder / name)]
    for user in _json(data / "memorybank" / "memory_bank_en.json").values():
        texts += [turn[side] for day in user["history"].values() for turn in day for side in ("query", "response")]
    random.Random(0).shuffle(questions)
    return [f"{texts[i % len(texts)]} copy{i}" for i in range(count)], questions


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    """(ms on the wall, result)."""
    begin = time.perf_counter()
    result = act()
    return 1000 * (time.perf_counter() - begin), result


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies, rounded to microseconds."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)


def facts(name: str, arguments: Sequence[str], *paths: str) -> dict[str, Any]:
    """What a row says about its run; `dirty` tells whether these paths differ from the commit."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    watched = ("core/remnant/index", "core/remnant/memory", *paths)
    return {
        "command": " ".join([f"python benchmarks/run.py {name}", *arguments]),
        "git": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", *watched)),
        "remnant": remnant.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "sqlite": sqlite3.sqlite_version,
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, shared",
    }


def load() -> float:
    """Processes that wanted a processor in the last minute, as `uptime` says."""
    return round(os.getloadavg()[0], 1)


def write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON line per row."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
