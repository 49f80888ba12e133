"""Drafts in `generate` of transformers against its own: prompt lookup, an assistant model, and no drafts; CPU only.

    python benchmarks/run.py drafting_hf [--count N] [--rounds N] [--drafter DIR] [--out FILE]

The trained testbed answers greedily, one prompt at a time, the same prompts for everyone, in another order every round.
Prompts are those of `drafting_texts`, each with the first tokens of its answer, so that a model of one million
parameters knows what is asked of it. Everyone drafts as many tokens. Passes of the target are counted in the same way
for all, at the target itself, the prompt's own pass among them. Tokens are compared with those of no drafts over the
same cache: a drafter of ours that changes one ends the run, one of transformers is reported.

Times are processor time of one thread, since the machine is shared; ratios are within a round.
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from drafting_texts import digest, workloads

import remnant
from remnant.speculative.drafter import get_drafter
from remnant.testbed import load, load_draft
from remnant_hf import RemnantCache, speculate

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("code-edit", "rag-quote", "plain")
LONGEST, OPENING = 900, 60
BUDGET = 128


@dataclass
class Run:
    """One provider over the prompts of one kind, in one round."""

    tokens: list[list[int]] = field(default_factory=list[list[int]])
    seconds: float = 0.0
    passes: int = 0
    proposed: int = 0
    emitted: int = 0

    @property
    def accepted(self) -> int:
        """Every pass emits what was accepted and one token more."""
        return self.emitted - self.passes


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and write one JSON line per kind and provider."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "benchmarks" / "results" / "drafting-hf.jsonl"
    parser.add_argument("--out", type=Path, default=default, help="JSON Lines file, written anew")
    parser.add_argument("--count", type=int, default=4, help="prompts of each kind")
    parser.add_argument("--new", type=int, default=64, help="tokens per answer")
    parser.add_argument("--draft", type=int, default=4, help="tokens per draft")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--drafter", help="checkpoint of a drafter, as of `remnant fastdraft`; left out, the testbed's")
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    target = load()[0].eval()
    drafter = load_draft() if options.drafter is None else _checkpoint(options.drafter)
    providers = _providers(target, drafter, options.draft)
    given = {kind: texts for kind, texts in workloads(options.count, options.seed).items() if kind in KINDS}
    runs: dict[tuple[str, str], list[Run]] = {(kind, name): [] for kind in KINDS for name in providers}
    _measure(target, next(iter(providers.values())), given["plain"][:1], 8)
    for turn in range(options.rounds):
        names = list(providers)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            for kind in KINDS:
                runs[kind, name].append(_measure(target, providers[name], given[kind], options.new))
            print(f"round {turn + 1}/{options.rounds}: {name}", file=sys.stderr)
    facts = _facts(options, target, drafter, sys.argv[1:] if argv is None else argv)
    lines = [_line(kind, name, runs, given[kind]) | facts for kind, name in runs]
    _table(lines)
    options.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return 0


def _checkpoint(folder: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


def _providers(target: Any, drafter: Any, draft: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """Arguments of `generate` by name; a baseline comes before those that are compared with it."""

    def compressed() -> RemnantCache:
        return RemnantCache(target.config, "snapkv", budget=BUDGET)

    made: dict[str, Callable[[], dict[str, Any]]] = {
        "none": dict,
        "transformers prompt lookup": lambda: {"prompt_lookup_num_tokens": draft},
        "remnant lookup": lambda: {"custom_generate": speculate("lookup", draft)},
        "remnant lookup, always": lambda: {"custom_generate": speculate(get_drafter("lookup", min_share=0.0), draft)},
        "snapkv none": lambda: {"past_key_values": compressed()},
        "snapkv remnant lookup": lambda: {
            "past_key_values": compressed(),
            "custom_generate": speculate("lookup", draft),
        },
    }
    own = drafter.generation_config
    own.num_assistant_tokens, own.num_assistant_tokens_schedule = draft, "constant"
    own.assistant_confidence_threshold = 0.0
    models: dict[str, Callable[[], dict[str, Any]]] = {
        "transformers assistant": lambda: {"assistant_model": drafter},
        "remnant model": lambda: {"custom_generate": speculate(drafter, draft)},
    }
    return {**made, **models}


def _measure(target: Any, provider: Callable[[], dict[str, Any]], texts: list[Any], new: int) -> Run:
    run, widths = Run(), list[int]()

    def count(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        widths.append(kwargs["input_ids"].shape[1])

    hook = target.register_forward_pre_hook(count, with_kwargs=True)
    for text in texts:
        ids = torch.tensor([[*text.prompt[-LONGEST:], *text.answer[:OPENING]]])
        widths.clear()
        begin = time.process_time()
        out = target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            **provider(),
        )
        run.seconds += time.process_time() - begin
        run.tokens.append(out[0, ids.shape[1] :].tolist())
        run.emitted += len(run.tokens[-1])
        run.passes += len(widths)
        # All but one column of a pass are drafts; of the first all but the prompt's.
        run.proposed += sum(widths) - ids.shape[1] - (len(widths) - 1)
    hook.remove()
    return run


def _line(kind: str, name: str, runs: dict[tuple[str, str], list[Run]], texts: list[Any]) -> dict[str, Any]:
    mine = runs[kind, name]
    plain = runs[kind, "snapkv none" if name.startswith("snapkv") else "none"]
    equal = all(run.tokens == plain[0].tokens for run in mine)
    if not equal and "remnant" in name:
        raise SystemExit(f"{name} changed the tokens of {kind}")
    run = mine[0]
    ratios = [base.seconds / run.seconds for base, run in zip(plain, mine, strict=True)]
    return {
        "benchmark": "drafting_hf",
        "kind": kind,
        "provider": name,
        "tokens_equal": equal,
        "acceptance": round(run.accepted / run.proposed, 4) if run.proposed else None,
        "proposed": run.proposed,
        "accepted": run.accepted,
        "block_efficiency": round(run.emitted / run.passes, 4),
        "tokens_per_second": round(statistics.median(run.emitted / run.seconds for run in mine), 1),
        "speed_ratio": round(statistics.median(ratios), 3),
        "speed_ratios": [round(ratio, 3) for ratio in ratios],
        "prompts": len(texts),
        "data": digest(texts),
    }


def _facts(options: argparse.Namespace, target: Any, drafter: Any, argv: list[str]) -> dict[str, Any]:
    sha = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "new_tokens": options.new,
        "num_draft": options.draft,
        "rounds": options.rounds,
        "budget": BUDGET,
        "drafter": "testbed's draft" if options.drafter is None else Path(options.drafter).name,
        "drafter_parameters": sum(p.numel() for p in drafter.parameters()),
        "target_parameters": sum(p.numel() for p in target.parameters()),
        # Folders of this machine say nothing elsewhere.
        "command": " ".join(["python benchmarks/drafting_hf.py", *(Path(word).name for word in argv)]),
        "git_sha": sha.stdout.strip(),
        "device": f"cpu ({platform.machine()}), one thread, processor time, shared machine",
        "load": round(os.getloadavg()[0], 1),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "remnant": remnant.__version__,
        },
    }


def _table(lines: list[dict[str, Any]]) -> None:
    print(
        f"{'kind':10} {'provider':28} {'equal':5} {'acceptance':>10} {'tokens/pass':>11} {'tokens/s':>8} {'ratio':>6}"
    )
    for line in lines:
        share = "-" if line["acceptance"] is None else f"{line['acceptance']:.3f}"
        print(
            f"{line['kind']:10} {line['provider']:28} {line['tokens_equal']!s:5} {share:>10} "
            f"{line['block_efficiency']:11.2f} {line['tokens_per_second']:8.1f} {line['speed_ratio']:6.2f}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
