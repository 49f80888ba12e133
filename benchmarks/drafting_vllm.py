"""The lookup drafter in a real vLLM engine, against vLLM's ngram and no drafts: steps, acceptance, tokens per second.

    .venv-vllm/bin/python benchmarks/drafting_vllm.py --out benchmarks/results/drafting-vllm.jsonl

The trained testbed answers greedily, the same prompts for everyone, engine after engine in one process and in another
order every round. Prompts are those of `drafting_texts`, each with the first tokens of its answer, so that a model of
one million parameters knows what is asked of it. Tokens are compared: whoever changes one ends the run. CPU only.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

BLOCK, LONGEST, OPENING, NEW = 32, 1024, 60, 128
KINDS = ("code-edit", "rag-quote", "plain")
LOOKUP = {"method": "custom_class", "model": "remnant_vllm.LookupDrafter"}


def _ngram(least: int, most: int) -> dict[str, Any]:
    return {"method": "ngram", "prompt_lookup_min": least, "prompt_lookup_max": most}


PROVIDERS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "vllm ngram 5-5": _ngram(5, 5),
    "vllm ngram 2-4": _ngram(2, 4),
    "lookup": LOOKUP,
}
"""5-5 is the default of vLLM's ngram; 2-4 begins where `lookup` does."""


@dataclass
class Seen:
    """Of one provider over the prompts of one kind; counts are the same in every round."""

    tokens: list[list[int]] = field(default_factory=list[list[int]])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    seconds: list[float] = field(default_factory=list[float])
    wall: list[float] = field(default_factory=list[float])


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and append one JSON line per kind and provider."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON Lines file, written anew")
    parser.add_argument("--count", type=int, default=8, help="requests of each kind, all at once")
    parser.add_argument("--draft", type=int, default=4, help="tokens per draft")
    parser.add_argument("--rounds", type=int, default=3, help="engines per provider")
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args(argv)
    given = _prompts(options.count, options.seed)
    seen = {(kind, name): Seen() for kind in KINDS for name in PROVIDERS}
    with tempfile.TemporaryDirectory() as folder:
        model = _export(Path(folder) / "testbed")
        scan_once()
        for turn in range(options.rounds):
            names = list(PROVIDERS)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                _round(model, name, options.draft, given, seen)
                print(f"round {turn + 1}/{options.rounds}: {name}", file=sys.stderr)
    lines = [_line(kind, name, seen, given[kind], options) for kind, name in seen]
    _table(lines)
    if options.out:
        options.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return 0


def scan_once() -> None:
    """vLLM scans all modules for Triton overrides with every engine, and trips over its own ngram the second time."""
    from vllm.platforms.cpu import CpuPlatform

    original: Any = CpuPlatform.register_triton_kernel_overrides.__func__
    done: list[bool] = []

    def once(cls: type) -> None:
        if not done:
            done.append(True)
            original(cls)

    CpuPlatform.register_triton_kernel_overrides = classmethod(once)


def _export(folder: Path) -> Path:
    from remnant.testbed.model import export

    return export(folder)


def _prompts(count: int, seed: int) -> dict[str, list[list[int]]]:
    from drafting_texts import workloads

    room = LONGEST - NEW - OPENING - 8
    made = workloads(count, seed)
    return {kind: [[*one.prompt[-room:], *one.answer[:OPENING]] for one in made[kind]] for kind in KINDS}


def _engine(model: Path, draft: dict[str, Any] | None, tokens: int) -> Any:
    from vllm import LLM

    page = 2 * BLOCK * 2 * 32 * 4
    return LLM(
        str(model),
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        block_size=BLOCK,
        max_model_len=LONGEST,
        max_num_seqs=16,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=600 * page * 4,
        disable_log_stats=False,
        speculative_config=None if draft is None else {**draft, "num_speculative_tokens": tokens},
    )


def _round(
    model: Path, name: str, tokens: int, given: dict[str, list[list[int]]], seen: dict[tuple[str, str], Seen]
) -> None:
    llm = _engine(model, PROVIDERS[name], tokens)
    _run(llm, [prompt[:100] for prompt in given["plain"][:2]], 8)
    for kind in KINDS:
        into, before = seen[kind, name], _counts(llm)
        begin, wall = time.process_time(), time.perf_counter()
        answers, steps = _run(llm, given[kind], NEW)
        into.seconds.append(time.process_time() - begin)
        into.wall.append(time.perf_counter() - wall)
        counts = {key: value - before.get(key, 0) for key, value in _counts(llm).items()} | {"steps": steps}
        first = seen[kind, next(iter(PROVIDERS))]
        if (first.tokens and first.tokens != answers) or (into.counts and into.counts != counts):
            raise SystemExit(f"{name} changed the tokens or the counts of {kind}; nothing is reported")
        into.tokens, into.counts = answers, counts
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()


def _run(llm: Any, prompts: list[list[int]], new: int) -> tuple[list[list[int]], int]:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    engine = llm.llm_engine
    for i, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, detokenize=False)
        engine.add_request(str(i), TokensPrompt(prompt_token_ids=prompt), params)
    done: dict[int, list[int]] = {}
    steps = 0
    while engine.has_unfinished_requests():
        done |= {int(o.request_id.split("-")[0]): list(o.outputs[0].token_ids) for o in engine.step() if o.finished}
        steps += 1
    engine.step()
    return [done[i] for i in range(len(prompts))], steps


def _counts(llm: Any) -> dict[str, int]:
    """What vLLM counts of drafts."""
    names = {f"vllm:spec_decode_num_{what}": what for what in ("drafts", "draft_tokens", "accepted_tokens")}
    return {names[m.name]: int(m.value) for m in llm.get_metrics() if m.name in names}


def _line(
    kind: str, name: str, seen: dict[tuple[str, str], Seen], prompts: list[list[int]], options: argparse.Namespace
) -> dict[str, Any]:
    mine, plain = seen[kind, name], seen[kind, "none"]
    drafts, accepted = mine.counts.get("drafts", 0), mine.counts.get("accepted_tokens", 0)
    emitted = sum(len(answer) for answer in mine.tokens)
    return {
        "workload": kind,
        "provider": name,
        **mine.counts,
        "emitted": emitted,
        "accepted_per_draft": round(accepted / drafts, 3) if drafts else 0.0,
        "acceptance": round(accepted / max(1, mine.counts.get("draft_tokens", 0)), 3),
        "acceptance_length": round(1 + accepted / drafts, 3) if drafts else 1.0,
        "block_efficiency": round((emitted - len(prompts)) / (emitted - len(prompts) - accepted), 3),
        "cpu_tokens_per_second": round(emitted / statistics.median(mine.seconds), 1),
        "speed_over_none": _spread([p / m for p, m in zip(plain.seconds, mine.seconds, strict=True)]),
        "wall_over_none": _spread([p / m for p, m in zip(plain.wall, mine.wall, strict=True)]),
        "identical_to_none": mine.tokens == plain.tokens,
        "setting": {
            "requests": len(prompts), "prompt_tokens": sum(map(len, prompts)), "new": NEW, "draft": options.draft,
            "rounds": options.rounds, "seed": options.seed,
        },
        **_about(),
    }  # fmt: skip


def _spread(ratios: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
    }


def _about() -> dict[str, Any]:
    import platform

    import torch
    import vllm

    sha = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": f"CPU ({platform.machine()}), 1 thread; speed by processor time, GPU not measured",
        "model": "testbed (1 M parameters), float32, greedy",
        "versions": {"vllm": vllm.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "git": sha.stdout.strip(),
        "command": "python benchmarks/drafting_vllm.py " + " ".join(sys.argv[1:]),
    }


def _table(lines: list[dict[str, Any]]) -> None:
    columns = ("drafts", "accepted_tokens", "accepted_per_draft", "acceptance", "block_efficiency", "steps")
    print(f"{'workload':<11}{'provider':<16}" + "".join(f"{c:>20}" for c in columns) + f"{'speed':>8}")
    for line in lines:
        row = "".join(f"{line.get(c, 0)!s:>20}" for c in columns)
        print(f"{line['workload']:<11}{line['provider']:<16}{row}{line['speed_over_none']['median']:>8}")


if __name__ == "__main__":
    sys.exit(main())
