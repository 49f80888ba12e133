"""What trimming gives for every k: a table for machines and a chart for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remnant.lazy import needs

__all__ = ["CHART", "REPORT", "draw", "write_report"]

REPORT, CHART = "vocab_trim.json", "vocab_trim.png"


def write_report(found: Mapping[str, Any], folder: Path, chart: bool = True) -> None:
    """Write the report, and the chart of its table if asked for, into a folder.

    Raises:
        MissingExtra: the chart needs matplotlib, which is not installed.
    """
    (folder / REPORT).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if chart:
        draw(found["table"], int(found["k"]), folder / CHART)


def draw(table: Sequence[Mapping[str, Any]], k: int, path: Path) -> None:
    """Draw coverage, acceptance and predicted speed-up against k.

    Args:
        table: a row per k with `coverage`, `coverage_held_out`, `acceptance_bound`, `acceptance_measured`, `mbsu`;
            None where a figure is not known.
        k: the one that was chosen, marked by a line.
        path: of the PNG.
    """
    with needs("plot", wanted_by="the chart of remnant trim-vocab"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure: Any = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, 3)
    _panel(panels[0], table, {"coverage": "chosen by", "coverage_held_out": "held out"}, "share of the text's tokens")
    lines = {"acceptance_measured": "measured", "acceptance_bound": "lower bound"}
    _panel(panels[1], table, lines, "acceptance of a drafted token")
    _panel(panels[2], table, {"mbsu": "predicted"}, "memory-bound speed-up (MBSU)")
    for axes in panels:
        axes.axvline(k, color="black", linewidth=1, linestyle=":")
        axes.set_xlabel(f"kept tokens k (dotted: {k})")
    figure.savefig(str(path), dpi=120)


def _panel(axes: Any, table: Sequence[Mapping[str, Any]], lines: Mapping[str, str], title: str) -> None:
    drawn = 0
    for key, label in lines.items():
        points = [(row["k"], row[key]) for row in table if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
            drawn += 1
    if drawn:
        axes.legend(fontsize=9)
    else:
        axes.text(0.5, 0.5, "not known without --target", ha="center", va="center", transform=axes.transAxes)
    axes.set_xscale("log")
    axes.set_title(title)
    axes.grid(alpha=0.3)
