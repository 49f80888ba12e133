"""The counters against what the scheduler really gave back, and the line that an engine starts with."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remnant_vllm import metrics

# pyright: reportMissingImports=false

pytestmark = pytest.mark.vllm

BLOCK, BUDGET = 32, 128
Prompts = Callable[..., list[list[int]]]


@pytest.fixture(autouse=True)
def _installed() -> None:
    metrics.install()


def settings(mode: str, **more: Any) -> dict[str, Any]:
    return {"policy": "snapkv", "budget": BUDGET, "mode": mode, "window": 8, **more}


class Reading:
    """The counters of an engine since this object was made."""

    def __init__(self, model: Any) -> None:
        self.labels = {"model_name": str(model), "engine": "0"}
        self.before = self.now()

    def now(self) -> dict[str, float]:
        from prometheus_client import REGISTRY

        return {name: REGISTRY.get_sample_value(f"{name}_total", self.labels) or 0.0 for name in metrics.COUNTERS}

    def __call__(self) -> tuple[float, float, float]:
        evicted, freed, saved = (self.now()[name] - self.before[name] for name in metrics.COUNTERS)
        return evicted, freed, saved


def freed(running: Any) -> int:
    """Blocks that the managers of an engine have given back early."""
    return sum(getattr(manager, "freed", 0) for manager in running.managers)


def block_bytes(running: Any) -> int:
    config = running.scheduler.kv_cache_config
    return max(tensor.size for tensor in config.kv_cache_tensors) // config.num_blocks


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("mode", ["prompt", "stream"])
def test_counters_are_what_the_scheduler_did(
    engine: Any, checkpoints: Any, prompts: Prompts, kind: str, mode: str
) -> None:
    """Requests of several lengths, two with wishes of their own; chunks of 200 tokens."""
    model = checkpoints(kind)
    running = engine(model, settings(mode), 140, max_num_batched_tokens=200)
    reading = Reading(model)
    extra: list[Any] = [None, {"remnant": {"budget": 64}}, None, None]
    if mode == "prompt":
        extra[3] = {"remnant": {"off": True}}
    running.run(prompts(600, 300, 100, 500), 40, extra=extra)
    evicted, blocks, saved = reading()
    assert blocks == freed(running) > 0
    assert saved == blocks * block_bytes(running)
    if mode == "prompt":
        assert evicted == (600 - BUDGET) // BLOCK * BLOCK + (300 - 64) // BLOCK * BLOCK
    else:
        totals = [(600, BUDGET), (300, 64), (100, BUDGET), (500, BUDGET)]
        assert evicted == sum((n + 39 - budget) // BLOCK * BLOCK for n, budget in totals)


def test_counted_when_it_happens(engine: Any, checkpoints: Any, prompts: Prompts) -> None:
    """Nothing while the prompt is read, tokens with the first output, blocks with the second, and no more."""
    model = checkpoints("llama")
    running = engine(model, settings("prompt"), max_num_batched_tokens=200)
    reading, seen = Reading(model), list[tuple[float, float]]()
    running.run(prompts(600), 5, watch=lambda _: seen.append(reading()[:2]))
    assert seen == [(0, 0), (0, 0), (448, 0), (448, 14), (448, 14), (448, 14), (448, 14)]


def test_one_token_gives_nothing_back_early(engine: Any, checkpoints: Any, prompts: Prompts) -> None:
    model = checkpoints("llama")
    running = engine(model, settings("prompt"))
    reading = Reading(model)
    running.run(prompts(600), 1)
    assert reading()[:2] == (448, 0)
    assert freed(running) == 0


def test_aborted_requests_count(engine: Any, checkpoints: Any, prompts: Prompts) -> None:
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import SamplingParams

    model = checkpoints("llama")
    running = engine(model, settings("prompt"))
    reading, inner = Reading(model), running.llm.llm_engine
    params = SamplingParams(max_tokens=100, ignore_eos=True, detokenize=False)
    inner.add_request("a", TokensPrompt(prompt_token_ids=prompts(600)[0]), params)
    for _ in range(4):
        inner.step()
    inner.abort_request(["a"])
    inner.step()
    assert reading()[:2] == (448, 14) == (448, freed(running))


def test_several_answers_count_each(engine: Any, checkpoints: Any, prompts: Prompts) -> None:
    """Children of one request have one outer id; each evicts its own copy of the prompt."""
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import SamplingParams

    model = checkpoints("llama")
    running = engine(model, settings("prompt"))
    reading, inner = Reading(model), running.llm.llm_engine
    params = SamplingParams(
        max_tokens=4, n=2, seed=0, ignore_eos=True, detokenize=False, extra_args={"remnant": {"budget": 64}}
    )
    inner.add_request("a", TokensPrompt(prompt_token_ids=prompts(400)[0]), params)
    while inner.has_unfinished_requests():
        inner.step()
    assert reading()[:2] == (2 * 320, 20) == (2 * 320, freed(running))


def test_inert_without_the_flag(engine: Any, checkpoints: Any, prompts: Prompts) -> None:
    model = checkpoints("llama")
    running = engine(model)
    loggers = running.llm.llm_engine.logger_manager.stat_loggers
    assert not any("remnant" in repr(vars(logger)) for logger in loggers)
    reading = Reading(model)
    logger = metrics.StatLogger(running.llm.llm_engine.vllm_config)
    running.run(prompts(600), 4)
    logger.record(None, None)
    logger.log_engine_initialized()
    assert reading() == (0, 0, 0)
    assert vars(logger) == {"settings": None}


def test_statistics_that_are_off_stay_off(engine: Any, checkpoints: Any, prompts: Prompts) -> None:
    model = checkpoints("llama")
    running = engine(model, settings("prompt"), disable_log_stats=True)
    reading = Reading(model)
    running.run(prompts(600), 4)
    assert running.llm.llm_engine.logger_manager is None
    assert reading() == (0, 0, 0)


def test_a_logger_is_joined_once(engine: Any, checkpoints: Any) -> None:
    from vllm.v1.metrics.loggers import StatLoggerManager

    running = engine(checkpoints("llama"), settings("prompt"))
    config = running.llm.llm_engine.vllm_config
    for given in (None, [metrics.StatLogger]):
        found = StatLoggerManager(config, custom_stat_loggers=given, enable_default_loggers=False).stat_loggers
        assert len(found) == 2  # ours and vLLM's own for Prometheus


@pytest.fixture
def other_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release whose statistics are called in another way."""
    from vllm.v1.metrics.stats import IterationStats

    monkeypatch.setattr(IterationStats, "update_from_output", lambda self, somehow: None)


@pytest.mark.usefixtures("other_vllm")
def test_other_statistics_mean_a_warning_and_no_metrics(caplog: pytest.LogCaptureFixture) -> None:
    metrics.install()
    assert "no metrics, because IterationStats.update_from_output is not what it was" in caplog.text


def test_a_configuration_of_its_own_kind_means_a_warning_and_no_metrics(
    engine: Any, checkpoints: Any, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    model = checkpoints("llama")
    running = engine(model, settings("prompt"))
    config = running.llm.llm_engine.vllm_config
    layers, config.model_config.hf_text_config.num_hidden_layers = 2, 0
    logger = metrics.StatLogger(config)
    config.model_config.hf_text_config.num_hidden_layers = layers
    assert "no metrics for this model" in caplog.text
    assert logger.settings is None


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (
            "llama",
            "remnant: policy snapkv keeps 128 tokens per KV head (mode prompt, blocks of 32, window=8); "
            "evicts in 2 layers (0-1)",
        ),
        (
            "gemma3",
            "remnant: policy snapkv keeps 128 tokens per KV head (mode prompt, blocks of 32, window=8); "
            "evicts in 2 layers (1, 3); left alone: 2 with a sliding window",
        ),
    ],
)
def test_startup_line(engine: Any, checkpoints: Any, kind: str, wanted: str, caplog: Any) -> None:
    from remnant_vllm.report import report_once, startup_line
    from remnant_vllm.spec import RemnantSpec

    running = engine(checkpoints(kind), settings("prompt"), blocks=140)
    groups = running.scheduler.kv_cache_config.kv_cache_groups
    spec = next(group.kv_cache_spec for group in groups if isinstance(group.kv_cache_spec, RemnantSpec))
    config = running.runner.vllm_config
    assert startup_line(config, spec) == wanted
    config._remnant_reported = False
    with caplog.at_level("INFO", logger="vllm.remnant"):
        report_once(config, spec)
        report_once(config, spec)
    assert caplog.text.count(wanted) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_metrics_of_a_server_with_two_front_ends(checkpoints: Any, prompts: Prompts, tmp_path: Path) -> None:
    """`/metrics` sums over both processes, whichever of them a request or the question about metrics comes to."""
    httpx = pytest.importorskip("httpx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoints("llama")),
        "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", address.rsplit(":", 1)[1], "--dtype", "float32",
        "--enforce-eager", "--block-size", str(BLOCK), "--max-model-len", "1024", "--max-num-seqs", "8",
        "--kv-cache-memory-bytes", str(2**24), "--skip-tokenizer-init", "--api-server-count", "2",
        "--attention-backend", "CUSTOM", "--additional-config", json.dumps({"remnant": settings("prompt")}),
    ]  # fmt: skip
    env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO", "OMP_NUM_THREADS": "1"}
    log = tmp_path / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        end = time.monotonic() + 400
        while True:
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < end, log.read_text()[-4000:]
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                    break
            time.sleep(1)
        for prompt in prompts(600, 500, 300, 100, 400, 600):
            body = {"model": "tiny", "prompt": prompt, "max_tokens": 4, "ignore_eos": True, "detokenize": False}
            answer = httpx.post(f"{address}/v1/completions", json=body, timeout=120)
            assert answer.status_code == 200, answer.text
        gone = sum((n - BUDGET) // BLOCK for n in (600, 500, 300, 400, 600))
        for _ in range(4):
            text = httpx.get(f"{address}/metrics", timeout=30).text
            found = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("remnant:"))
            labels = '{engine="0",model_name="tiny"}'
            assert float(found[f"remnant:evicted_tokens_total{labels}"]) == gone * BLOCK
            assert float(found[f"remnant:freed_blocks_total{labels}"]) == gone
            assert float(found[f"remnant:kv_bytes_saved_total{labels}"]) == gone * 2 * 2 * BLOCK * 2 * 32 * 4
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
