"""Predicted bytes against those that tensors take, and what a smaller budget costs in tokens per pass and per second.

    python benchmarks/drafting_plan.py [--out FILE] [--repeats N] [--only PART]  # rows of other parts stay

Bytes: the testbed decodes with drafts, through our engine and through the stock assisted loop of transformers; every
tensor that comes and goes is counted, and its peak is compared with `MemoryModel`. Scratch inside an operation is not
seen.

Lazy logits: bytes of logits alone, predicted and counted, and eager against lazy time; see `drafting_plan_lazy.py`.

Budgets: four rows each read a document and its beginning again, and the testbed goes on; `lookup` drafts. The naive
allocation is the model's longest text for every row and the largest block. Of its memory beyond the weights, a plan
gets a fraction; acceptance is learned on other documents, passes are timed beforehand. Runs are interleaved and timed
by the process's own clock on one thread; a row's ratios are against the naive run of the same repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from drafting_plan_lazy import lazy_rows, show_lazy
from torch import Tensor

import remnant
from remnant.progress import Progress, silent
from remnant.speculative import MemoryModel, ModelDrafter, Plan, SpecStats, generate, get_drafter
from remnant.speculative.calibration import Acceptance, Calibration
from remnant.speculative.costs import Measured, time_passes
from remnant.speculative.live import LiveBytes
from remnant.speculative.planner import Planner
from remnant.testbed import load
from remnant.testbed.text import load_held_out
from remnant_hf._target import ModelTarget

ROOT = Path(__file__).parents[1]
ROWS, LEARNED, READ, AGAIN, NEW, LARGEST, CHUNK = 4, 12, 240, 40, 96, 33, 64
FRACTIONS = (1.0, 0.6, 0.35, 0.2)
"""Of the naive allocation beyond the weights. The paper keeps 96 % of the throughput with 0.35."""
SHAPES = ((1, 300, 5), (1, 600, 17), (1, 1200, 5), (4, 300, 9), (4, 600, 5))
"""(rows, tokens, nodes) whose bytes are compared."""


def small_model(target: Any) -> Any:
    """A drafter with the target's vocabulary: one layer, 32 wide, random."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=target.config.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def compared_bytes(model: Any, progress: Progress) -> list[dict[str, Any]]:
    """Predicted and counted peaks, for every shape with and without a drafter's weights, and in the stock loop."""
    small, rows = small_model(model), list[dict[str, Any]]()
    cases = [(loop, *shape) for shape in SHAPES for loop in ("lookup", "model", "stock assisted")]
    cases = [case for case in cases if case[0] != "stock assisted" or case[1] == 1]  # it takes one row
    for done, (loop, count, length, n) in enumerate(cases):
        progress(done, len(cases), f"bytes of {loop}")
        generator = torch.Generator().manual_seed(length)
        ids = [torch.randint(3, 2000, (length - NEW // 4,), generator=generator) for _ in range(count)]
        with LiveBytes(model, *([] if loop == "lookup" else [small])) as live:
            _decode(loop, model, small, ids, n)
        chunk = CHUNK if loop != "stock assisted" else length
        draft = None if loop == "lookup" else small.config
        host = "transformers" if loop == "stock assisted" else "engine"
        memory = MemoryModel(model.config, draft, "float32", chunk=chunk, host=host)
        parts = memory.bytes(count, length, n, lazy_logits=False)
        made = {"loop": loop, "rows": count, "tokens": length, "n": n, "predicted": parts["total"], "peak": live.peak}
        rows.append({"part": "bytes", **made, "ratio": round(parts["total"] / live.peak, 3), "parts": parts})
    return rows


def _decode(loop: str, model: Any, small: Any, ids: list[Tensor], n: int) -> None:
    if loop == "stock assisted":
        small.generation_config.num_assistant_tokens = n - 1
        small.generation_config.num_assistant_tokens_schedule = "constant"
        small.generation_config.assistant_confidence_threshold = 0.0
        options: dict[str, Any] = {"max_new_tokens": NEW // 4, "do_sample": False, "eos_token_id": None}
        model.generate(ids[0][None], assistant_model=small, **options)
        return
    target = ModelTarget(model, chunk=CHUNK)
    drafter = get_drafter("lookup") if loop == "lookup" else ModelDrafter(ModelTarget(small, chunk=CHUNK))
    generate(target, drafter, ids, NEW // 4, num_draft=n - 1)


def documents(tokenizer: Any, count: int) -> list[Tensor]:
    """Prompts: the beginning of a held-out document, and the beginning of that again."""
    found: list[Tensor] = []
    for text in load_held_out():
        ids = tokenizer(text)["input_ids"]
        if len(ids) > READ:
            found.append(torch.tensor(ids[:READ] + ids[1:AGAIN]))
        if len(found) == count:
            return found
    raise SystemExit(f"only {len(found)} documents of {count}")


def learned(model: Any, prompts: list[Tensor]) -> Acceptance:
    """Acceptance by place, from the documents that nothing is measured on."""
    calibration = Calibration(Acceptance.constant(0.7, LARGEST - 1), rate=0.001, prior=1)
    stats = generate(ModelTarget(model), get_drafter("lookup"), prompts, NEW, num_draft=LARGEST - 1).stats
    tested = stats.proposed_by_position
    for place, (accepted, proposed) in enumerate(zip(stats.by_position, tested, strict=True)):
        before = proposed if place == 0 else stats.by_position[place - 1]
        reached = min(before, proposed)  # a place is looked at where the one before was accepted
        for number in range(reached):
            calibration.observe(place, 0 if number < accepted else None)
    return calibration.table()


def passes(model: Any, prompts: list[Tensor]) -> dict[int, float]:
    """Seconds of a verifying pass over n tokens of every row, by the process's clock."""
    target = ModelTarget(model)
    target.prefill(prompts)

    def work(n: int) -> None:
        begin = torch.tensor([len(p) for p in prompts])[:, None]
        target.step(torch.zeros(ROWS, n, dtype=torch.int64), begin + torch.arange(n), torch.full((ROWS,), n))
        target.commit(torch.full((ROWS, 0), -1))

    return time_passes(work, (1, 2, 3, 5, 9, 17, 33), repeats=7, clock=time.process_time)


def run(model: Any, prompts: list[Tensor], plan: Plan | None) -> tuple[float, SpecStats]:
    """Process seconds and counts of one run; the naive one without a plan."""
    begin = time.process_time()
    out = generate(ModelTarget(model), get_drafter("lookup"), prompts, NEW, plan=plan, num_draft=LARGEST - 1)
    return time.process_time() - begin, out.stats


def budgets(model: Any, tokenizer: Any, repeats: int, progress: Progress) -> list[dict[str, Any]]:
    """Naive and planned runs, by the fraction of memory that the plan was given."""
    found = documents(tokenizer, LEARNED + ROWS)
    seen, asked = found[:LEARNED], found[LEARNED:]
    progress(0, 1, "acceptance and times")
    table, times = learned(model, seen), passes(model, asked)
    memory = MemoryModel(model.config, None, "float32")
    weights, length = memory.target.weights, READ + AGAIN - 1 + NEW
    planner = Planner(memory, ROWS, length, acceptance=table, costs=Measured(times), max_nodes=LARGEST)
    naive = memory.total(ROWS, model.config.max_position_embeddings, LARGEST, False) - weights
    floor, bound = planner.plan(1).missing_bytes + 1 - weights, planner.bound().total - weights  # type: ignore[union-attr]
    given = [int(f * naive) for f in FRACTIONS] + [bound, (floor + bound) // 2, floor]
    made = [planner.plan(weights + share) for share in given]
    assert all(isinstance(plan, Plan) for plan in made), "a budget below the floor"
    timed: list[list[tuple[float, SpecStats]]] = []
    for repeat in range(repeats):
        progress(repeat, repeats, "runs")
        timed.append([run(model, asked, plan) for plan in [None, *made]])  # type: ignore[list-item]
    rows: list[dict[str, Any]] = []
    for place, (share, plan) in enumerate(zip([naive, *given], [None, *made], strict=True)):
        stats = timed[0][place][1]
        ratios = [one[0][0] / one[place][0] for one in timed]
        seconds = median(one[place][0] for one in timed)
        rows.append(
            {
                "part": "budgets",
                "allocation": "naive" if plan is None else "planned",
                "given": share,
                "fraction": round(share / naive, 4),
                "n": LARGEST if plan is None else plan.n,  # type: ignore[union-attr]
                "planned": naive if plan is None else plan.total - weights,  # type: ignore[union-attr]
                "predicted_tau": None if plan is None else round(plan.tau, 3),  # type: ignore[union-attr]
                "predicted_speed": None if plan is None else round(plan.speed, 1),  # type: ignore[union-attr]
                "held": stats.peak_bytes,
                "tau": round(stats.block_efficiency, 3),
                "tau_kept": round(stats.block_efficiency / timed[0][0][1].block_efficiency, 3),
                "speed": round(stats.emitted / seconds, 1),
                "speed_kept": round(median(ratios), 3),
                "speed_kept_range": [round(min(ratios), 3), round(max(ratios), 3)],
                "repeats": repeats,
            }
        )
    facts = {"acceptance": [round(row[0], 3) for row in table.table[:8]], "pass_seconds": times, "floor": floor}
    return [{**row, **facts, "bound": bound} for row in rows]


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Two panels: speed and tokens per pass that are kept against memory, and predicted against counted bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    planned = sorted((r for r in rows if r.get("allocation") == "planned"), key=lambda r: r["given"])
    x = [row["fraction"] for row in planned]
    speed, span = [row["speed_kept"] for row in planned], [row["speed_kept_range"] for row in planned]
    bars = [
        [s - a for s, (a, _) in zip(speed, span, strict=True)],
        [b - s for s, (_, b) in zip(speed, span, strict=True)],
    ]
    left.errorbar(x, speed, bars, marker="o", capsize=3, label="tokens per second")
    left.plot(x, [row["tau_kept"] for row in planned], marker="s", linestyle="--", label="tokens per pass")
    left.axhline(0.96, color="grey", linestyle=":", label="0.96")
    left.axvline(planned[0]["bound"] / max(r["given"] for r in rows if r["part"] == "budgets"), color="tab:red",
                 linewidth=1, label="lower bound")  # fmt: skip
    left.set_xscale("log")
    left.set_xlabel("memory beyond the weights, of the naive allocation")
    left.set_ylabel("kept of the naive run")
    left.set_ylim(bottom=0)
    left.legend(fontsize=8)
    for loop, marker in (("lookup", "o"), ("model", "s"), ("stock assisted", "^")):
        some = [row for row in rows if row.get("loop") == loop]
        right.plot([r["peak"] / 2**20 for r in some], [r["predicted"] / 2**20 for r in some], marker, label=loop)
    end = 1.05 * max(row["peak"] for row in rows if row["part"] == "bytes") / 2**20
    right.plot([0, end], [0, end], color="grey", linewidth=1)
    right.fill_between([0, end], [0, 0.9 * end], [0, 1.1 * end], alpha=0.15, color="grey", label="10 %")
    right.set_xlabel("counted at the peak, MiB")
    right.set_ylabel("predicted, MiB")
    right.legend(fontsize=8)
    figure.suptitle("Plans of drafting on the testbed")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows as two tables."""
    print(f"{'loop':<16}{'rows':>5}{'tokens':>8}{'n':>4}{'predicted':>12}{'peak':>12}{'ratio':>8}")
    for row in (r for r in rows if r["part"] == "bytes"):
        sizes = f"{row['rows']:>5}{row['tokens']:>8}{row['n']:>4}{row['predicted']:>12}{row['peak']:>12}"
        print(f"{row['loop']:<16}{sizes}{row['ratio']:>8.3f}")
    print(f"\n{'allocation':<12}{'fraction':>9}{'n':>4}{'held':>10}{'tau':>7}{'kept':>7}{'tokens/s':>10}{'kept':>7}")
    for row in (r for r in rows if r["part"] == "budgets"):
        tau = f"{row['tau']:>7.2f}{row['tau_kept']:>7.3f}"
        speed = f"{row['speed']:>10.1f}{row['speed_kept']:>7.3f}"
        print(f"{row['allocation']:<12}{row['fraction']:>9.4f}{row['n']:>4}{row['held']:>10}{tau}{speed}")


def main(argv: list[str] | None = None) -> int:
    """Measure, write JSON lines and a picture, print tables."""
    parser = argparse.ArgumentParser(prog="drafting_plan", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "drafting-plan.jsonl")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("bytes", "lazy", "budgets"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, tokenizer = load()
    progress = _report if sys.stderr.isatty() else silent
    parts = {
        "bytes": lambda: compared_bytes(model, progress),
        "lazy": lambda: lazy_rows(model, documents(tokenizer, 8), args.repeats, progress),
        "budgets": lambda: budgets(model, tokenizer, args.repeats, progress),
    }
    kept = args.out.read_text().splitlines() if args.only else []
    rows = [row for row in map(json.loads, kept) if row["part"] != args.only]
    made = [row for part, measure in parts.items() if args.only in (None, part) for row in measure()]
    facts = _facts(sys.argv[1:] if argv is None else argv)
    rows += [{"benchmark": "drafting_plan", **row, **facts} for row in made]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw(rows, args.out.with_suffix(".png"))
    show(rows)
    show_lazy(rows)
    return 0


def _report(done: int, total: int, text: str) -> None:
    print(f"\r{done}/{total} {text:<40}", end="", file=sys.stderr, flush=True)


def _facts(arguments: list[str]) -> dict[str, Any]:
    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    measured = (
        "core/remnant/speculative",
        "plugins/hf_ext",
        "benchmarks/drafting_plan.py",
        "benchmarks/drafting_plan_lazy.py",
    )
    return {
        "command": " ".join(["python benchmarks/drafting_plan.py", *arguments]),
        "git": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", *measured)),
        "remnant": remnant.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": "cpu",
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, shared",
        "load": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    sys.exit(main())
