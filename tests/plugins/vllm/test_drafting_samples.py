"""Sampling with drafts: the first tokens of thousands of answers have the joint distribution of the model alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.vllm

VOCAB, DEEP, SAMPLES = 8, 3, 4000
TEMPERATURE, TOP_K = 0.9, 6
# Everything that matches is proposed, so that many drafts are wrong: what replaces them is what this is about.
EAGER = {"remnant": {"lookup": {"min_match": 1, "min_share": 0.0}}}
PLAIN: Any = {"ignore_eos": True, "detokenize": False}
LOOKUP = {"method": "custom_class", "model": "remnant_vllm.LookupDrafter", "num_speculative_tokens": 3}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tokens, and weights large enough that no distribution is flat."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    path = tmp_path_factory.mktemp("small") / "model"
    LlamaForCausalLM(config).float().save_pretrained(path)
    return path


def in_hf(model: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def written(hf: Any, length: int = 60) -> list[int]:
    """A text that the model itself has sampled, so that what followed before is often what follows again."""
    import torch

    source, text = torch.Generator().manual_seed(1), [1]
    while len(text) < length:
        with torch.no_grad():
            p = hf(torch.tensor([text])).logits[0, -1].softmax(-1)
        text.append(int(torch.multinomial(p, 1, generator=source)))
    return text


def joint(hf: Any, prompt: list[int], temperature: float) -> list[float]:
    """Probability of every triple of tokens after the prompt, triples in order."""
    import torch

    pairs = torch.tensor([[*prompt, *pair] for pair in itertools.product(range(VOCAB), repeat=DEEP - 1)])
    with torch.no_grad():
        logits = hf(pairs).logits[:, -DEEP:].double()
    least = logits.topk(TOP_K).values[..., -1:]
    p = (logits.masked_fill(logits < least, -torch.inf) / temperature).log_softmax(-1)
    n = len(prompt)
    whole = p[:, 0].gather(1, pairs[:, n : n + 1]) + p[:, 1].gather(1, pairs[:, n + 1 : n + 2]) + p[:, 2]
    return whole.exp().flatten().tolist()


def deviation(counts: list[int], wanted: list[float]) -> float:
    """Chi-square of the counts, as a standard normal deviate (Wilson and Hilferty); rare cells count as one."""
    total = sum(counts)
    assert not sum(count for count, p in zip(counts, wanted, strict=True) if not p), "tokens that are not allowed"
    rare = [i for i, p in enumerate(wanted) if 0 < total * p < 5]
    cells = [(counts[i], total * p) for i, p in enumerate(wanted) if total * p >= 5]
    cells.append((sum(counts[i] for i in rare), total * sum(wanted[i] for i in rare)))
    chi = sum((seen - expected) ** 2 / expected for seen, expected in cells if expected)
    free = len(cells) - 1
    assert free > 50
    return ((chi / free) ** (1 / 3) - 1 + 2 / (9 * free)) / (2 / (9 * free)) ** 0.5


def test_joint_distribution_of_the_first_tokens(engine: Any, small: Path) -> None:
    """Half of the requests have generators of their own, which take another way through vLLM's sampler."""
    # All prompts of a batch fit into one step: on the CPU, vLLM's seeded requests cannot be read in parts.
    sizes = {"blocks": 600, "max_model_len": 96, "max_num_seqs": 256, "max_num_batched_tokens": 16384}
    running = engine(small, speculative_config=LOOKUP, additional_config=EAGER, **sizes)
    hf, counts = in_hf(small), [0] * VOCAB**DEEP
    prompt = written(hf)
    for seeded in (False, True):
        for tokens in sample(running, prompt, SAMPLES // 2, seeded):
            first, second, third = tokens[:DEEP]
            counts[(first * VOCAB + second) * VOCAB + third] += 1
    values = {m.name: m.value for m in running.llm.get_metrics() if hasattr(m, "value")}
    proposed = values["vllm:spec_decode_num_draft_tokens"]
    accepted = values["vllm:spec_decode_num_accepted_tokens"]
    assert 0.05 * proposed < accepted < 0.8 * proposed, "both ways out of a draft are taken often"
    assert abs(deviation(counts, joint(hf, prompt, TEMPERATURE))) < 4
    assert deviation(counts, joint(hf, prompt, 1.2)) > 6, "a test that finds a wrong distribution"


def sample(running: Any, prompt: list[int], number: int, seeded: bool) -> list[list[int]]:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    llm = running.llm.llm_engine
    for i in range(number):
        seed = i if seeded else None
        params = SamplingParams(max_tokens=DEEP + 1, temperature=TEMPERATURE, top_k=TOP_K, seed=seed, **PLAIN)
        llm.add_request(f"{seeded}-{i}", TokensPrompt(prompt_token_ids=prompt), params)
    done: list[list[int]] = []
    while llm.has_unfinished_requests():
        done += [list(out.outputs[0].token_ids) for out in llm.step() if out.finished]
    llm.step()
    assert len(done) == number
    return done


def test_greedy_rows_beside_sampled_ones(engine: Any, small: Path) -> None:
    """A batch of both goes through one sampler; the greedy ones give what they give alone."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    prompt = written(in_hf(small))
    wanted = engine(small, max_model_len=256).run([prompt], 60)[0]
    running = engine(small, max_model_len=256, speculative_config=LOOKUP, additional_config=EAGER)
    llm = running.llm.llm_engine
    for i in range(12):
        params = SamplingParams(max_tokens=60, temperature=0.7 * (i % 2), top_p=0.9, seed=i, **PLAIN)
        llm.add_request(str(i), TokensPrompt(prompt_token_ids=prompt), params)
    done: dict[int, list[int]] = {}
    while llm.has_unfinished_requests():
        done |= {int(o.request_id.split("-")[0]): list(o.outputs[0].token_ids) for o in llm.step() if o.finished}
    llm.step()
    assert [done[i] for i in range(0, 12, 2)] == [wanted] * 6
    assert len({tuple(done[i]) for i in range(1, 12, 2)}) > 1
