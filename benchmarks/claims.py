"""Check what is claimed of the policies against `results/quality.jsonl`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plot_quality import FOLDER, newest

from remnant.testbed.evaluate import with_defaults


@dataclass(frozen=True)
class Claim:
    """A claim, what is expected, what was measured; `holds` is None when rows are missing."""

    claim: str
    expected: str
    measured: str
    holds: bool | None


class Table:
    """Means over the seeds."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        """Index the rows."""
        self.rows = rows

    def mean(self, task: str, policy: str, budget: float, name: str = "accuracy", **options: Any) -> float:
        """A mean; KeyError when nothing was measured."""
        found = [
            row[name]
            for row in self.rows
            if (row["task"], row["policy"], row["budget"]) == (task, policy, budget)
            and row["options"] == with_defaults(task, policy, options)
        ]
        if not found:
            raise KeyError(f"{task} {policy} {budget:.0%}")
        return sum(found) / len(found)

    def policies(self, task: str, budget: float) -> list[str]:
        """What was measured there."""
        return sorted({row["policy"] for row in self.rows if (row["task"], row["budget"]) == (task, budget)})


def main(arguments: list[str]) -> int:
    """Print the table; the exit code says nothing about the claims, only whether they could be read."""
    parser = argparse.ArgumentParser(prog="run.py claims", description=__doc__)
    parser.add_argument("--data", type=Path, default=FOLDER / "quality.jsonl")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    rows = newest([json.loads(line) for line in args.data.read_text().splitlines() if line.strip()])
    found = [_checked(*each) for each in claims(Table(rows))]
    if args.json:
        print("\n".join(json.dumps(asdict(claim)) for claim in found))
        return 0
    width = max(len(c.claim) for c in found)
    for c in found:
        state = {True: "holds", False: "DOES NOT HOLD", None: "not measured"}[c.holds]
        print(f"{c.claim:<{width}}  {state:<13}  {c.measured}  (expected {c.expected})")
    return 0


Check = Callable[[], tuple[str, bool]]


def _checked(claim: str, expected: str, check: Check) -> Claim:
    try:
        measured, holds = check()
    except KeyError as missing:
        return Claim(claim, expected, f"no rows for {missing.args[0]}", None)
    return Claim(claim, expected, measured, holds)


def claims(t: Table) -> Iterator[tuple[str, str, Check]]:
    """What the systems' authors, and the mechanisms, let us expect in direction."""
    full = lambda task: t.mean(task, "full", 1.0)  # noqa: E731

    def early() -> tuple[str, bool]:
        share = t.mean("passkey-early", "snapkv", 0.1) / full("passkey-early")
        return f"{share:.3f} of full", share >= 0.95

    yield "10 %, question inside the window: snapkv", "at least 0.95 of full", early
    for control in ("streaming", "window"):

        def fails(control: str = control) -> tuple[str, bool]:
            share = t.mean("passkey-early", control, 0.1) / full("passkey-early")
            return f"{share:.3f} of full", share < 0.5

        yield f"10 %, question inside the window: {control} fails", "below 0.5 of full", fails
    for task in ("recall", "passkey-late", "episodes"):

        def late(task: str = task) -> tuple[str, bool]:
            snapkv = t.mean(task, "snapkv", 0.1)
            names = [p for p in ("epicache", "keydiff", "trimkv") if p in t.policies(task, 0.1)]
            others = {p: t.mean(task, p, 0.1) for p in names}
            shown = ", ".join(f"{p} {x:.3f}" for p, x in others.items())
            return f"{shown}; snapkv {snapkv:.3f}", max(others.values(), default=0.0) > snapkv

        yield f"10 %, question after compression, {task}", "epicache, keydiff or trimkv above snapkv", late
    for task in ("recurrence", "recurrence-rare"):
        for budget in (0.1, 0.25, 0.5):
            yield _recurrence(t, task, budget)
    for budget in (0.05, 0.1, 0.25, 0.5):
        yield _merging(t, budget)
    for task in ("recall", "passkey-early"):

        def channels(task: str = task) -> tuple[str, bool]:
            think = t.mean(task, "think", 1.0, evictor="none", ratio=0.4)
            return f"{think:.3f}, full {full(task):.3f}", think >= full(task) - 0.01

        yield f"think at 0.4 on {task}", "at most one point below full", channels

    def trained() -> tuple[str, bool]:
        # A policy that does not compress the prompt holds a full cache here, whatever its budget.
        small = [p for p in t.policies("recall", 0.1) if t.mean("recall", p, 0.1, "kept_fraction") < 0.2]
        best = {p: t.mean("recall", p, 0.1) for p in small if p != "trimkv"}
        # With its default slack keydiff holds 17 % more than trimkv in the end, so it is shown at equal bytes too.
        best["keydiff slack=0"] = t.mean("recall", "keydiff", 0.1, slack=0)
        first, second = sorted(best, key=lambda p: -best[p])[:2]
        trimkv = t.mean("recall", "trimkv", 0.1)
        shown = f"trimkv {trimkv:.3f}, then {first} {best[first]:.3f}, {second} {best[second]:.3f}"
        return shown, trimkv > best[first]

    yield "10 %, question-agnostic recall: trained trimkv leads", "above every policy", trained

    def tree() -> tuple[str, bool]:
        kept, right = t.mean("tree", "tim", 1.0, "kept_fraction"), t.mean("tree", "tim", 1.0)
        return f"keeps {kept:.3f}, right {right:.3f}, full {full('tree'):.3f}", kept <= 0.1 and right >= full(
            "tree"
        ) - 0.02

    yield "tim on a task tree", "at most 0.1 of the KV, answers as right as full", tree


def _recurrence(t: Table, task: str, budget: float) -> tuple[str, str, Check]:
    def check() -> tuple[str, bool]:
        lazy, h2o, tova = (t.mean(task, p, budget) for p in ("lazyeviction", "h2o", "tova"))
        full = t.mean(task, "full", 1.0)
        level = lazy >= full and lazy >= max(h2o, tova)  # nothing is above a full cache
        return f"{lazy:.3f}; h2o {h2o:.3f}, tova {tova:.3f}, full {full:.3f}", lazy > max(h2o, tova) or level

    return f"{budget:.0%}, {task}: lazyeviction", "above h2o and tova, or right wherever full is", check


def _merging(t: Table, budget: float) -> tuple[str, str, Check]:
    def check() -> tuple[str, bool]:
        d2o, h2o = (t.mean("perplexity", p, budget, "perplexity") for p in ("d2o", "h2o"))
        bytes_ = [t.mean("perplexity", p, budget, "bytes") for p in ("d2o", "h2o")]
        return f"{d2o:.2f}, h2o {h2o:.2f} ({bytes_[0]:.0f} and {bytes_[1]:.0f} bytes)", d2o <= h2o * 1.001

    return f"{budget:.0%}, perplexity: d2o", "not above h2o", check


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
