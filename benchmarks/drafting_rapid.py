"""RAPID on the testbed: accuracy and passes of a target that is lost in its context, by how it is tilted; JSONL, PNG.

Passkeys of three tokens among distractors in up to three times the context that the model was trained on, asked at the
end. The drafter is the same model on passages that a search by words finds. `alone` is the target by itself, `drafter`
the drafter by itself: a tilt should beat the first, and where retrieval is poor also the second.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remnant.speculative import Audit, RagContext, Tilt, generate
from remnant.testbed import load, make_examples
from remnant.testbed.evaluate import versions
from remnant.testbed.tasks import BENCHMARK_SEED_BASE
from remnant_hf import rapid
from remnant_hf._target import ModelTarget

RESULTS = Path(__file__).resolve().parent / "results"
LENGTHS, CHUNKS, TAIL, NUM_DRAFT = (1024, 2048, 3072), (1, 4), 12, 4
TILTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("target", {}),
    ("exact", {"eta": 10.0}),
    ("exact", {"eta": 20.0}),
    ("exact", {"eta": 50.0}),
    ("geometric", {"lam": 0.25}),
    ("geometric", {"lam": 0.5}),
    ("geometric", {"lam": 0.75}),
    ("kl", {"delta": 0.5}),
    ("kl", {"delta": 2.0}),
    ("paper", {"eta": 20.0}),
)


@dataclass
class Case:
    """One question, with the target's cache of all but its last token: every mode starts from a copy."""

    prompt: Tensor
    answer: list[int]
    cache: Any = None


@dataclass
class Sums:
    """What one mode did over all questions."""

    right: int = 0
    counts: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, ids: list[int], case: Case, **more: float) -> None:
        """Count one answer."""
        self.right += ids == case.answer
        for name, value in more.items():
            self.counts[name] += value


def main(arguments: list[str]) -> int:
    """Measure, append to the results and draw them."""
    args = _parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    if not args.draw_only:
        model, tokenizer = load()
        facts = _facts(model, arguments)
        for length in args.length or LENGTHS:
            cases = _cases(model, length, args.n)
            for k in CHUNKS:
                _append(args.out, _measure(model, tokenizer, cases, length, k, facts, args.mode), args.json)
    draw(_newest(args.out), args.out.with_suffix(".png"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="drafting_rapid.py", description=__doc__)
    parser.add_argument("--n", type=int, default=32, help="questions per length")
    parser.add_argument("--length", type=int, action="append", help="only this length; may be repeated")
    parser.add_argument("--mode", action="append", help="only this mode, alone and drafter left out; may be repeated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the rows")
    parser.add_argument("--draw-only", action="store_true", help="draw what was measured")
    parser.add_argument("--out", type=Path, default=RESULTS / "drafting-rapid.jsonl")
    return parser


def _cases(model: Any, length: int, n: int) -> list[Case]:
    """Questions, each asked up to the last token before its answer."""
    from transformers import DynamicCache

    cases: list[Case] = []
    for example in make_examples("passkey-late", length, n, BENCHMARK_SEED_BASE):
        first = example.answers[0][0]
        prompt = torch.tensor([*example.context.tolist(), *example.probe[: first + 1].tolist()])
        case = Case(prompt, [token for _, token in example.answers], DynamicCache(config=model.config))
        with torch.no_grad():
            model(prompt[None, :-1], past_key_values=case.cache, logits_to_keep=1)
        cases.append(case)
        print(f"length {length}: read {len(cases)} of {n}", file=sys.stderr, end="\r", flush=True)
    print(file=sys.stderr)
    return cases


def _measure(
    model: Any, tokenizer: Any, cases: list[Case], length: int, k: int, facts: dict[str, Any], modes: list[str] | None
) -> list[Any]:
    context = RagContext(tokenizer, tail=TAIL, chunk=64, k=k)
    head = {"benchmark": "drafting_rapid", "task": "passkey-late", "length": length, "n": len(cases), "chunks": k,
            "chunk_tokens": 64, "num_draft": NUM_DRAFT}  # fmt: skip
    rows: list[Any] = []
    if not modes:
        alone = _plain(model, cases, lambda case: case.prompt, True)
        drafter = _plain(model, cases, lambda case: context(case.prompt).ids, False)
        rows = [_row(head, facts, "alone", {}, alone), _row(head, facts, "drafter", {}, drafter)]
    for mode, options in TILTS:
        if modes and mode not in modes:
            continue
        tilt = Tilt(mode, **options, audit=Audit())  # pyright: ignore[reportArgumentType]
        rows.append(_row(head, facts, mode, options, _tilted(model, cases, context, tilt)))
    return rows


def _plain(model: Any, cases: list[Case], prompt: Any, cached: bool) -> Sums:
    """Without drafts."""
    sums = Sums()
    for case in cases:
        ids = prompt(case)
        target = ModelTarget(model, copy.deepcopy(case.cache) if cached else None)
        began = time.perf_counter()
        out = generate(target, None, [ids], len(case.answer))
        sums.add(out.ids[0].tolist(), case, tokens=len(case.answer), passes=len(case.answer), drafter_tokens=len(ids),
                 seconds=time.perf_counter() - began)  # fmt: skip
    return sums


def _tilted(model: Any, cases: list[Case], context: RagContext, tilt: Tilt) -> Sums:
    sums = Sums()
    for case in cases:
        drafter = rapid(model, context, tilt)
        target = ModelTarget(model, copy.deepcopy(case.cache))
        began = time.perf_counter()
        out = generate(target, drafter, [case.prompt], len(case.answer), tilt=tilt, num_draft=NUM_DRAFT)
        assert tilt.audit is not None
        weights = tilt.audit.of(0, out.ids[0])
        # The prompt's own pass gave the first token.
        sums.add(
            out.ids[0].tolist(), case, tokens=out.stats.emitted + 1, passes=out.stats.passes + 1,
            proposed=out.stats.proposed, accepted=out.stats.accepted, seconds=time.perf_counter() - began,
            drafter_tokens=len(drafter.prompts[0].ids), weight=sum(weights) / len(weights) if weights else 0.0,
        )  # fmt: skip
    return sums


def _row(head: dict[str, Any], facts: dict[str, Any], mode: str, options: dict[str, Any], sums: Sums) -> dict[str, Any]:
    got, n = sums.counts, head["n"]
    return {
        **head, "mode": mode, "options": options, "lossless": mode in ("alone", "target"), "accuracy": sums.right / n,
        "passes_per_token": got["passes"] / got["tokens"],
        "acceptance": got["accepted"] / got["proposed"] if got["proposed"] else None,
        "drafter_tokens": got["drafter_tokens"] / n, "drafter_weight": got["weight"] / n,
        "seconds": got["seconds"] / n, **facts,
    }  # fmt: skip


def _facts(model: Any, arguments: list[str]) -> dict[str, Any]:
    folder = Path(__file__).resolve().parent
    sha = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    command = " ".join(["python benchmarks/drafting_rapid.py", *arguments])
    seed = BENCHMARK_SEED_BASE
    return {"seed": seed, "git_sha": sha.stdout.strip(), "command": command, "at": int(time.time()), **versions(model)}


def _append(path: Path, rows: list[dict[str, Any]], as_json: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        if as_json:
            print(json.dumps(row), flush=True)
        text = f"{row['length']} tokens, {row['chunks']} chunks, {_name(row)}: accuracy {row['accuracy']:.3f}"
        print(f"{text}, {row['passes_per_token']:.2f} passes per token", file=sys.stderr, flush=True)


def _newest(path: Path) -> list[dict[str, Any]]:
    """The last row of each measurement."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return list({(row["length"], row["chunks"], _name(row)): row for row in rows}.values())


def _name(row: dict[str, Any]) -> str:
    return " ".join([row["mode"], *(f"{name} {value:g}" for name, value in row["options"].items())])


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """A column per number of chunks: accuracy above, passes per token below."""
    from remnant.lazy import needs

    with needs("plot", wanted_by="the chart of drafting_rapid"):
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    chunks = sorted({row["chunks"] for row in rows})
    names = list(dict.fromkeys(_name(row) for row in rows))
    figure, grid = plt.subplots(2, len(chunks), figsize=(5 * len(chunks) + 2, 7), squeeze=False, layout="constrained")
    for column, k in enumerate(chunks):
        for i, name in enumerate(names):
            line = sorted((r for r in rows if r["chunks"] == k and _name(r) == name), key=lambda r: r["length"])
            style = {"color": plt.get_cmap("tab20")(i % 20), "marker": "osD^v<>PXph*"[i % 12], "markersize": 4}
            style["linestyle"] = "--" if name in ("alone", "drafter", "target") else "-"
            for axes, key in zip(grid[:, column], ("accuracy", "passes_per_token"), strict=True):
                axes.plot([r["length"] for r in line], [r[key] for r in line], label=name, **style)
        grid[0, column].set(title=f"{k} passage{'s' if k > 1 else ''} of 64 tokens", ylabel="accuracy", ylim=(0, 1.03))
        grid[1, column].set(xlabel="tokens of the target's context", ylabel="passes per token", ylim=(0, 1.03))
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.suptitle("Passkeys in a context longer than the target was trained on; tilts change the distribution")
    figure.savefig(out, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
