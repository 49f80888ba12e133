"""A trained EAGLE-3 head, whole and trimmed, in the real stock vLLM engine: what is accepted, and what was foretold.

    .venv-vllm/bin/python benchmarks/drafting_eagle3.py --out benchmarks/results/drafting-eagle3.jsonl

The testbed writes text; a head of one layer is trained on it, here. After openings of other documents the testbed
writes what `trim_vocab` trims the head by, by counts and by acceptance, with a report of what that should give. Then
stock vLLM serves every folder greedily, on documents that neither training nor trimming saw: its own metrics give
acceptance and block efficiency, and every answer must equal the answer without drafts. Our forward also replays the
same answers and must count the same drafts. MBSU is of bytes that a step reads, which a model this small does not show
as time; no time is measured. CPU only.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from drafting_vllm import scan_once  # isort: skip  # first: it says how vLLM is to run, before anything imports that

import torch

from remnant.speculative.stats import block_efficiency, mbsu

GAMMA, PROMPT, NEW, BLOCK = 3, 32, 96, 32
Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Train, trim, serve; a JSON line per folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON Lines file, written anew; the chart lies beside it")
    parser.add_argument("--steps", type=int, default=450, help="training steps of the head")
    parser.add_argument("--texts", type=int, default=256, help="texts that the target writes greedily, and at 1")
    parser.add_argument("--requests", type=int, default=48, help="prompts that are served")
    parser.add_argument("--k", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), options)
        folders = bench.trimmed(options.k)
        scan_once()
        rows = [bench.served(way, k, folders[way, k]) for way, k in folders]
    before = rows[0]
    rows = [_compared(row, before) | _about(options) for row in rows]
    for row in rows:
        print(json.dumps({key: row[key] for key in row if key not in ("versions", "command", "setting")}))
    if options.out:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        draw(rows, options.out.with_suffix(".png"))
    return 0


class Bench:
    """The testbed as a folder, a head trained for it, texts to trim by, and prompts to serve."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        """Write and train."""
        from drafting_written import answers, prompts_of, write
        from eagle3_head import new_head, save, train

        from remnant.testbed import load
        from remnant.testbed.model import export
        from remnant.testbed.text import load_corpus, load_held_out

        self.folder, self.target = folder, export(folder / "testbed")
        self.model, tokenizer = load()
        self.model.requires_grad_(False)
        r = torch.Generator().manual_seed(options.seed)
        given = prompts_of(tokenizer, load_corpus().train, PROMPT, each=2)
        given = given[torch.randperm(len(given), generator=r)][: 2 * options.texts]
        greedy = write(self.model, given[: options.texts], NEW, 0.0, r)
        sampled = write(self.model, given[options.texts :], NEW, 1.0, r)
        self.head = train(self.model, torch.cat([greedy, sampled]), options.steps, GAMMA, options.seed)
        self.whole = save(self.head, new_head(self.model)[1], folder / "head")
        # Neither was trained on, by target or head, and no document is in both.
        learn, held = (prompts_of(tokenizer, load_held_out()[i::2], PROMPT, each=8) for i in (0, 1))
        learn = learn[torch.randperm(len(learn), generator=r)][: options.texts]
        self.texts = answers(write(self.model, learn, NEW, 0.0, r), PROMPT + 1, tokenizer.eos_token_id)
        held = held[torch.randperm(len(held), generator=r)][: options.requests]
        print(f"{len(learn)} texts to trim by, {len(held)} requests", file=sys.stderr)
        # Longer than what is served: the last draft of an answer reaches beyond its end.
        self.answers = write(self.model, held, NEW + GAMMA + 1, 0.0, r)
        self.prompts = held.tolist()
        self.reports: dict[tuple[str, int], Row] = {}

    def trimmed(self, ks: list[int]) -> dict[tuple[str, int], Path]:
        """A folder per way and k; reports are of other text than what is served."""
        from remnant.speculative.eagle3 import load_eagle3
        from remnant.speculative.eagle3_pair import Eagle3Pair
        from remnant.speculative.vocab_settings import Source, Trim
        from remnant.speculative.vocab_trim import trim_vocab

        pair = Eagle3Pair(self.model, load_eagle3(self.whole))
        size, found = int(self.model.config.vocab_size), dict[tuple[str, int], Path]()
        for way, k in [("whole", size), *(("counts", k) for k in ks), *(("acceptance", k) for k in ks)]:
            objective: Any = "acceptance" if way == "acceptance" else "counts"
            trim = Trim(k, objective, GAMMA, temperature=0.0, chart=False)
            out = self.folder / f"{way}-{k}"
            self.reports[way, k] = trim_vocab(
                self.whole, [Source("target", self.texts)], out, trim, self.target, (pair.target, pair.draft),
                chain=pair.chain,
            )  # fmt: skip
            found[way, k] = self.whole if way == "whole" else out
            print(f"trimmed by {way} to {k}", file=sys.stderr)
        return found

    def served(self, way: str, k: int, folder: Path) -> Row:
        """What vLLM counts, what our forward counts on the same answers, and what the report said."""
        llm = _engine(self.target, {"method": "eagle3", "model": str(folder), "num_speculative_tokens": GAMMA})
        same = _run(llm, self.prompts) == self.answers[:, PROMPT + 1 : PROMPT + 1 + NEW].tolist()
        counts = _counts(llm)
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        assert same, "a drafter changed the output"
        print(f"served {way} {k}: {counts}", file=sys.stderr)
        report = self.reports[way, k]
        row = next(row for row in report["table"] if row["k"] == k)
        return {
            "benchmark": "drafting_eagle3", "way": way, "k": k, "vocab": report["vocab_size"], "num_draft": GAMMA,
            **counts, "replayed": self.replayed(folder), "answers_equal_no_drafts": same,
            "report": {key: row[key] for key in (
                "coverage_held_out", "acceptance_bound", "acceptance_measured", "acceptance_steps", "block_efficiency",
                "mbsu",
            )} | {"positions": report["acceptance"]["positions"]}, "cost": row["cost"],
        }  # fmt: skip

    def replayed(self, folder: Path) -> dict[str, int]:
        """Drafts and accepted tokens by our own forward, block by block, on the answers that were served."""
        from remnant.speculative.eagle3 import load_eagle3
        from remnant.speculative.eagle3_pair import Eagle3Pair

        pair, drafts, accepted = Eagle3Pair(self.model, load_eagle3(folder)), 0, 0
        for row in self.answers:
            right = [z[0, :-1].argmax(-1) == row[1:] for z in pair.chain(row[None], GAMMA)]
            at = PROMPT + 1  # of the newest token, which the prompt's own pass gave
            while at < PROMPT + NEW:
                good = [bool(right[i][at + i]) for i in range(GAMMA)]
                gained = good.index(False) if False in good else GAMMA
                drafts, accepted, at = drafts + 1, accepted + gained, at + gained + 1
        return {"drafts": drafts, "accepted_tokens": accepted}


def _engine(model: Path, draft: Row) -> Any:
    from vllm import LLM

    return LLM(
        str(model), skip_tokenizer_init=True, enforce_eager=True, dtype="float32", block_size=BLOCK, max_model_len=512,
        max_num_seqs=16, enable_prefix_caching=False, kv_cache_memory_bytes=1 << 25, disable_log_stats=False,
        speculative_config=draft,
    )  # fmt: skip


def _run(llm: Any, prompts: list[list[int]]) -> list[list[int]]:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    params = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True, detokenize=False)
    found = llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in prompts], params, use_tqdm=False)
    return [list(one.outputs[0].token_ids) for one in found]


def _counts(llm: Any) -> Row:
    names = {f"vllm:spec_decode_num_{what}": what for what in ("drafts", "draft_tokens", "accepted_tokens")}
    found: Row = {names[m.name]: int(m.value) for m in llm.get_metrics() if m.name in names}
    places = [m.values for m in llm.get_metrics() if m.name == "vllm:spec_decode_num_accepted_tokens_per_pos"]
    return found | {"accepted_by_place": [int(x) for x in places[0][:GAMMA]]}


def _compared(row: Row, before: Row) -> Row:
    """Figures from the counts, and against the untrimmed head."""
    drafts, accepted = row["drafts"], row["accepted_tokens"]
    tokens, whole = 1 + accepted / drafts, 1 + before["accepted_tokens"] / before["drafts"]
    first = row["accepted_by_place"][0] / drafts
    gain, base = mbsu(tokens, row["cost"], GAMMA), mbsu(whole, before["cost"], GAMMA)
    bound = block_efficiency(max(0.0, row["report"]["acceptance_bound"]), GAMMA)
    return row | {
        "acceptance": accepted / row["draft_tokens"], "acceptance_of_first": first,
        "accepted_per_draft": accepted / drafts, "block_efficiency": tokens, "block_efficiency_of_bound": bound,
        "mbsu": gain, "mbsu_ratio": gain / base,
    }  # fmt: skip


def _about(options: argparse.Namespace) -> Row:
    import platform

    import transformers
    import vllm

    from remnant import __version__

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False).stdout.strip()

    return {
        "device": f"CPU ({platform.machine()}), 1 thread, shared; counts only", "dtype": "float32", "temperature": 0.0,
        "setting": {"texts": options.texts, "reported_on": "other documents",
                    "steps": options.steps, "requests": options.requests, "new": NEW,
                    "prompt": PROMPT, "seed": options.seed},
        "versions": {"remnant": __version__, "torch": torch.__version__, "transformers": transformers.__version__,
                     "vllm": vllm.__version__, "python": platform.python_version()},
        "git": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "command": " ".join(["python benchmarks/drafting_eagle3.py", *sys.argv[1:]]),
    }  # fmt: skip


def draw(rows: list[Row], path: Path) -> None:
    """Block efficiency by k, served and foretold, and MBSU over that of the untrimmed head."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for color, way in (("C0", "counts"), ("C1", "acceptance")):
        line = [row for row in rows if row["way"] in (way, "whole")]
        line.sort(key=lambda row: row["k"])
        x = [row["k"] for row in line]
        left.plot(x, [row["block_efficiency"] for row in line], color, marker="o", label=f"{way}: vLLM")
        told = [row["report"]["block_efficiency"] for row in line]
        left.plot(x, told, color, linestyle="--", label=f"{way}: report, other text")
        left.plot(x, [row["block_efficiency_of_bound"] for row in line], color, linestyle=":", label=f"{way}: bound")
        right.plot(x, [row["mbsu_ratio"] for row in line], color, marker="o", label=way)
    left.set_title("tokens per pass of the target")
    right.set_title("MBSU, trimmed over whole (bytes, not time)")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="kept tokens k of 2,048 (testbed, greedy)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
