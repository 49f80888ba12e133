"""What a budget buys, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remnant.errors import ConfigError
from remnant.kinetics.choose import Option, efficient, frontier
from remnant.lazy import needs

__all__ = ["draw"]

_PARTS = ("linear", "attention", "search", "kv_bytes", "search_bytes", "weight_bytes")
_NAMES = ("parameters", "attention", "search", "KV reads", "summary reads", "weight reads")


def draw(bought: Sequence[Option], priced: Sequence[Option], budget: float, path: Path) -> None:
    """Draw how many answers each length leaves, and beside it accuracy against cost or, without any, what costs.

    Args:
        bought: options at the limit of the budget.
        priced: measured options; may be empty.
        budget: eFLOPs.
        path: of the PNG.

    Raises:
        ConfigError: another kind of file.
        MissingExtra: matplotlib is not installed.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"chart {str(path)!r}", accepted="a path that ends in .png")
    with needs("plot", wanted_by="remnant kinetics --chart"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure: Any = Figure(figsize=(12, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _bought(left, bought, budget)
    if priced:
        _priced(right, priced, budget)
    else:
        _parts(right, bought)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(str(path), dpi=110)


def _lines(options: Sequence[Option]) -> dict[str, list[Option]]:
    lines: dict[str, list[Option]] = {}
    for one in options:
        lines.setdefault(f"{one.model}, {one.policy}", []).append(one)
    return lines


def _bought(axes: Any, options: Sequence[Option], budget: float) -> None:
    for label, line in _lines(options).items():
        spent = [one for one in line if one.limited == "budget"] or line  # others leave a part of the budget
        points = sorted({(one.y, one.N) for one, ahead in zip(spent, frontier(spent), strict=True) if ahead})
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("tokens per answer")
    axes.set_ylabel("answers")
    axes.set_title(f"bought with {budget:.3g} eFLOPs", fontsize=10)
    _finish(axes, bool(options))


def _priced(axes: Any, options: Sequence[Option], budget: float) -> None:
    for label, line in _lines(options).items():
        axes.scatter([one.cost.eflops for one in line], [one.accuracy for one in line], s=18, label=label)
    ahead = [one for one, leads in zip(options, efficient(options), strict=True) if leads]
    points = sorted((one.cost.eflops, one.accuracy or 0.0) for one in ahead)
    axes.step(*zip(*points, strict=True), where="post", color="black", linewidth=1, label="best for its cost")
    axes.axvline(budget, color="black", linestyle=":", linewidth=1, label="budget")
    axes.set_xscale("log")
    axes.set_xlabel("eFLOPs")
    axes.set_ylabel("problems solved, fraction")
    axes.set_title("measured accuracy against cost", fontsize=10)
    _finish(axes, True)


def _parts(axes: Any, options: Sequence[Option]) -> None:
    """Shares of the cost of each model and policy, at its longest answers."""
    rows = {label: max(line, key=lambda one: one.y) for label, line in _lines(options).items()}
    places = list(range(len(rows)))
    left = [0.0] * len(rows)
    for part, name in zip(_PARTS, _NAMES, strict=True):
        costs = [getattr(one.cost, part) * (one.cost.intensity if "bytes" in part else 1) for one in rows.values()]
        shares = [cost / one.cost.eflops for cost, one in zip(costs, rows.values(), strict=True)]
        if any(shares):
            axes.barh(places, shares, left=left, label=name)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set_yticks(places, [f"{label}, {one.N} x {one.y}" for label, one in rows.items()], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the cost")
    axes.set_title("what the budget is spent on, answers x tokens", fontsize=10)
    _finish(axes, bool(rows), loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=len(_PARTS))


def _finish(axes: Any, drawn: bool, **legend: Any) -> None:
    if drawn:
        axes.legend(fontsize=7, **legend)
    else:
        axes.text(0.5, 0.5, "the budget buys nothing", ha="center", va="center", transform=axes.transAxes)
    axes.grid(alpha=0.3)
