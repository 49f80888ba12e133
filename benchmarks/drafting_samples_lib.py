"""What is sampled, what should come out, and how far it is from that: for `drafting_samples` and the tests of samples.

The target has eight tokens, so that all 512 beginnings of three tokens can be counted and their probabilities computed.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "DEEP",
    "MIXED",
    "VOCAB",
    "Setting",
    "compressed",
    "counted",
    "deviation",
    "draw",
    "in_hf",
    "joint",
    "make",
    "variation",
    "written",
]

VOCAB, DEEP = 8, 3
PLAIN: Any = {"ignore_eos": True, "detokenize": False}


@dataclass(frozen=True)
class Setting:
    """How a request samples."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


MIXED = (Setting(0.9, 6), Setting(1.2, top_p=0.8), Setting(0.7, 7, 0.95), Setting(1.0))
"""Requests of all four stand side by side in a batch, so that each must meet its own."""


def make(folder: Path, seed: int = 5, kind: str = "Llama", **changes: Any) -> Path:
    """A random checkpoint whose weights are large enough that no distribution is flat.

    Args:
        folder: where it is written.
        seed: of the weights.
        kind: name of the architecture in transformers.
        changes: to the configuration.
    """
    import torch
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
        "initializer_range": 0.15, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
        "tie_word_embeddings": False,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**{**shape, **changes})
    torch.manual_seed(seed)
    getattr(transformers, f"{kind}ForCausalLM")(config).float().save_pretrained(folder)
    return folder


def in_hf(model: Path) -> Any:
    """The checkpoint in transformers, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def written(hf: Any, length: int = 60, seed: int = 1) -> list[int]:
    """A text that the model itself has sampled, so that what followed before is often what follows again."""
    import torch

    source, text = torch.Generator().manual_seed(seed), [1]
    while len(text) < length:
        with torch.no_grad():
            p = hf(torch.tensor([text])).logits[0, -1].softmax(-1)
        text.append(int(torch.multinomial(p, 1, generator=source)))
    return text


def joint(hf: Any, prompt: list[int], setting: Setting, logits: Any = None) -> list[float]:
    """Probability of every triple of tokens after the prompt.

    Args:
        hf: the target.
        prompt: token ids.
        setting: of the request.
        logits: `[VOCAB ** 2, 3, VOCAB]` float64 before each token, per pair of first tokens, where they are not simply
            the model's own.

    Returns:
        `[VOCAB ** 3]`, triples in order.
    """
    import torch

    pairs = torch.tensor(list(itertools.product(range(VOCAB), repeat=DEEP - 1)))
    if logits is None:
        whole = torch.cat([torch.tensor([prompt]).expand(len(pairs), -1), pairs], 1)
        with torch.no_grad():
            logits = hf(whole).logits[:, -DEEP:].double()
    p = _allowed(logits / setting.temperature, setting).log_softmax(-1)
    whole = p[:, 0].gather(1, pairs[:, :1]) + p[:, 1].gather(1, pairs[:, 1:]) + p[:, 2]
    return whole.exp().flatten().tolist()


def _allowed(logits: Any, setting: Setting) -> Any:
    """Logits with minus infinity where `top_k`, then `top_p`, cuts."""
    import torch

    if setting.top_k:
        least = logits.topk(setting.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if setting.top_p < 1:
        ordered, order = logits.softmax(-1).sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        logits = logits.masked_fill(torch.zeros_like(ordered).scatter(-1, order, before) >= setting.top_p, -torch.inf)
    return logits


def compressed(hf: Any, prompt: list[int], policy: Any, budget: int) -> Any:
    """Logits of `joint` over a cache that is compressed once, at the end of the prompt.

    Returns:
        `[VOCAB ** 2, 3, VOCAB]` float64.
    """
    import torch

    from remnant_hf import RemnantCache

    pairs = torch.tensor(list(itertools.product(range(VOCAB), repeat=DEEP - 1)))
    ids = torch.tensor([prompt]).expand(len(pairs), -1).contiguous()

    def forced(given: Any, scores: Any) -> Any:
        at = given.shape[1] - len(prompt)
        if at >= DEEP - 1:
            return scores
        return torch.full_like(scores, -torch.inf).scatter(1, pairs[:, at : at + 1], 0.0)

    with torch.no_grad():
        out = hf.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=RemnantCache(hf.config, policy, budget=budget),
            max_new_tokens=DEEP, min_new_tokens=DEEP, do_sample=False, logits_processor=[forced], output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    assert torch.equal(out.sequences[:, len(prompt) : -1], pairs)
    return torch.stack(out.logits, 1).double()


def deviation(counts: Sequence[int], wanted: Sequence[float]) -> float:
    """Chi-square of the counts, as a standard normal deviate (Wilson and Hilferty); rare cells count as one.

    Raises:
        ValueError: a cell was seen that has no probability, or hardly any cell is left.
    """
    total = sum(counts)
    if sum(count for count, p in zip(counts, wanted, strict=True) if not p):
        return float("inf")
    rare = [i for i, p in enumerate(wanted) if 0 < total * p < 5]
    cells = [(counts[i], total * p) for i, p in enumerate(wanted) if total * p >= 5]
    cells.append((sum(counts[i] for i in rare), total * sum(wanted[i] for i in rare)))
    chi = sum((seen - expected) ** 2 / expected for seen, expected in cells if expected)
    free = len([1 for _, expected in cells if expected]) - 1
    if free < 20:
        raise ValueError(f"{free + 1} cells are too few to say anything")
    return ((chi / free) ** (1 / 3) - 1 + 2 / (9 * free)) / (2 / (9 * free)) ** 0.5


def variation(counts: Sequence[int], wanted: Sequence[float]) -> float:
    """Total variation between what was counted and what should have been; of exact samples, too, it is not zero."""
    total = sum(counts)
    return sum(abs(seen / total - p) for seen, p in zip(counts, wanted, strict=True)) / 2


def counted(answers: Sequence[Sequence[int]]) -> list[int]:
    """How often every triple began an answer, `[VOCAB ** 3]`."""
    counts = [0] * VOCAB**DEEP
    for first, second, third, *_ in answers:
        counts[(first * VOCAB + second) * VOCAB + third] += 1
    return counts


def draw(
    llm: Any,
    prompt: list[int],
    settings: Sequence[Setting],
    number: int,
    seeds: int | None = None,
    waiting: int = 512,
    told: Callable[[int], None] = lambda done: None,
) -> list[list[list[int]]]:
    """Answers of an engine, one token longer than what is counted, so that the last of these may be drafted, too.

    Args:
        llm: of vLLM.
        prompt: token ids, the same for all.
        settings: requests of all stand in one batch.
        number: answers per setting.
        seeds: first seed, of requests with a generator each; None has one generator for all.
        waiting: requests that are in the engine at once.
        told: hears after every step how many answers are there.

    Returns:
        Per setting, its answers.
    """
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    engine, total, next_one, ready = llm.llm_engine, number * len(settings), 0, 0
    done: list[list[list[int]]] = [[] for _ in settings]
    while ready < total:
        while next_one < total and next_one - ready < waiting:
            setting = settings[next_one % len(settings)]
            params = SamplingParams(
                max_tokens=DEEP + 1, temperature=setting.temperature, top_k=setting.top_k, top_p=setting.top_p,
                seed=None if seeds is None else seeds + next_one, **PLAIN,
            )  # fmt: skip
            engine.add_request(str(next_one), TokensPrompt(prompt_token_ids=prompt), params)
            next_one += 1
        for out in engine.step():
            if out.finished:
                ready += 1
                done[int(out.request_id.split("-")[0]) % len(settings)].append(list(out.outputs[0].token_ids))
        told(ready)
    engine.step()  # an empty step hands the last requests' ids to the worker
    return done
