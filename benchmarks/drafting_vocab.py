"""VocabTrim: acceptance and memory-bound speed-up by k, the drafter's share of the time before and after, on a CPU.

Four cases; every ratio is of one run:

- `acceptance`: the trained testbed as target, a small drafter. Tokens are chosen by counts of a corpus (FR-Spec),
  by counts of what the target wrote (VocabTrim) and by expected acceptance; measured on other text of the target.
- `sources`: counts of the corpus against counts of what the target wrote, from the same number of tokens, over seeds.
- `generate`: that drafter before and after in Hugging Face's `generate`, in turns, greedily; the tokens must be equal.
- `steps`: random weights with the proportions of an EAGLE-3 drafter for Llama-3-8B (head 64 % of a draft step, a tenth
  of the target's bytes) at half its vocabulary: what a step costs, and the drafter's share of a block.

    .venv/bin/python benchmarks/drafting_vocab.py --out benchmarks/results/drafting-vocab.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from drafting_vocab_sources import sources

from remnant import __version__
from remnant.speculative.stats import block_efficiency, mbsu
from remnant.speculative.vocab_choose import StepCost, geometric_grid
from remnant.speculative.vocab_counts import Tokens, count_tokens
from remnant.speculative.vocab_map import VocabMap
from remnant.speculative.vocab_measure import between, expected_overlap, measure, written_by

FOLDER = Path(__file__).resolve().parent / "results"
GAMMA, SEED = 3, 0
CASES = ("acceptance", "sources", "generate", "steps")
SHAPE = {"vocab": 65536, "width": 512, "draft_mlp": 11_700, "target_layers": 12, "target_mlp": 23_500}
Row = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Run the cases that were asked for; their older lines in the file are replaced."""
    parser = argparse.ArgumentParser(prog="run.py drafting_vocab", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER / "drafting-vocab.jsonl")
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--texts", type=int, default=48, help="texts that the target writes, half of them held out")
    parser.add_argument("--steps", type=int, default=400, help="training steps of the drafter")
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 11), help="of the case sources")
    parser.add_argument("--repeats", type=int, default=15, help="pairs per timed figure")
    parser.add_argument("--json", action="store_true", help="print the lines as well")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bench = Bench(args.texts, args.steps) if set(args.only) - {"steps"} else None
    rows: list[Row] = []
    if bench is not None and "acceptance" in args.only:
        rows += acceptance(bench)
    if bench is not None and "sources" in args.only:
        rows += sources(bench.target, bench.tokenizer, bench.forwards(), bench.corpus, args.seeds)
    if bench is not None and "generate" in args.only:
        rows += generate(bench, args.repeats)
    if "steps" in args.only:
        rows += steps(args.repeats)
    command = " ".join(["python benchmarks/drafting_vocab.py", *arguments])
    rows = [{**row, **about(), "command": command} for row in rows]
    kept = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.is_file() else []
    kept = [row for row in kept if row["case"] not in args.only] + rows
    args.out.write_text("".join(json.dumps(row) + "\n" for row in kept))
    draw(kept, args.out.with_suffix(".png"))
    for row in rows:
        print(json.dumps(row) if args.json else {key: row[key] for key in row if key not in about()})
    return 0


class Bench:
    """The testbed, a drafter of one layer, and what the target writes, in two halves."""

    def __init__(self, texts: int, train_steps: int) -> None:
        """Load, train, write."""
        from remnant.testbed import load
        from remnant.testbed.text import load_corpus, load_held_out

        self.target, self.tokenizer = load()
        self.vocab = int(self.target.config.vocab_size)
        self.corpus = self._ids("\n\n".join(load_corpus().train), 400_000)
        self.draft = self._train(train_steps)
        prompts = [self._ids(text, 24) for text in load_held_out() if len(text) > 200]
        begin = torch.tensor([self.tokenizer.bos_token_id])
        r = torch.Generator().manual_seed(SEED)
        chosen = [Tokens(torch.cat([begin, ids])) for ids in prompts[:texts]]
        written = list(written_by(self.target, chosen, 160, 1.0, r))
        self.learn, self.held = written[::2], written[1::2]
        self.prompts = [tokens.ids[:25] for tokens in self.held]

    def _ids(self, text: str, count: int) -> torch.Tensor:
        return torch.tensor(self.tokenizer(text[: 12 * count], add_special_tokens=False).input_ids[:count])

    def _train(self, train_steps: int) -> Any:
        """One layer of 64 channels, next-token loss on the corpus; nothing else is claimed of it."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(SEED)
        same = {key: getattr(self.target.config, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
        config = LlamaConfig(
            vocab_size=self.vocab, hidden_size=64, intermediate_size=192, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=32, max_position_embeddings=4096, tie_word_embeddings=False, **same,
        )  # fmt: skip
        draft: Any = LlamaForCausalLM(config)
        optimizer = torch.optim.AdamW(draft.parameters(), lr=6e-3, betas=(0.9, 0.98), weight_decay=0.01)
        r = torch.Generator().manual_seed(SEED)
        for step in range(train_steps):
            optimizer.param_groups[0]["lr"] = 6e-3 * min(1.0, (step + 1) / 40) * (1 - 0.9 * step / train_steps)
            starts = torch.randint(len(self.corpus) - 96, (16,), generator=r)
            rows = torch.stack([self.corpus[i : i + 96] for i in starts])
            rows[:, 0] = self.tokenizer.bos_token_id
            optimizer.zero_grad()
            draft(input_ids=rows, labels=rows).loss.backward()
            torch.nn.utils.clip_grad_norm_(draft.parameters(), 1.0)
            optimizer.step()
        return draft.eval()

    def cost(self) -> StepCost:
        """Of a step, in float32."""
        size = {name: x.numel() * 4 for name, x in self.draft.named_parameters()}
        rest = sum(size.values()) - size["lm_head.weight"] - size["model.embed_tokens.weight"]
        whole = sum(x.numel() for x in self.target.parameters()) * 4
        return StepCost(rest, size["lm_head.weight"] // self.vocab, whole)

    def forwards(self) -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
        """Target and drafter as functions."""
        return lambda ids: self.target(ids).logits, lambda ids: self.draft(ids).logits


def acceptance(bench: Bench) -> Iterator[Row]:
    """Acceptance by k, by way of choosing."""
    corpus = torch.bincount(bench.corpus, minlength=bench.vocab)
    written = count_tokens(bench.learn, bench.vocab)
    bounds = expected_overlap(*bench.forwards(), bench.learn)
    ways = {
        "corpus counts": corpus,
        "target counts": written,
        "lower bound g": bounds[0],
        "acceptance": between(*bounds, written),
    }
    grid, cost = geometric_grid(bench.vocab, 64, 11), bench.cost()
    maps = [VocabMap.from_counts(scores, k, [bench.tokenizer.eos_token_id]) for scores in ways.values() for k in grid]
    whole, positions, found = measure(*bench.forwards(), bench.held, maps)
    before = mbsu(block_efficiency(whole, GAMMA), cost.ratio(bench.vocab), GAMMA)
    for i, row in enumerate(found):
        predicted = mbsu(block_efficiency(min(1.0, row.acceptance), GAMMA), cost.ratio(row.k), GAMMA)
        yield {
            "case": "acceptance", "way": list(ways)[i // len(grid)], "k": row.k, "vocab": bench.vocab,
            "acceptance": row.acceptance, "bound": row.bound, "coverage": row.coverage, "whole": whole,
            "positions": positions, "cost": cost.ratio(row.k), "mbsu": predicted, "mbsu_ratio": predicted / before,
            "num_draft": GAMMA, "temperature": 1.0,
        }  # fmt: skip


def generate(bench: Bench, repeats: int) -> Iterator[Row]:
    """Greedy answers with the drafter as it is and trimmed, in turns."""
    from remnant_hf import speculate
    from remnant_hf.trimmed import trim_model

    bounds, cost = expected_overlap(*bench.forwards(), bench.learn, 0.0), bench.cost()
    scores = between(*bounds, count_tokens(bench.learn, bench.vocab))
    for k in (256, 512, 1024):
        trimmed = trim_model(_copy(bench.draft), VocabMap.from_counts(scores, k, [bench.tokenizer.eos_token_id]))
        sides = {bench.vocab: speculate(bench.draft, GAMMA), k: speculate(trimmed, GAMMA)}
        sums: dict[int, list[float]] = {size: [0.0] * 4 for size in sides}
        shares: dict[int, list[float]] = {size: [] for size in sides}
        for prompt in bench.prompts[:repeats]:
            answers = []
            for size, drafts in sides.items():
                ids = prompt[None]
                answers.append(bench.target.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False, custom_generate=drafts
                ).tolist())  # fmt: skip
                stats = drafts.stats
                for i, x in enumerate((stats.emitted, stats.passes, stats.draft_seconds, stats.target_seconds)):
                    sums[size][i] += x
                shares[size].append(stats.draft_seconds / (stats.draft_seconds + stats.target_seconds))
            assert answers[0] == answers[1], "a trimmed drafter changed the output"
        tokens = {size: emitted / passes for size, (emitted, passes, _, _) in sums.items()}
        gains = {size: mbsu(tokens[size], cost.ratio(size), GAMMA) for size in sides}
        yield {
            "case": "generate", "k": k, "vocab": bench.vocab, "prompts": len(shares[k]), "equal_tokens": True,
            "block_efficiency": tokens, "draft_share": {size: statistics.median(x) for size, x in shares.items()},
            "mbsu": gains, "mbsu_ratio": gains[k] / gains[bench.vocab], "num_draft": GAMMA, "temperature": 0.0,
        }  # fmt: skip


def _copy(model: Any) -> Any:
    made = type(model)(model.config)
    made.load_state_dict(model.state_dict())
    return made.eval()


def steps(repeats: int) -> Iterator[Row]:
    """Process time of a draft step and of a verifying pass, drafters in turns with the target between them."""
    from remnant_hf.trimmed import trim_model

    target = _llama(SHAPE["target_layers"], SHAPE["target_mlp"])
    whole = _llama(1, SHAPE["draft_mlp"])
    drafts = {SHAPE["vocab"]: whole}
    for k in (16384, 4096):  # the share of 32,000 in 128,256; and a sixteenth
        drafts[k] = trim_model(_copy(whole), VocabMap.from_ids(torch.arange(k), SHAPE["vocab"]))
    ids = torch.randint(SHAPE["vocab"], (1, GAMMA + 1), generator=torch.Generator().manual_seed(SEED))
    times: dict[Any, list[float]] = {name: [] for name in ("verify", *drafts)}
    for _ in range(repeats + 1):
        for k, draft in drafts.items():
            times["verify"].append(_timed(target, ids))
            times[k].append(statistics.mean(_timed(draft, ids[:, :1]) for _ in range(GAMMA)))
    verify = statistics.median(times["verify"][len(drafts) :])
    size = sum(x.numel() for x in target.parameters())
    for k, draft in drafts.items():
        step = statistics.quantiles(times[k][1:], n=5)
        read = sum(x.numel() for name, x in draft.named_parameters() if "embed" not in name)
        block = GAMMA * statistics.median(times[k][1:]) + verify
        pairs = zip(times[k][1:], times[SHAPE["vocab"]][1:], strict=True)
        yield {
            "case": "steps", "k": k, "vocab": SHAPE["vocab"],
            "draft_ms": [1000 * x for x in (step[0], statistics.median(times[k][1:]), step[3])],
            "verify_ms": 1000 * verify, "draft_share": 1 - verify / block, "cost": read / size,
            "step_ratio": statistics.median(ours / stock for ours, stock in pairs),
            "read_ratio": read / sum(x.numel() for n, x in whole.named_parameters() if "embed" not in n),
            "num_draft": GAMMA, "pairs": repeats, "shape": SHAPE,
        }  # fmt: skip


def _llama(layers: int, mlp: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=SHAPE["vocab"], hidden_size=SHAPE["width"], intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=2, head_dim=64, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def _timed(model: Any, ids: torch.Tensor) -> float:
    begin = time.process_time()
    with torch.no_grad():
        model(ids, use_cache=False)
    return time.process_time() - begin


def about() -> Row:
    """Where this was measured."""
    import transformers

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=FOLDER, capture_output=True, text=True, check=False).stdout.strip()

    return {
        "benchmark": "drafting_vocab", "device": f"CPU ({platform.machine()}), 1 thread, shared", "dtype": "float32",
        "versions": {"remnant": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "git": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
    }  # fmt: skip


def draw(rows: list[Row], path: Path) -> None:
    """Three panels: acceptance and speed-up by k, and the drafter's share of the time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(15, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    found = [row for row in rows if row["case"] == "acceptance"]
    for way in dict.fromkeys(row["way"] for row in found):
        line = [row for row in found if row["way"] == way]
        for axes, key in ((panels[0], "acceptance"), (panels[1], "mbsu_ratio")):
            axes.plot([row["k"] for row in line], [row[key] for row in line], marker="o", markersize=3, label=way)
    for axes, title in zip(panels, ("acceptance of a drafted token", "MBSU, trimmed over whole"), strict=False):
        axes.set(xscale="log", xlabel="kept tokens k of 2,048 (testbed)", title=title)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    bars = [row for row in rows if row["case"] == "steps"]
    panels[2].bar([f"k {row['k']:,}" for row in bars], [row["draft_share"] for row in bars])
    panels[2].set_title("drafter's share of a block's time (steps, CPU)")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
