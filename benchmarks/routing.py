"""Evidence recall, tokens and cost of every mode and of the router on LoCoMo, without a model.

    REMNANT_EVAL_DATA=DIR .venv/bin/python benchmarks/routing.py

Each conversation is asked by itself, then all of them as one long history. An answer needs its evidence in a prompt:
the recall is the fraction of evidence turns that reach one. Tokens are four characters each; nothing is called.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remnant.routing import ContextRouter, Index, Mode, Model, Request, RouteDecision, Settings, count_tokens, estimate

MODEL = Model(1_000_000, price_in=0.3, price_cached_in=0.03, price_out=2.5)
MODES = [mode for mode in Mode if mode is not Mode.NONE]
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Turn:
    """One turn: its id, its session, its text."""

    id: str
    session: int
    text: str


class Words:
    """BM25 over turns (k1 1.2, b 0.75)."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        """Index the turns."""
        counts = [Counter(_WORD.findall(turn.text.lower())) for turn in turns]
        lengths = [sum(c.values()) for c in counts]
        mean = sum(lengths) / len(lengths)
        self.postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for i, (words, length) in enumerate(zip(counts, lengths, strict=True)):
            for word, n in words.items():
                self.postings[word].append((i, n * 2.2 / (n + 1.2 * (0.25 + 0.75 * length / mean))))
        self.total = len(turns)

    def rank(self, query: str) -> list[int]:
        """Turns with a word of the query, best first; ties by position."""
        scores: dict[int, float] = defaultdict(float)
        for word in set(_WORD.findall(query.lower())):
            found = self.postings.get(word, [])
            weight = math.log(1 + (self.total - len(found) + 0.5) / (len(found) + 0.5))
            for i, part in found:
                scores[i] += weight * part
        return sorted(scores, key=lambda i: (-scores[i], i))


def read(path: Path) -> list[tuple[list[Turn], list[dict[str, Any]]]]:
    """Turns and questions with known evidence of each conversation; ids carry the conversation's number."""
    histories: list[tuple[list[Turn], list[dict[str, Any]]]] = []
    for number, sample in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        talk = sample["conversation"]
        names = sorted((k for k in talk if re.fullmatch(r"session_\d+", k)), key=lambda k: int(k[8:]))
        turns = [
            Turn(f"{number}/{t['dia_id']}", i, f"{t['speaker']}: {t['text']}")
            for i, name in enumerate(names)
            for t in talk[name]
        ]
        known = {turn.id for turn in turns}
        asked = [{**q, "evidence": {f"{number}/{e}" for e in q["evidence"]} & known} for q in sample["qa"]]
        histories.append((turns, [q for q in asked if q["evidence"]]))
    return histories


def join(histories: Sequence[tuple[list[Turn], list[dict[str, Any]]]]) -> tuple[list[Turn], list[dict[str, Any]]]:
    """All conversations as one history."""
    turns: list[Turn] = []
    for some, _ in histories:
        start = turns[-1].session + 1 if turns else 0
        turns += [Turn(turn.id, turn.session + start, turn.text) for turn in some]
    return turns, [question for _, asked in histories for question in asked]


def shown(mode: Mode, k: int, turns: Sequence[Turn], ranked: Sequence[int]) -> list[Turn]:
    """The turns that reach a prompt."""
    settings, last = Settings(), turns[-1].session
    if mode in (Mode.FULL, Mode.BLOCK_EXTRACT):
        return list(turns)
    if mode is Mode.RETRIEVE_THEN_BLOCK:
        sessions = list(dict.fromkeys(turns[i].session for i in ranked))[: settings.conversations]
        return [turn for turn in turns if turn.session in set(sessions)]
    recent = (
        {turn.id for turn in turns if turn.session > last - settings.recent} if mode is not Mode.RAG else set[str]()
    )
    best = {turns[i].id for i in [i for i in ranked if turns[i].id not in recent][:k]}
    return [turn for turn in turns if turn.id in recent | best]


def measure(turns: list[Turn], questions: list[dict[str, Any]]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Mode -> (recall, tokens of history read, estimated share of them, USD) per question; `router` picks its own."""
    words, router, tokens = Words(turns), ContextRouter(), sum(count_tokens(turn.text) for turn in turns)
    rows: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for question in questions:
        ranked = words.rank(question["question"])
        request = Request(question["question"], turns[-1].session + 1, tokens, MODEL, index=Index(True, len(turns)))
        decision = router.decide(request)
        for mode in MODES:
            rows[mode.value].append(_row(request, mode, turns, ranked, question["evidence"], decision))
        rows["router"].append(rows[decision.mode.value][-1])
        rows[f"router takes {decision.mode.value}"].append(rows["router"][-1])
    return rows


def _row(
    request: Request, mode: Mode, turns: list[Turn], ranked: list[int], evidence: set[str], decision: RouteDecision
) -> tuple[float, float, float, float]:
    k = next(option.k for option in decision.considered if option.mode is mode)
    seen = shown(mode, k, turns, ranked)
    cost = estimate(mode, request, Settings(), k)
    read = sum(count_tokens(turn.text) for turn in seen)
    blocks = mode in (Mode.BLOCK_EXTRACT, Mode.RETRIEVE_THEN_BLOCK)
    guess = cost.tokens_in - (3 * 300 if blocks else request.query_tokens)  # three blocks' extractions, or the question
    usd = cost.usd + (read - guess) * MODEL.price_in / 1e6
    return len(evidence & {turn.id for turn in seen}) / len(evidence), read, guess / max(1, read), usd


def show(title: str, rows: dict[str, list[tuple[float, float, float, float]]]) -> None:
    """Print one table."""
    print(f"\n{title}\n{'mode':<32}{'n':>6}{'recall':>9}{'tokens':>10}{'USD':>10}{'estimated/read':>16}")
    for name in sorted(rows):
        recall, read, guess, usd = (sum(column) / len(rows[name]) for column in zip(*rows[name], strict=True))
        print(f"{name:<32}{len(rows[name]):>6}{recall:>9.3f}{read:>10.0f}{usd:>10.5f}{guess:>16.2f}")


def main() -> int:
    """Measure, or say what is missing."""
    root = os.environ.get("REMNANT_EVAL_DATA")
    if not root:
        print("set REMNANT_EVAL_DATA to the folder that holds locomo/; nothing was measured")
        return 0
    histories = read(Path(root) / "locomo" / "locomo5.json")
    single: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for turns, questions in histories:
        for name, found in measure(turns, questions).items():
            single[name] += found
    show("each conversation by itself", single)
    turns, questions = join(histories)
    show(f"all as one history of {turns[-1].session + 1} sessions", measure(turns, questions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
