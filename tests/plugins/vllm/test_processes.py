"""As it is deployed: separate processes, several ranks, an HTTP server that is killed and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from remnant.kv import get_policy
from remnant.kv.pace import paced

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
BLOCK, BUDGET = 32, 128
ENV = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "INFO",
}

RANKS = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
if __name__ == "__main__":
    model, given = json.loads(sys.argv[1])
    llm = LLM(
        model, skip_tokenizer_init=True, enforce_eager=True, dtype="float32", block_size=32, max_model_len=1024,
        kv_cache_memory_bytes=64 * 32 * 256 * 2, max_num_seqs=4, tensor_parallel_size=2, attention_backend="CUSTOM",
        additional_config={"remnant": {"policy": "snapkv", "budget": 128, "mode": "prompt", "window": 32}},
    )
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, detokenize=False)
    outs = llm.generate([TokensPrompt(prompt_token_ids=p) for p in given], params, use_tqdm=False)
    print("TOKENS", json.dumps([list(o.outputs[0].token_ids) for o in outs]), flush=True)
"""


@pytest.mark.timeout(600)
def test_two_ranks_in_processes_of_their_own(tmp_path: Path, checkpoints: Any, prompts: Any, in_hf: Any) -> None:
    """Engine core and both ranks are separate processes; each rank keeps tokens of its own heads."""
    model, given = checkpoints("llama"), prompts(600, 300)
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    done = subprocess.run(
        [sys.executable, str(script), json.dumps([str(model), given])],
        env=ENV, capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if "TOKENS" in line]
    assert found, done.stdout[-3000:] + done.stderr[-3000:]
    policy = paced(get_policy("snapkv", window=32), "prompt", BLOCK)
    wanted = [in_hf(model, prompt, 24, policy, BUDGET) for prompt in given]
    assert json.loads(found[0].split("TOKENS ")[1]) == wanted


@contextmanager
def server(model: Path, store: Path, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The HTTP server with the flags of the README; yields its address and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    transfer = {
        "kv_connector": "RemnantConnector",
        "kv_connector_module_path": "remnant_vllm.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"path": str(store), "host_bytes": 2**24, "disk_bytes": 2**28},
    }
    remnant = {"policy": "snapkv", "budget": BUDGET, "mode": "prompt", "window": 32}
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--enforce-eager", "--block-size", "32",
        "--max-model-len", "1152", "--max-num-seqs", "16", "--kv-cache-memory-bytes", str(2**26),
        "--no-enable-prefix-caching", "--attention-backend", "CUSTOM",
        "--additional-config", json.dumps({"remnant": remnant}), "--kv-transfer-config", json.dumps(transfer),
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=ENV, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}", process
    finally:
        with_children(process, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            with_children(process, signal.SIGKILL)


def with_children(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    try:
        os.killpg(process.pid, how)
    except ProcessLookupError:
        return


def wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import httpx

    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-4000:])


def counters(address: str) -> dict[str, float]:
    """Sum per metric name over labels."""
    import httpx

    out: dict[str, float] = {}
    for line in httpx.get(f"{address}/metrics", timeout=30).text.splitlines():
        if line.startswith("#") or " " not in line:
            continue
        name, value = line.rsplit(" ", 1)
        out[name.split("{")[0]] = out.get(name.split("{")[0], 0.0) + float(value)
    return out


@pytest.mark.timeout(900)
def test_a_server_that_is_killed_and_comes_back(tmp_path: Path, in_hf: Any) -> None:
    """Driven by the official client: streaming and not, sixteen at once; after a kill the store has the prefixes."""
    import openai

    from remnant.testbed import BENCHMARK_SEED_BASE, make_examples
    from remnant.testbed.model import export

    model = export(tmp_path / "model")
    given = [e.tokens().tolist()[:900] for e in make_examples("recall", 1024, 4, BENCHMARK_SEED_BASE + 8)]
    given = [prompt[: 900 - 37 * i] for i in range(4) for prompt in given]
    policy = paced(get_policy("snapkv", window=32), "prompt", BLOCK)
    wanted = [in_hf(model, prompt, 16, policy, BUDGET) for prompt in given]
    options = {"model": "tiny", "max_tokens": 16, "temperature": 0}
    extra = {"ignore_eos": True, "return_token_ids": True}

    def ask(client: Any, prompt: list[int], stream: bool) -> list[int]:
        answer = client.completions.create(prompt=prompt, stream=stream, extra_body=extra, **options)
        if not stream:
            return list(answer.choices[0].token_ids)
        return [token for part in answer for token in part.choices[0].token_ids or []]

    store = tmp_path / "store"
    with server(model, store, tmp_path / "first.log") as (address, process):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=120)
        with ThreadPoolExecutor(16) as pool:
            got = list(pool.map(lambda i: ask(client, given[i], i % 2 == 0), range(16)))
        assert got == wanted
        seen = counters(address)
        assert seen["remnant:evicted_tokens_total"] == sum((len(p) - BUDGET) // BLOCK * BLOCK for p in given)
        with pytest.raises(openai.BadRequestError, match="budget=0"):
            client.completions.create(
                prompt=[1, 2, 3], extra_body={"vllm_xargs": {"remnant": '{"budget": 0}'}}, **options
            )
        time.sleep(3)
        with_children(process, signal.SIGKILL)
        process.wait(30)
    with server(model, store, tmp_path / "second.log") as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=120)
        assert [ask(client, prompt, False) for prompt in given[:4]] == wanted[:4]
        seen = counters(address)
        hits = {name: value for name, value in seen.items() if "remnant" in name and "hit" in name}
        assert any(value > 0 for value in hits.values()), seen
        assert "remnant:" in (tmp_path / "second.log").read_text()
