"""vLLM with and without eviction, in one run: steps, concurrency, throughput, overhead, first token, restart.

Everything runs on the real engine with the trained testbed. Needs an environment with vLLM (`make .venv-vllm/.ok`):

    .venv-vllm/bin/python benchmarks/serving.py --out benchmarks/results/serving.jsonl
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
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")

BLOCK, BUDGET, PROMPT, NEW = 32, 128, 1024, 96
TARGETS = {
    "steps": ("stock steps over ours", ">=", 1.8),
    "concurrency": ("most requests at once, ours over stock", ">=", 4.0),
    "throughput": ("tokens per second, ours over stock", "", None),
    "overhead": ("decode step, budget never reached, ours over stock", "<=", 1.03),
    "first-token-1k": ("time to first token of a compressed prompt of 1,024 tokens, ours over stock", "<=", 1.05),
    "first-token-3k": ("time to first token of a compressed prompt of 3,072 tokens, ours over stock", "<=", 1.05),
    "restart": ("time to first token of a stored 1k prefix in a fresh engine, over cold", "<=", 0.5),
}
CASES = ("load", "overhead", "first-token", "restart")


def main(arguments: list[str] | None = None) -> int:
    """Run the cases that were asked for and append one JSON line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON Lines file; figures of the same cases are replaced")
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--repeats", type=int, default=40, help="pairs per timed figure")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print("CHILD", json.dumps(_child(json.loads(options.child))), flush=True)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        model = _export(Path(folder) / "testbed")
        figures: list[dict[str, Any]] = []
        for case in options.only:
            found = RUN[case](model, Path(folder), options.repeats)
            figures += found
            for figure in found:
                print(json.dumps(figure))
    if options.out:
        _write(options.out, figures)
    return 0


def _export(folder: Path) -> Path:
    from remnant.testbed.model import export

    return export(folder)


def _engine(model: Path, blocks: int, remnant: dict[str, Any] | None, **kwargs: Any) -> Any:
    from vllm import LLM

    page = 2 * BLOCK * 2 * 32 * 4
    options: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "dtype": "float32",
        "block_size": BLOCK,
        "max_model_len": 2048,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 1088,
        "enable_prefix_caching": False,
        "kv_cache_memory_bytes": blocks * page * 4,
    }
    if remnant is not None:
        options |= {"attention_backend": "CUSTOM", "additional_config": {"remnant": remnant}}
    return LLM(str(model), **{**options, **kwargs})


def _prompts(count: int, length: int = PROMPT) -> list[list[int]]:
    from remnant.testbed import BENCHMARK_SEED_BASE, make_examples

    examples = make_examples("recall", length + 64, count, BENCHMARK_SEED_BASE + 31)
    return [example.tokens().tolist()[:length] for example in examples]


def _add(llm: Any, name: str, prompt: list[int], new: int) -> None:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    params = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, detokenize=False)
    llm.llm_engine.add_request(name, TokensPrompt(prompt_token_ids=prompt), params)


def _core(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core


def _close(llm: Any) -> None:
    llm.llm_engine.engine_core.shutdown()
    gc.collect()


SNAPKV = {"policy": "snapkv", "budget": BUDGET, "mode": "prompt", "window": 32}


def load(model: Path, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Thirty-two prompts of eight times the budget over a pool that holds two of them whole."""
    given, seen = _prompts(32), {}
    for name, remnant in (("stock", None), ("ours", SNAPKV)):
        llm = _engine(model, 81, remnant)
        for i, prompt in enumerate(given):
            _add(llm, str(i), prompt, NEW)
        steps = most = 0
        begin = time.perf_counter()
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()
            steps += 1
            most = max(most, len(_core(llm).scheduler.running))
        seconds = time.perf_counter() - begin
        seen[name] = {"steps": steps, "most": most, "tokens_per_second": len(given) * NEW / seconds}
        _close(llm)
    stock, ours = seen["stock"], seen["ours"]
    setting = {"requests": 32, "prompt": PROMPT, "new": NEW, "budget": BUDGET, "blocks": 80, "block_size": BLOCK}
    return [
        _figure("steps", stock["steps"] / ours["steps"], setting, seen),
        _figure("concurrency", ours["most"] / stock["most"], setting, seen),
        _figure("throughput", ours["tokens_per_second"] / stock["tokens_per_second"], setting, seen),
    ]


def overhead(model: Path, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Two engines side by side take the same steps in turn; the budget is above every length."""
    engines = [_engine(model, 400, None), _engine(model, 400, {**SNAPKV, "budget": 1900})]
    given = _prompts(8, 512)
    for llm in engines:
        for i, prompt in enumerate(given):
            _add(llm, str(i), prompt, repeats * 4 + 40)
        for _ in range(20):
            llm.llm_engine.step()
    ratios = []
    for turn in range(repeats * 4):
        taken = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            taken[which] = _timed(engines[which])
        ratios.append(taken[1] / taken[0])
    for llm in engines:
        _close(llm)
    return [_figure("overhead", statistics.median(ratios), {"requests": 8, "context": 512}, _spread(ratios))]


def _timed(llm: Any) -> float:
    begin = time.process_time()
    llm.llm_engine.step()
    return time.process_time() - begin


def first_token(model: Path, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """One prompt at a time, in turn on both engines; ours compresses before its first token is out.

    The window's queries attend once more, 32 rows against all: a share that falls with the length of the prompt.
    """
    figures = []
    for name, length in (("first-token-1k", PROMPT), ("first-token-3k", 3 * PROMPT)):
        options = {"max_model_len": length + 64, "max_num_batched_tokens": length + 64}
        engines = [_engine(model, 400, None, **options), _engine(model, 400, SNAPKV, **options)]
        given, ratios = _prompts(8, length), []
        for turn in range(repeats + 2):
            taken = [0.0, 0.0]
            for which in (0, 1) if turn % 2 else (1, 0):
                _add(engines[which], f"{turn}", given[turn % 8], 1)
                while engines[which].llm_engine.has_unfinished_requests():
                    taken[which] += _timed(engines[which])
            ratios.append(taken[1] / taken[0])
        for llm in engines:
            _close(llm)
        ratios = ratios[2:]
        figures.append(_figure(name, statistics.median(ratios), {"prompt": length, **SNAPKV}, _spread(ratios)))
    return figures


def restart(model: Path, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """A process writes prefixes to a folder and ends; a second one reads them, a third one starts without."""
    store = str(folder / "store")
    _run_child({"model": str(model), "store": store, "n": 12})
    warm = _run_child({"model": str(model), "store": store, "n": 12})
    cold = _run_child({"model": str(model), "store": str(folder / "empty"), "n": 12})
    ratios = [w / c for w, c in zip(warm["seconds"], cold["seconds"], strict=True)][2:]
    detail = {**_spread(ratios), "cached_tokens": warm["cached"], "without": cold["cached"]}
    setting = {"prompt": PROMPT, "stored_prefix": warm["cached"][-1], "after": "a new process, disk store"}
    return [_figure("restart", statistics.median(ratios), setting, detail)]


def _run_child(what: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", json.dumps(what)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("CHILD ")]
    if not lines:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    return json.loads(lines[0][6:])


def _child(what: dict[str, Any]) -> dict[str, Any]:
    """Time to first token of prompts that share nothing; the first two warm the process up."""
    transfer = {
        "kv_connector": "RemnantConnector",
        "kv_connector_module_path": "remnant_vllm.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"path": what["store"], "host_bytes": 2**26, "disk_bytes": 2**30},
    }
    llm = _engine(Path(what["model"]), 400, None, kv_transfer_config=transfer)
    seconds, cached = [], []
    for i, prompt in enumerate(_prompts(what["n"])):
        begin = time.perf_counter()
        _add(llm, str(i), prompt, 1)
        out = []
        while llm.llm_engine.has_unfinished_requests():
            out += llm.llm_engine.step()
        seconds.append(time.perf_counter() - begin)
        cached.append(out[-1].num_cached_tokens)
        for _ in range(3):
            llm.llm_engine.step()
    _close(llm)
    return {"seconds": seconds, "cached": cached}


RUN = {"load": load, "overhead": overhead, "first-token": first_token, "restart": restart}


def _spread(ratios: list[float]) -> dict[str, Any]:
    low, *_, high = statistics.quantiles(ratios, n=5)
    return {"p20": round(low, 4), "p80": round(high, 4), "pairs": len(ratios)}


def _figure(name: str, value: float, setting: dict[str, Any], detail: dict[str, Any]) -> dict[str, Any]:
    what, relation, limit = TARGETS[name]
    met = None if limit is None else value >= limit if relation == ">=" else value <= limit
    wanted = f"{relation} {limit}" if limit is not None else "none"
    return {"case": name, "what": what, "ratio": round(value, 4), "target": wanted, "met": met, **_about(),
            "setting": setting, "detail": detail}  # fmt: skip


def _about() -> dict[str, Any]:
    import platform

    import torch
    import transformers
    import vllm

    sha = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": f"CPU ({platform.machine()}), 1 thread",
        "model": "testbed (1 M parameters), float32",
        "versions": {"vllm": vllm.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "git": sha.stdout.strip(),
        "command": "python benchmarks/serving.py " + " ".join(sys.argv[1:]),
    }


def _write(path: Path, figures: list[dict[str, Any]]) -> None:
    fresh = {figure["case"] for figure in figures}
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    kept = [row for row in old if row["case"] not in fresh]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in kept + figures))


if __name__ == "__main__":
    sys.exit(main())
