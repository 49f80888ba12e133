"""The figures of a trimming: for every k what is measured, what is bounded, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from remnant.errors import ConfigError
from remnant.speculative.stats import block_efficiency, mbsu
from remnant.speculative.vocab_checkpoint import Checkpoint
from remnant.speculative.vocab_choose import StepCost, geometric_grid
from remnant.speculative.vocab_counts import Tokens
from remnant.speculative.vocab_map import VocabMap
from remnant.speculative.vocab_measure import Measured
from remnant.speculative.vocab_mixture import Domain, keep_for
from remnant.speculative.vocab_report import CHART, REPORT
from remnant.speculative.vocab_settings import ASSUMED, Source, Trim
from remnant.speculative.vocab_write import final_map

__all__ = ["Work", "believe", "best_k", "grid_of", "report_of", "row_of"]


@dataclass
class Work:
    """What is known on the way, of texts, models and costs; scores are of the head's rows as it is.

    Args:
        checkpoint: the drafter.
        trim: how to trim.
        always: rows that are kept whatever their score.
        cost: bytes of a step.
        domains: the texts' scores, by which the final set is chosen.
        learned: the same without the held-out tokens, by which every set is chosen that a figure is given for.
        held: the held-out tokens.
        counts: of every text, all of it, by target id.
        held_counts: of the held-out tokens, by target id.
        whole: acceptance of the untrimmed drafter.
        known: where that comes from: `measured`, `given` or `assumed`.
        positions: that acceptance was measured at.
        measured: by k.
        steps: by k, how often the first draft, the first two, ... are accepted, where the drafter is fed by itself.
    """

    checkpoint: Checkpoint
    trim: Trim
    always: list[int]
    cost: StepCost
    domains: list[Domain]
    learned: list[Domain]
    held: list[Tokens]
    counts: list[Tensor]
    held_counts: Tensor
    whole: float = 0.0
    known: str = "assumed"
    positions: int = 0
    measured: dict[int, Measured] = field(default_factory=dict[int, Measured])
    steps: dict[int, list[float]] = field(default_factory=dict[int, list[float]])


def grid_of(work: Work) -> list[int]:
    """Values of k at which every floor can be held."""
    k, rows = work.trim.k, work.checkpoint.rows
    values = {*geometric_grid(rows, max(1, len(work.always))), *([k] if k is not None else [])}
    held: list[int] = []
    for value in sorted(values):
        try:
            keep_for(work.learned, value, work.always)
        except ConfigError:
            if value in (k, rows):  # not one of our proposals, so the user hears why
                raise
            continue
        held.append(value)
    return held


def believe(work: Work) -> None:
    """What the untrimmed drafter's acceptance is taken to be, where it was not measured."""
    if work.known != "measured":
        given = work.trim.acceptance
        work.whole, work.known = (ASSUMED, "assumed") if given is None else (given, "given")


def row_of(work: Work, k: int) -> dict[str, Any]:
    """Everything that is known or bounded for one k."""
    kept = keep_for(work.learned, k, work.always)
    coverage = [_share(work, kept, count) for count in work.counts]
    outside = 1 - min(1.0, _unseen(work, kept, coverage))
    measured = work.measured.get(k)
    bound = max(0.0, measured.bound) if measured else max(0.0, work.whole - outside)
    predicted = measured.acceptance if measured else bound
    steps, step = work.steps.get(k), work.cost.step(k)
    tokens = 1 + sum(steps) if steps else block_efficiency(min(1.0, max(0.0, predicted)), work.trim.num_draft)
    ratio = work.cost.ratio(k) if work.cost.target else None
    return {
        "k": k,
        "coverage": sum(coverage) / len(coverage),
        "coverage_held_out": _held_out(work, kept),
        "acceptance_bound": bound,
        "acceptance_measured": measured.acceptance if measured else None,
        "acceptance_steps": steps,
        "target_mass": measured.coverage if measured else None,
        "block_efficiency": tokens,
        "step_bytes": step,
        "cost": ratio,
        "mbsu": None if ratio is None else mbsu(tokens, ratio, work.trim.num_draft),
    }


def _share(work: Work, kept: VocabMap, counts: Tensor) -> float:
    final = final_map(work.checkpoint, kept)
    return float(final.coverage(counts.double())) / max(float(counts.sum()), 1.0)


def _unseen(work: Work, kept: VocabMap, coverage: Sequence[float]) -> float:
    """Coverage to believe in: of text that the set was not chosen by, where there is any."""
    held = _held_out(work, kept)
    return held if held is not None else sum(coverage) / len(coverage)


def _held_out(work: Work, kept: VocabMap) -> float | None:
    return _share(work, kept, work.held_counts) if int(work.held_counts.sum()) else None


def best_k(table: Sequence[Mapping[str, Any]]) -> int:
    """The k with the best speed-up, the smaller one of equals."""
    return max(table, key=lambda row: (row["mbsu"], -row["k"]))["k"]


def report_of(
    work: Work, kept: VocabMap, table: list[dict[str, Any]], out: Path, sources: Sequence[Source]
) -> dict[str, Any]:
    """The report: what was asked, what was kept, what it costs and gains, and the table."""
    checkpoint, trim, cost = work.checkpoint, work.trim, work.cost
    row: Mapping[str, Any] = next(row for row in table if row["k"] == kept.k)
    before: Mapping[str, Any] = next(row for row in table if row["k"] == checkpoint.rows)
    texts: list[dict[str, Any]] = [
        {"name": source.name, "tokens": int(count.sum()), "floor": source.floor, "coverage": _share(work, kept, count)}
        for source, count in zip(sources, work.counts, strict=True)
    ]
    saved = (checkpoint.rows - kept.k) * cost.row if not checkpoint.tied else -kept.k * cost.row
    acceptance = {
        "whole": work.whole,
        "whole_is": work.known,
        "bound": row["acceptance_bound"],
        "measured": row["acceptance_measured"],
        "steps": row["acceptance_steps"],
        "positions": work.positions,
        "temperature": trim.temperature,
    }
    return {
        "out": str(out),
        "kind": checkpoint.kind,
        "k": kept.k,
        "rows_before": checkpoint.rows,
        "vocab_size": checkpoint.vocab_size,
        "objective": trim.objective,
        "always": len(work.always),
        "tied": checkpoint.tied,
        "texts": texts,
        "coverage": sum(text["coverage"] for text in texts) / len(texts),
        "coverage_held_out": row["coverage_held_out"],
        "acceptance": acceptance,
        "step_bytes": {"before": before["step_bytes"], "after": row["step_bytes"]},
        "memory_saved_bytes": 0 if kept.k == checkpoint.rows else saved,
        "target_bytes": cost.target or None,
        "cost": {"before": before["cost"], "after": row["cost"]},
        "num_draft": trim.num_draft,
        "mbsu": {"before": before["mbsu"], "after": row["mbsu"]},
        "report": str(out / REPORT),
        "chart": str(out / CHART) if trim.chart else None,
        "metadata": {"k": kept.k, "objective": trim.objective, "texts": texts, "acceptance": acceptance},
        "table": table,
    }
