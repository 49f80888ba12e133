"""Sampling with drafts: the first tokens of thousands of answers have the joint distribution of the model alone.

With 100,000 answers, RAPID and eviction: `benchmarks/drafting_samples.py`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="needs the folder benchmarks of a clone"),
]

SAMPLES = 1000
# Everything that matches is proposed, so that many drafts are wrong: what replaces them is what this is about.
EAGER = {"remnant": {"lookup": {"min_match": 1, "min_share": 0.0}}}
LOOKUP = {"method": "custom_class", "model": "remnant_vllm.LookupDrafter", "num_speculative_tokens": 3}


@pytest.fixture
def lib(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the benchmark draws and compares with."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("drafting_samples_lib")


def test_joint_distribution_of_the_first_tokens(engine: Any, lib: Any, tmp_path: Path) -> None:
    """Half of the requests have generators of their own, which take another way through vLLM's sampler."""
    # All prompts of a batch fit into one step: on the CPU, vLLM's seeded requests cannot be read in parts.
    sizes = {"blocks": 900, "max_model_len": 96, "max_num_seqs": 256, "max_num_batched_tokens": 18432}
    small = lib.make(tmp_path / "small")
    running = engine(small, speculative_config=LOOKUP, additional_config=EAGER, **sizes)
    hf = lib.in_hf(small)
    prompt = lib.written(hf)
    drawn = [lib.draw(running.llm, prompt, lib.MIXED, SAMPLES // 2, seeds) for seeds in (None, 0)]
    values = {m.name: m.value for m in running.llm.get_metrics() if hasattr(m, "value")}
    proposed = values["vllm:spec_decode_num_draft_tokens"]
    accepted = values["vllm:spec_decode_num_accepted_tokens"]
    assert 0.05 * proposed < accepted < 0.8 * proposed, "both ways out of a draft are taken often"
    for i, setting in enumerate(lib.MIXED):
        counts = lib.counted(drawn[0][i] + drawn[1][i])
        assert abs(lib.deviation(counts, lib.joint(hf, prompt, setting))) < 4
        warmer = lib.Setting(1.5 * setting.temperature, setting.top_k, setting.top_p)
        assert lib.deviation(counts, lib.joint(hf, prompt, warmer)) > 6, "a test that finds a wrong distribution"


def test_greedy_rows_beside_sampled_ones(engine: Any, lib: Any, tmp_path: Path) -> None:
    """A batch of both goes through one sampler; the greedy ones give what they give alone."""
    small = lib.make(tmp_path / "small")
    prompt = lib.written(lib.in_hf(small))
    wanted = engine(small, max_model_len=256).run([prompt], lib.DEEP + 1)[0]
    running = engine(small, max_model_len=256, speculative_config=LOOKUP, additional_config=EAGER)
    greedy, sampled = lib.draw(running.llm, prompt, [lib.Setting(0.0), lib.Setting(0.7, top_p=0.9)], 40, seeds=0)
    assert greedy == [wanted] * 40
    assert len(set(map(tuple, sampled))) > 1


def test_prompts_that_are_cached_but_for_their_last_token(engine: Any, lib: Any, tmp_path: Path) -> None:
    """vLLM pads such a request with drafts of -1 when it joins others; none of them may ever be accepted."""
    sizes = {"blocks": 400, "max_model_len": 96, "max_num_seqs": 64, "max_num_batched_tokens": 4608}
    small = lib.make(tmp_path / "small")
    hf = lib.in_hf(small)
    prompt = lib.written(hf, 33)  # a block and a token
    running = engine(small, speculative_config=LOOKUP, additional_config=EAGER, enable_prefix_caching=True, **sizes)
    padded: list[int] = []
    original = running.runner.execute_model

    def watched(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        padded.append(sum(min(drafts) < 0 for drafts in scheduled.scheduled_spec_decode_tokens.values()))
        return original(scheduled, *args, **kwargs)

    running.runner.execute_model = watched
    setting = lib.Setting(1.2, top_p=0.8)
    for seeds in (None, 0):
        answers = lib.draw(running.llm, prompt, [setting], SAMPLES, seeds, waiting=96)[0]
        assert abs(lib.deviation(lib.counted(answers), lib.joint(hf, prompt, setting))) < 4
    assert sum(padded) > SAMPLES, "most requests are padded"


def test_padding_ends_a_block() -> None:
    """After what was accepted, one token of the target's own; nothing where the block had ended before."""
    import torch

    from remnant_vllm._compat.sampler import stop_at_padding

    out = torch.tensor([[4, 2, 0, 1], [3, -1, -1, -1], [5, 6, 7, 1], [2, 0, 9, -1]], dtype=torch.int32)
    drafts = torch.tensor([4, -1, -1, 0, -1, -1, 5, 6, 7, -1, -1])
    logits = torch.full((11, 10), -torch.inf)
    logits[torch.arange(11), torch.arange(11) % 10] = 0.0
    metadata = SimpleNamespace(all_greedy=False, temperature=torch.tensor([1.0, 1.0, 1.0, 0.0]), generators={})
    stop_at_padding(out, drafts, [3, 3, 3, 2], logits, metadata)
    assert out.tolist() == [[4, 1, -1, -1], [3, -1, -1, -1], [5, 6, 7, 1], [2, -1, -1, -1]]
