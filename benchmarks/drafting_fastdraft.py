"""FastDraft on the testbed: does the target's own text raise acceptance, and what is the trained draft worth.

Arms of the claim, three seeds each, one drafter per seed that all arms begin with: `pretrained` (on a corpus), `corpus`
(some more steps on that corpus) and `target` (as many on the target's completions). The corpus is plain text, as in the
paper, while prompts are text and tasks; `--corpus mixture` takes what the target itself was trained on instead. The
`losses` rows begin with the first seed's drafter and differ in what the alignment minimises.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from remnant.speculative.fastdraft.card import fingerprint, versions
from remnant.speculative.fastdraft.data import FileRows, Rows
from remnant.speculative.fastdraft.evaluate import evaluate
from remnant.speculative.fastdraft.loop import Stage, Teacher, train_stage
from remnant.speculative.fastdraft.samples import Samples, make_samples
from remnant.speculative.fastdraft.shape import Shape, borrow_embedding, draft_config, new_draft
from remnant.speculative.fastdraft.target import load_model, load_tokenizer, read_target, stops
from remnant.speculative.fastdraft.testbed_data import read_testbed
from remnant.testbed.examples import stream
from remnant.testbed.text import load_corpus

FOLDER = Path(__file__).resolve().parent / "results"
SHAPE = Shape(width=48, depth=1, heads=2, kv_heads=1, head_dim=32, mlp=160)
ROWS, LENGTH, LR = 16, 96, 6e-3
GAMMA = 3


class Bench:
    """The target with its samples; the same for every arm."""

    def __init__(self, prompts: int, measured: int, corpus: str, work: Path) -> None:
        """Load and let the target complete the prompts."""
        self.target = read_target("testbed")
        self.model = load_model("testbed", "cpu")
        tokenizer = load_tokenizer(self.target)
        self.ends, self.real = stops(self.model, tokenizer), len(tokenizer)
        self.data = read_testbed(prompts, measured, seed=1, length=LENGTH)
        text = FileRows(stream(load_corpus().train), tokenizer.bos_token_id)
        self.corpus: Rows = text if corpus == "text" else self.data.corpus
        self.samples: Samples = make_samples(self.model, self.data.prompts, work, 48, self.ends, self.real, seed=1)

    def fresh(self, seed: int) -> Any:
        """An untrained drafter."""
        draft = new_draft(draft_config(self.target.config, SHAPE), seed)
        borrow_embedding(draft, self.model, seed)
        return draft

    def train(self, draft: Any, rows: Any, steps: int, lr: float, seed: int, loss: str = "ce", **options: Any) -> Any:
        """A further trained copy."""
        copied = copy.deepcopy(draft)
        stage = Stage("bench", steps, ROWS, LENGTH, lr, seed, loss=loss, **options)
        train_stage(copied, rows, stage, teacher=Teacher(self.model, self.real, self.ends))
        return copied

    def measure(self, draft: Any, seed: int) -> dict[str, Any]:
        """Verified by the target; the same prompts for every arm."""
        return evaluate(self.model, draft, self.data.held_out, self.ends, self.real, GAMMA, seed=seed, new=40)


def main(arguments: list[str]) -> int:
    """Measure and append; `--plot` draws what is there."""
    parser = argparse.ArgumentParser(prog="run.py drafting_fastdraft", description=__doc__)
    parser.add_argument("--corpus", choices=("text", "mixture"), default="text", help="of the pretraining")
    parser.add_argument("--steps", type=int, default=200, help="of pretraining")
    parser.add_argument("--further", type=int, default=200, help="steps of every arm")
    parser.add_argument("--prompts", type=int, default=2048)
    parser.add_argument("--measured", type=int, default=8, help="held-out prompts per domain")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=("claim", "losses", "shipped", "all"), default="all")
    parser.add_argument("--json", action="store_true", help="print the rows")
    parser.add_argument("--plot", action="store_true", help="only draw")
    parser.add_argument("--out", type=Path, default=FOLDER / "drafting-fastdraft.jsonl")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if not args.plot:
        with tempfile.TemporaryDirectory(prefix="fastdraft-") as work:
            _measure(args, _facts(arguments), Path(work))
    chart = args.out.with_suffix(".png")
    rows = [json.loads(line) for line in args.out.read_text().splitlines() if line.strip()]
    draw(rows, chart)
    print(json.dumps({"chart": str(chart)}) if args.json else chart)
    return 0


def _measure(args: argparse.Namespace, facts: dict[str, Any], work: Path) -> None:
    bench = Bench(args.prompts, args.measured, args.corpus, work)
    head = {"benchmark": "drafting_fastdraft", "shape": SHAPE.to_dict(), "corpus": args.corpus,
            "steps": args.steps, "further": args.further,
            "samples": len(bench.samples), "sample_tokens": bench.samples.tokens,
            "target_sha256": fingerprint(bench.model)[:16], **facts}  # fmt: skip
    if args.part in ("claim", "losses", "all"):
        _arms(args, bench, head)
    if args.part in ("shipped", "all"):
        _shipped(args, bench, head)


def _arms(args: argparse.Namespace, bench: Bench, head: dict[str, Any]) -> None:
    for seed in range(args.seeds if args.part != "losses" else 1):
        began = time.perf_counter()
        first = bench.train(bench.fresh(seed), bench.corpus, args.steps, LR, 10 + seed)
        if args.part != "losses":
            _append(
                args,
                {**head, "part": _claim(args), "arm": "pretrained", "seed": seed},
                bench.measure(first, seed),
                began,
            )
            for arm, rows in (("corpus", bench.corpus), ("target", bench.samples)):
                began = time.perf_counter()
                draft = bench.train(first, rows, args.further, LR / 2, 20 + seed)
                _append(
                    args, {**head, "part": _claim(args), "arm": arm, "seed": seed}, bench.measure(draft, seed), began
                )
        if seed == 0 and args.part in ("losses", "all"):
            _losses(args, bench, head, first)


def _claim(args: argparse.Namespace) -> str:
    """The paper's setting is the claim; the other one has a name of its own."""
    return "claim" if args.corpus == "text" else "mixture"


def _losses(args: argparse.Namespace, bench: Bench, head: dict[str, Any], first: Any) -> None:
    arms: tuple[tuple[str, dict[str, Any]], ...] = (
        ("kl", {}), ("tvd", {}), ("ce+kl", {}), ("ce+tvd", {}), ("kl", {"top": 8}), ("kl", {"on_policy": 0.25}),
    )  # fmt: skip
    for loss, options in arms:
        began = time.perf_counter()
        draft = bench.train(first, bench.samples, args.further, LR / 2, 20, loss, **options)
        row = {**head, "part": "losses", "arm": loss, "options": options, "seed": 0}
        _append(args, row, bench.measure(draft, 0), began)


def _shipped(args: argparse.Namespace, bench: Bench, head: dict[str, Any]) -> None:
    """The draft in the wheel, trained by `remnant fastdraft testbed`, on benchmark prompts."""
    from remnant.testbed import load_draft

    began = time.perf_counter()
    draft = load_draft()
    row = {
        k: v for k, v in head.items() if k not in ("shape", "corpus", "steps", "further", "samples", "sample_tokens")
    }
    row |= {"part": "shipped", "arm": "shipped", "seed": 0, "draft_sha256": fingerprint(draft)[:16]}
    _append(args, row, bench.measure(draft, 0), began)


def _append(args: argparse.Namespace, row: dict[str, Any], found: dict[str, Any], began: float) -> None:
    row = {**row, **found, "took": time.perf_counter() - began}
    args.out.parent.mkdir(exist_ok=True)
    with args.out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    if args.json:
        print(json.dumps(row), flush=True)
        return
    shown = "  ".join(
        f"{mode} AR {row[mode]['all']['acceptance']:.3f} tau {row[mode]['all']['block_efficiency']:.2f} "
        f"({row[mode]['all']['block_efficiency_predicted']:.2f})"
        for mode in ("greedy", "T=0.6")
    )
    print(f"{row['part']:<8}{row['arm']:<12}{row['seed']}  {shown}  {row.get('options', '')}", flush=True)


def _facts(arguments: list[str]) -> dict[str, Any]:
    sha = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    command = " ".join(["python benchmarks/run.py drafting_fastdraft", *arguments])
    import platform

    return {"git_sha": sha, "command": command, "device": f"cpu ({platform.machine()})", "threads": 1,
            "versions": versions()}  # fmt: skip


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """A panel for each part that was measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [panel for panel in (_claim_panel(rows), _losses_panel(rows), _shipped_panel(rows)) if panel[1]]
    figure, grid = plt.subplots(1, len(panels), figsize=(5 * len(panels) + 1, 4.2), squeeze=False, layout="constrained")
    for axes, (title, bars) in zip(grid.flat, panels, strict=True):
        for i, mode in enumerate(MODES):
            for j, (_, values) in enumerate(bars):
                x = j + (i - 0.5) * 0.36
                found = values[mode]
                axes.bar(x, sum(found) / len(found), 0.34, color=f"C{i}", label=mode if j == 0 else None)
                if len(found) > 1:
                    axes.plot([x] * len(found), found, "k.", markersize=4)
        axes.set_xticks(range(len(bars)), [name for name, _ in bars], rotation=20 if len(bars) > 3 else 0)
        axes.set_title(title, fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    grid.flat[0].legend()
    figure.savefig(out, dpi=110)
    plt.close(figure)


Bars = list[tuple[str, dict[str, list[float]]]]
MODES = ("greedy", "T=0.6")


def _claim_panel(rows: list[dict[str, Any]]) -> tuple[str, Bars]:
    names = {"pretrained": "corpus only", "corpus": "more corpus", "target": "target's text"}
    found = {arm: [r for r in _part(rows, "claim") if r["arm"] == arm] for arm in names}
    bars = [(names[arm], _accepted(of)) for arm, of in found.items() if of]
    return "The claim: accepted / drafted tokens (dots: seeds)", bars


def _losses_panel(rows: list[dict[str, Any]]) -> tuple[str, Bars]:
    found = [(_name(row), _accepted([row])) for row in _part(rows, "losses")]
    base = [r for r in _part(rows, "claim") if r["arm"] == "target" and r["seed"] == 0]
    return "Losses of the alignment, one seed", [("ce", _accepted(base)), *found] if found and base else found


def _shipped_panel(rows: list[dict[str, Any]]) -> tuple[str, Bars]:
    last = _part(rows, "shipped")[-1:]
    domains = list(last[0]["greedy"]) if last else []
    bars = [(d, {mode: [last[0][mode][d]["block_efficiency"]] for mode in MODES}) for d in domains]
    return f"The shipped draft: tokens per pass, {GAMMA} drafted", bars


def _accepted(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    return {mode: [row[mode]["all"]["acceptance"] for row in rows] for mode in MODES}


def _name(row: dict[str, Any]) -> str:
    return " ".join([row["arm"], *(f"{k}={v}" for k, v in row["options"].items())])


def _part(rows: list[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    """The rows of the commit that measured this part last."""
    found = [row for row in rows if row["part"] == part]
    return [row for row in found if row["git_sha"] == found[-1]["git_sha"]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
