"""Sampling with drafts in a real vLLM engine: are the first tokens of 100,000 answers distributed as they must be?

    .venv-vllm/bin/python benchmarks/drafting_samples.py --out benchmarks/results/drafting-samples.jsonl

A random target of eight tokens answers one prompt; all 512 beginnings of three tokens are counted and compared with
their probabilities, computed in float64 from the same model in transformers. Requests of four settings (temperature,
top-k, top-p) stand side by side in every batch, and `--draws` answers are drawn for each setting. Every case has an
engine in a process of its own. Two controls: no drafts at all, which must come out right, and vLLM's ngram, which this
CPU build of vLLM 0.32 gets wrong. CPU only.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

from drafting_samples_lib import (
    DEEP,
    MIXED,
    Setting,
    compressed,
    counted,
    deviation,
    draw,
    in_hf,
    joint,
    make,
    variation,
    written,
)

BLOCK, DRAFT, LIMIT = 32, 3, 4.5
"""Deviations beyond `LIMIT` are an error in what must be exact, and within it in what is known to be wrong."""

EAGER = {"lookup": {"min_match": 1, "min_share": 0.0}}
"""Everything that matches is proposed, so that many drafts are wrong: what replaces them is what this is about."""


@dataclass(frozen=True)
class Case:
    """What drafts, and for whom.

    Attributes:
        about: for the table.
        method: of `--speculative-config`; None drafts nothing.
        model: a class of ours.
        remnant: options, under `remnant`.
        seeded: requests have generators of their own, which take another way through vLLM's sampler.
        settings: of the requests.
        prompt: tokens of it.
        budget: of KV eviction by `snapkv`; 0 evicts nothing.
        exact: False where it is known to come out wrong.
    """

    about: str
    method: str | None = None
    model: str | None = None
    remnant: dict[str, Any] = field(default_factory=dict[str, Any])
    seeded: bool = False
    settings: tuple[Setting, ...] = MIXED
    prompt: int = 60
    budget: int = 0
    exact: bool = True


def _lookup(about: str, **more: Any) -> Case:
    return Case(about, "custom_class", "remnant_vllm.LookupDrafter", EAGER, **more)


def _rapid(about: str, **more: Any) -> Case:
    options = {"tail": 8, "chunk": 8, "k": 2, "confidence": 0.0}
    return Case(about, "custom_class", "remnant_vllm.RapidDrafter", {"rapid": options}, **more)


TWO = (MIXED[0], MIXED[2])
CASES = {
    "none": Case("no drafts"),
    "ngram": Case("vLLM's ngram, as it is", "ngram", settings=(Setting(0.9), Setting(1.3)), exact=False),
    "lookup": _lookup("LookupDrafter"),
    "lookup-seeded": _lookup("LookupDrafter, seeded requests", seeded=True),
    "rapid": _rapid("RapidDrafter, the target on passages of its prompt as second model", settings=TWO),
    "rapid-seeded": _rapid(
        "RapidDrafter, the target on passages of its prompt as second model, seeded requests",
        settings=TWO[1:],
        seeded=True,
    ),
    "snapkv": Case("KV eviction, no drafts", settings=TWO[1:], prompt=96, budget=64),
    "lookup-snapkv": _lookup("LookupDrafter over KV eviction", settings=TWO[1:], prompt=96, budget=64),
    "rapid-snapkv": _rapid("RapidDrafter over KV eviction", settings=TWO[1:], prompt=96, budget=64),
}
"""`ngram` samples by temperature alone: with a top-k, its first step ends the engine."""


def main(argv: list[str] | None = None) -> int:
    """Draw, print a table, and write one JSON line per case and setting; 1 if a case is not what it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON Lines file; cases that were run replace theirs, others stay")
    parser.add_argument("--draws", type=int, default=100_000, help="answers per case and setting")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rows", type=int, default=1024, help="requests that run at once")
    parser.add_argument("--seed", type=int, default=5, help="of the target")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        print(json.dumps(_measure(options.child, options)))
        return 0
    lines = [line for name in options.cases for line in _in_a_process(name, options)]
    _table(lines)
    if options.out:
        _write(options.out, lines)
    return int(any(line["exact"] != (abs(line["deviate"]) < LIMIT) for line in lines))


def _in_a_process(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What repairs vLLM's sampler for one case stays there for the next one in the same process."""
    given = ["--draws", str(options.draws), "--rows", str(options.rows), "--seed", str(options.seed)]
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, *given], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        target = make(Path(folder) / "target", options.seed)
        hf = in_hf(target)
        prompt = written(hf, case.prompt)
        llm = _engine(case, target, options.rows)
        begin = time.perf_counter()
        answers = draw(
            llm, prompt, case.settings, options.draws, 0 if case.seeded else None, options.rows * 3 // 2,
            _bar(name, options.draws * len(case.settings)),
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        counts = _counts(llm)
    logits = _over(hf, prompt, case)
    lines: list[dict[str, Any]] = []
    for setting, drawn in zip(case.settings, answers, strict=True):
        wanted, whole, seen = joint(hf, prompt, setting, logits), joint(hf, prompt, setting), counted(drawn)
        noise = sum((2 * p * (1 - p) / (3.14159265 * len(drawn))) ** 0.5 for p in wanted) / 2
        lines.append(
            {
                "case": name,
                "about": case.about,
                "sampling": asdict(setting),
                "seeded": case.seeded,
                "draws": len(drawn),
                "exact": case.exact,
                "deviate": round(deviation(seen, wanted), 3),
                "total_variation": round(variation(seen, wanted), 5),
                "total_variation_of_exact": round(noise, 5),
                "draft_tokens": counts.get("draft_tokens", 0),
                "accepted_share": round(counts.get("accepted_tokens", 0) / max(1, counts.get("draft_tokens", 0)), 4),
                "prompt_tokens": case.prompt,
                "budget": case.budget or None,
                "total_variation_from_whole_cache": None if logits is None else round(variation(seen, whole), 5),
                "seconds_of_case": round(seconds, 1),
                **_about(options),
            }
        )
    return lines


def _engine(case: Case, target: Path, rows: int) -> Any:
    from vllm import LLM

    remnant = dict(case.remnant)
    if "rapid" in remnant:
        remnant["rapid"] = {**remnant["rapid"], "model": str(target), "requests": rows}
    more: dict[str, Any] = {}
    if case.method:
        more["speculative_config"] = {"method": case.method, "num_speculative_tokens": DRAFT}
        if case.model:
            more["speculative_config"]["model"] = case.model
        if case.method == "ngram":
            more["speculative_config"] |= {"prompt_lookup_min": 1, "prompt_lookup_max": 2}
    if case.budget:
        more["attention_backend"] = "CUSTOM"
        remnant |= {"policy": "snapkv", "budget": case.budget, "mode": "prompt"}
    if remnant:
        more["additional_config"] = {"remnant": remnant}
    blocks = -(-(case.prompt + 8) // BLOCK) + 1
    return LLM(
        str(target),
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        block_size=BLOCK,
        max_model_len=case.prompt + 36,
        max_num_seqs=rows,
        max_num_batched_tokens=rows * (case.prompt + 8),  # vLLM's seeded requests cannot be read in parts on the CPU
        enable_prefix_caching=False,
        kv_cache_memory_bytes=rows * blocks * 2 * BLOCK * 2 * 32 * 4,
        disable_log_stats=False,
        **more,
    )


def _over(hf: Any, prompt: list[int], case: Case) -> Any:
    """Logits over the compressed cache; None where there is none."""
    if not case.budget:
        return None
    from remnant.kv import get_policy
    from remnant.kv.pace import paced

    return compressed(hf, prompt, paced(get_policy("snapkv"), "prompt", BLOCK), case.budget)


def _bar(name: str, total: int) -> Callable[[int], None]:
    from tqdm import tqdm

    bar = tqdm(total=total, desc=name, unit="answer", mininterval=2.0)

    def told(done: int) -> None:
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return told


def _counts(llm: Any) -> dict[str, int]:
    """What vLLM counts of drafts."""
    names = {f"vllm:spec_decode_num_{what}": what for what in ("drafts", "draft_tokens", "accepted_tokens")}
    return {names[m.name]: int(m.value) for m in llm.get_metrics() if m.name in names}


def _about(options: argparse.Namespace) -> dict[str, Any]:
    import platform

    import torch
    import transformers
    import vllm

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=here).stdout.strip()

    versions = {"vllm": vllm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "rows": options.rows,
        "seed": options.seed,
        "tokens_per_answer": DEEP,
        "tokens_per_draft": DRAFT,
        "model": "random Llama, 1 layer, 8 tokens, float32",
        "device": f"CPU ({platform.machine()}), 1 thread",
        "versions": {**versions, "python": platform.python_version()},
        "git": git("rev-parse", "--short", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "command": f"python benchmarks/drafting_samples.py --draws {options.draws}",
    }


def _write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """In the order of `CASES`."""
    old = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    names = {line["case"] for line in lines}
    kept = [line for line in old if line["case"] not in names and line["case"] in CASES]
    whole = sorted([*kept, *lines], key=lambda line: list(CASES).index(line["case"]))
    path.write_text("".join(json.dumps(line) + "\n" for line in whole), encoding="utf-8")


def _table(lines: Sequence[dict[str, Any]]) -> None:
    print(
        f"{'case':<16}{'T':>5}{'top_k':>6}{'top_p':>6}{'draws':>8}{'accepted':>9}{'deviate':>9}{'TV':>9}{'of exact':>9}"
    )
    for line in lines:
        s = line["sampling"]
        print(
            f"{line['case']:<16}{s['temperature']:>5}{s['top_k']:>6}{s['top_p']:>6}{line['draws']:>8}"
            f"{line['accepted_share']:>9}{line['deviate']:>9}{line['total_variation']:>9}"
            f"{line['total_variation_of_exact']:>9}"
        )


if __name__ == "__main__":
    sys.exit(main())
