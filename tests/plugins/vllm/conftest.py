"""Real engines in this process: one import, many engines, tiny checkpoints with random weights."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("vllm") is None:  # it has an environment of its own; see `make test-vllm`
    collect_ignore_glob = ["test_*.py"]

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

BLOCK = 32


@pytest.fixture(scope="session", autouse=True)
def one_scan() -> None:
    """vLLM scans all modules for Triton overrides with every engine, and trips over llvmlite the second time."""
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.register_triton_kernel_overrides.__func__  # pyright: ignore[reportFunctionMemberAccess]
    done: list[bool] = []

    def once(cls: type) -> None:
        if not done:
            done.append(True)
            original(cls)

    CpuPlatform.register_triton_kernel_overrides = classmethod(once)


@dataclass
class Engine:
    """A running engine, with the parts that tests look into."""

    llm: Any
    steps: int = 0
    most_running: int = 0
    most_used: int = 0
    preemptions: dict[str, int] = field(default_factory=dict[str, int])
    cached: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def scheduler(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core.scheduler

    @property
    def pool(self) -> Any:
        return self.scheduler.kv_cache_manager.block_pool

    @property
    def managers(self) -> Any:
        return self.scheduler.kv_cache_manager.coordinator.single_type_managers

    @property
    def runner(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner

    @property
    def free(self) -> int:
        return self.pool.get_num_free_blocks()

    def run(
        self,
        prompts: list[list[int]],
        new: int = 24,
        extra: list[dict[str, Any] | None] | None = None,
        watch: Callable[[Engine], None] | None = None,
        **sampling: Any,
    ) -> list[list[int]]:
        """Greedy tokens per prompt, all requests at once, driven step by step; none for an aborted one."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        engine = self.llm.llm_engine
        options = {"max_tokens": new, "temperature": 0, "ignore_eos": True, "detokenize": False, **sampling}
        for i, prompt in enumerate(prompts):
            params = SamplingParams(**options, extra_args=extra[i] if extra else None)
            engine.add_request(str(i), TokensPrompt(prompt_token_ids=prompt), params)
        done: dict[int, list[int]] = {}
        while engine.has_unfinished_requests():
            for name, request in self.scheduler.requests.items():
                self.preemptions[name.split("-")[0]] = request.num_preemptions
            for out in engine.step():
                if out.finished:
                    done[int(out.request_id.split("-")[0])] = list(out.outputs[0].token_ids)
                    self.cached[out.request_id.split("-")[0]] = out.num_cached_tokens or 0
            self.steps += 1
            self.most_running = max(self.most_running, len(self.scheduler.running))
            self.most_used = max(self.most_used, self.pool.num_gpu_blocks - 1 - self.free)
            if watch is not None:
                watch(self)
        engine.step()  # an empty step hands the last requests' ids to the worker
        return [done.get(i, []) for i in range(len(prompts))]


@pytest.fixture
def engine() -> Iterator[Callable[..., Engine]]:
    """Make engines; each is shut down at the end of its test."""
    made: list[Engine] = []

    def make(model: Path | str, remnant: dict[str, Any] | None = None, blocks: int = 65, **kwargs: Any) -> Engine:
        from transformers import AutoConfig
        from vllm import LLM

        while made:
            _stop(made.pop())
        config: Any = AutoConfig.from_pretrained(model)
        config = config.get_text_config()
        page = 2 * BLOCK * config.num_key_value_heads * config.head_dim * 4
        options: dict[str, Any] = {
            "skip_tokenizer_init": True,
            "enforce_eager": True,
            "dtype": "float32",
            "block_size": BLOCK,
            "max_model_len": 1024,
            "max_num_seqs": 16,
            "enable_prefix_caching": False,
            "kv_cache_memory_bytes": blocks * page * config.num_hidden_layers,
            "disable_log_stats": False,
        }
        if remnant is not None:
            options |= {"attention_backend": "CUSTOM", "additional_config": {"remnant": remnant}}
        made.append(Engine(LLM(str(model), **{**options, **kwargs})))
        return made[-1]

    yield make
    while made:
        _stop(made.pop())


def _stop(engine: Engine) -> None:
    engine.llm.llm_engine.engine_core.shutdown()
    engine.llm = None
    gc.collect()


def tiny(folder: Path, kind: str) -> Path:
    """A random checkpoint of an architecture; weights are large enough that its greedy answers differ."""
    import torch
    import transformers

    shape: Any = {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    if kind == "gemma3":
        config: Any = transformers.Gemma3TextConfig(
            **shape | {"num_hidden_layers": 4},
            sliding_window=64,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )
        cls: Any = transformers.Gemma3ForCausalLM
    elif kind == "qwen3":
        config, cls = transformers.Qwen3Config(**shape), transformers.Qwen3ForCausalLM
    else:
        config, cls = transformers.LlamaConfig(**shape), transformers.LlamaForCausalLM
    torch.manual_seed(0)
    path = folder / kind
    cls(config).float().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny random checkpoint: `llama`, `qwen3` or `gemma3`."""
    folder, made = tmp_path_factory.mktemp("checkpoints"), {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny(folder, kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def prompts() -> Callable[..., list[list[int]]]:
    """Random token ids of given lengths; the same for the same arguments."""

    def make(*lengths: int, seed: int = 1, vocab: int = 512) -> list[list[int]]:
        import torch

        source = torch.Generator().manual_seed(seed)
        return [torch.randint(1, vocab, (n,), generator=source).tolist() for n in lengths]

    return make


_MODELS: dict[Path, Any] = {}


@pytest.fixture(scope="session")
def in_hf() -> Callable[..., list[int]]:
    """Greedy tokens of Hugging Face for one prompt."""
    return _in_hf


def _in_hf(
    model: Path,
    prompt: list[int],
    new: int,
    policy: Any = None,
    budget: int = 0,
    prefill_block: int | None = None,
    **options: Any,
) -> list[int]:
    """With a `RemnantCache` when a policy is given, in blocks when a size is."""
    import torch
    from transformers import AutoModelForCausalLM

    from remnant_hf import RemnantCache

    if model not in _MODELS:
        _MODELS[model] = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    hf = _MODELS[model]
    cache, chunks = None, {}
    if policy:
        cache = RemnantCache(hf.config, policy, budget=budget, prefill_block=prefill_block, **options)
        chunks = {"prefill_chunk_size": prefill_block} if prefill_block else {}
    given = torch.tensor([prompt])
    with torch.no_grad():
        out = hf.generate(
            given,
            attention_mask=torch.ones_like(given),
            past_key_values=cache,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            **chunks,
        )
    return out[0, len(prompt) :].tolist()
