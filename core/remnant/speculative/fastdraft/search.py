"""Which shape: every one that fits the budget is timed or predicted, the best few are tried, the fastest wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from remnant.progress import Progress, silent
from remnant.speculative.fastdraft.evaluate import time_step
from remnant.speculative.fastdraft.shape import Shape, draft_config, new_draft
from remnant.speculative.stats import block_efficiency, speedup

__all__ = ["Row", "Timing", "choose", "fit_times", "measure_verify", "search"]

_TIMED = 8  # shapes that are really timed; the others follow from them


@dataclass(frozen=True)
class Timing:
    """What a block costs on this machine, in seconds.

    Args:
        target: one plain step of the target.
        verify: its pass over a block.
    """

    target: float
    verify: float


@dataclass(frozen=True)
class Row:
    """One shape of the search.

    Args:
        shape: sizes.
        parameters: in all.
        predicted: seconds of a draft step, from the fit.
        measured: seconds of a draft step, timed; None where it was only predicted.
        acceptance: expected acceptance after a short training; None where it was not tried.
        speedup: over plain decoding, from these; None without an acceptance.
    """

    shape: Shape
    parameters: int
    predicted: float
    measured: float | None = None
    acceptance: float | None = None
    speedup: float | None = None

    @property
    def seconds(self) -> float:
        """Of a draft step: measured if it was, else predicted."""
        return self.predicted if self.measured is None else self.measured

    def to_dict(self) -> dict[str, Any]:
        """The row as data."""
        return {
            "shape": self.shape.to_dict(),
            "parameters": self.parameters,
            "draft_step_predicted": self.predicted,
            "draft_step_measured": self.measured,
            "acceptance": self.acceptance,
            "speedup": self.speedup,
        }


def measure_verify(target: Any, num_draft: int) -> Timing:
    """The target's step and its verifying pass, timed."""
    return Timing(time_step(target, 1), time_step(target, num_draft + 1))


def fit_times(shapes: Sequence[Shape], vocab: int, seconds: Sequence[float]) -> Callable[[Shape], float]:
    """Predict a draft step: something fixed, something per layer, something per parameter, none of them negative.

    Args:
        shapes: those that were timed, at least one.
        vocab: rows of the embedding.
        seconds: their times.
    """
    # Errors count as fractions: else the slowest shape alone would decide.
    rows = np.array([[1.0, s.depth, s.parameters(vocab)] for s in shapes]) / np.array(seconds)[:, None]
    scale = rows.max(0)
    wanted = np.ones(len(shapes))
    active = [0, 1, 2]
    while True:  # leave out what would be negative, and fit again
        found = cast(Any, np.linalg.lstsq)(rows[:, active] / scale[active], wanted, rcond=None)[0]
        if (found >= 0).all():
            break
        active.pop(int(found.argmin()))
    weights = np.zeros(3)
    weights[active] = found / scale[active]
    return lambda s: float(weights @ np.array([1.0, s.depth, s.parameters(vocab)]))


def choose(rows: Sequence[Row]) -> Row:
    """The best row: the highest speed-up where shapes were tried, else the fastest step, and of equals the widest."""
    tried = [row for row in rows if row.speedup is not None]
    if tried:
        return max(tried, key=lambda r: (r.speedup or 0.0, r.shape.width))
    return min(rows, key=lambda r: (r.seconds, -r.shape.width))


def search(
    shapes: Sequence[Shape],
    config: Any,
    timing: Timing,
    num_draft: int,
    device: str,
    pilot: Callable[[Shape], float] | None = None,
    pilots: int = 3,
    progress: Progress = silent,
) -> list[Row]:
    """Time and predict shapes, try the best ones.

    Args:
        shapes: candidates, the widest first.
        config: the target's.
        timing: of the target.
        num_draft: tokens per block.
        device: where drafts will run.
        pilot: trains a shape a little and returns its expected acceptance, a fraction of 1; None tries none.
        pilots: shapes to try: the fastest per width, wide ones first.
        progress: called after every shape.

    Returns:
        A row per shape, best first by `choose`.

    Source: FastDraft (Zafrir et al. 2024, arXiv 2411.11055): latency grows with depth, so wide and shallow is
        preferred. Differs: steps are timed on the machine at hand, and the preference is what a short training and
        these times say.
    """
    vocab = int(config.vocab_size)
    many = min(_TIMED, len(shapes))
    places = sorted({round(i * (len(shapes) - 1) / max(1, many - 1)) for i in range(many)})
    timed: dict[Shape, float] = {}
    total = len(places) + (pilots if pilot else 0)
    for i in places:
        timed[shapes[i]] = _time(config, shapes[i], device)
        progress(len(timed), total, f"timing {shapes[i].width} x {shapes[i].depth}")
    predict = fit_times(list(timed), vocab, list(timed.values()))
    rows = [Row(s, s.parameters(vocab), predict(s), timed.get(s)) for s in shapes]
    if pilot is not None:
        for turn, at in enumerate(_worth_trying(rows, pilots)):
            row = rows[at]
            seconds = row.measured or _time(config, row.shape, device)
            alpha = pilot(row.shape)
            gain = speedup(block_efficiency(alpha, num_draft), timing.target, seconds, timing.verify, 0.0, num_draft)
            rows[at] = replace(row, measured=seconds, acceptance=alpha, speedup=gain)
            progress(len(timed) + turn + 1, total, f"trying {row.shape.width} x {row.shape.depth}")
    best = choose(rows)
    return [best, *(row for row in rows if row is not best)]


def _time(config: Any, shape: Shape, device: str) -> float:
    model = new_draft(draft_config(config, shape), 0).to(device).eval()
    return time_step(model)


def _worth_trying(rows: Sequence[Row], n: int) -> list[int]:
    """Places of the shapes to try: the shallowest of every width, wide first, then the next deeper of each."""
    by_width: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_width.setdefault(row.shape.width, []).append(i)
    turns = max(map(len, by_width.values()))
    order = [places[turn] for turn in range(turns) for places in by_width.values() if turn < len(places)]
    return order[:n]
