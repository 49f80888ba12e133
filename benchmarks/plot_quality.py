"""Draw `results/quality.jsonl`: a panel per task, a line per policy, score against bytes."""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from remnant.testbed.evaluate import with_defaults

FOLDER = Path(__file__).resolve().parent / "results"
CONTROLS = {"window": "0.55", "streaming": "0.4", "random": "0.7"}
MARKERS = "osD^v<>PXph*"


def main(arguments: list[str]) -> int:
    """Write one PNG."""
    parser = argparse.ArgumentParser(prog="run.py plot_quality", description=__doc__)
    parser.add_argument("--data", type=Path, default=FOLDER / "quality.jsonl")
    parser.add_argument("--out", type=Path, default=FOLDER / "quality.png")
    parser.add_argument("--json", action="store_true", help="print where the chart is")
    args = parser.parse_args(arguments)
    rows = newest([json.loads(line) for line in args.data.read_text().splitlines() if line.strip()])
    draw(usual(rows), args.out)
    print(json.dumps({"chart": str(args.out)}) if args.json else args.out)
    return 0


def newest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the weights that were measured last."""
    return [row for row in rows if row["weights"] == rows[-1]["weights"]]


def usual(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with default options: a line is one policy, not a mean of its variants."""
    return [row for row in rows if row["options"] == with_defaults(row["task"], row["policy"], {})]


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Mean over seeds; bars from the lowest to the highest seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    points: dict[tuple[str, str], dict[float, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        score = row["perplexity" if row["task"] == "perplexity" else "accuracy"]
        points[row["task"], row["policy"]][row["budget"]].append((row["bytes"] / row["bytes_full"], score))
    policies = sorted({policy for _, policy in points} - {"full"} - set(CONTROLS))
    styles = {p: (plt.get_cmap("tab20")(i % 20), MARKERS[i % len(MARKERS)], "-") for i, p in enumerate(policies)}
    styles |= {p: (grey, "x", "--") for p, grey in CONTROLS.items()}
    columns = min(3, len(tasks))
    lines = -(-len(tasks) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(5 * columns + 2, 4 * lines), squeeze=False, layout="constrained"
    )
    for axes, task in zip(grid.flat, tasks, strict=False):
        _panel(axes, task, points, styles)
    for axes in list(grid.flat)[len(tasks) :]:
        axes.axis("off")
    handles = {label: h for axes in grid.flat for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=9)
    figure.suptitle("The testbed at 1,024 tokens, benchmark seeds: score against bytes held at the end")
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _panel(axes: Any, task: str, points: Any, styles: dict[str, Any]) -> None:
    for policy, (color, marker, line) in styles.items():
        found = points.get((task, policy))
        if not found:
            continue
        x, mean, low, high = zip(*(_mean(found[b]) for b in sorted(found)), strict=True)
        bars = [[m - a for m, a in zip(mean, low, strict=True)], [b - m for m, b in zip(mean, high, strict=True)]]
        axes.errorbar(x, mean, bars, color=color, marker=marker, linestyle=line, markersize=4, linewidth=1.2,
                      elinewidth=0.5, label=policy)  # fmt: skip
    full = points.get((task, "full"))
    if full:
        level = _mean(next(iter(full.values())))[1]
        axes.axhline(level, color="black", linewidth=1, linestyle=":", label="full")
    axes.set_xscale("log")
    axes.set_xticks([0.05, 0.1, 0.25, 0.5, 1.0], ["5 %", "10 %", "25 %", "50 %", "100 %"])
    axes.minorticks_off()
    axes.set_title(task)
    axes.set_xlabel("bytes of the full cache")
    axes.set_ylabel("perplexity" if task == "perplexity" else "accuracy")
    if task == "perplexity":
        axes.set_yscale("log")
    else:
        axes.set_ylim(-0.03, 1.05)
    axes.grid(alpha=0.3)


def _mean(pairs: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    scores = [score for _, score in pairs]
    return pairs[0][0], sum(scores) / len(scores), min(scores), max(scores)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
