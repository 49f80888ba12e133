"""Measure a policy on the testbed: how much it still knows, in how many bytes, how fast."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch

from remnant.errors import ConfigError
from remnant.kv.policy import get_policy
from remnant.progress import Progress, silent
from remnant.testbed.drive import Drive, Scored, by_episode, by_tree, plain
from remnant.testbed.examples import make_examples
from remnant.testbed.tasks import Example

__all__ = ["DEFAULTS", "accuracy", "budget_tokens", "evaluate", "measure", "perplexity", "versions"]

DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {("trimkv", ""): {"gates": "testbed"}, ("tim", "tree"): {"buffer": 0}}
"""Options that a policy gets here unless others are given, by (policy, task); an empty task means every task."""
_ROWS = 32
_EPISODIC = {"episodes", "block", "conv_window", "medoids", "layer_power", "sinks", "allocation", "off_topic", "seed"}


def budget_tokens(budget: int | float | Fraction, length: int) -> int:
    """A budget in tokens; a fraction is one of the whole length and is rounded down, to at least one token.

    Example: budget_tokens(Fraction(1, 10), 1024) -> 102
    """
    if isinstance(budget, int):
        tokens = budget
    elif 0 < budget <= 1:
        tokens = max(1, math.floor(Fraction(str(budget)) * length))
    else:
        tokens = 0
    if isinstance(budget, bool) or tokens < 1:
        raise ConfigError(f"budget {budget}", accepted="tokens (an integer of at least 1) or a fraction of the length")
    return tokens


def evaluate(
    task: str = "recall",
    policy: str = "full",
    budget: int | float | Fraction = 1.0,
    length: int = 1024,
    n: int = 32,
    seed: int = 0,
    progress: Progress = silent,
    *,
    model: Any = None,
    device: str = "cpu",
    **options: Any,
) -> dict[str, Any]:
    """Measure one policy on one task.

    Args:
        task: one of `examples.NAMES`.
        policy: a name of `remnant.kv.list_policies()`.
        budget: tokens per KV head, or a fraction of the length.
        length: tokens per example, context and probe together.
        n: examples.
        seed: of the examples; from `BENCHMARK_SEED_BASE` on for benchmarks only.
        progress: called as tokens are read.
        model: another model with the testbed's tokenizer; default the shipped one.
        device: for the shipped model.
        options: of the policy, or `prefill_block` of the cache. `epicache` on `episodes` takes those of
            `EpisodicCache.build` that concern episodes.

    Returns:
        `accuracy` (fraction of questions whose answer is right throughout) or `perplexity`, with what was asked, bytes
        per sequence (at the end, at most, and of a full cache), speed and versions.

    Raises:
        ConfigError: an unknown task, policy or option, or a budget that the policy cannot work with.
    """
    if task == "tree" and length < 512:
        raise ConfigError(f"a task tree of {length} tokens", accepted="at least 512 tokens")
    if length < 64:
        raise ConfigError(f"length {length}", accepted="at least 64 tokens")
    tokens = budget_tokens(budget, length)
    examples = make_examples(task, length, n, seed)
    model = model if model is not None else _model(device)
    options = with_defaults(task, policy, options)
    scored = measure(model, examples, task, policy, tokens, progress, **options)
    score = {"perplexity": perplexity(scored)} if task == "perplexity" else {"accuracy": accuracy(scored, examples)}
    asked = {"task": task, "policy": policy, "options": options, "budget_tokens": tokens, "length": length}
    return {**asked, "n": n, "seed": seed, **score, **summary(scored), **versions(model)}


def measure(
    model: Any,
    examples: Sequence[Example],
    task: str,
    policy: str,
    tokens: int,
    progress: Progress = silent,
    rows: int = _ROWS,
    **options: Any,
) -> Scored:
    """Take examples through fresh caches; those of one shape share a batch.

    Args:
        model: a causal language model.
        examples: of one task.
        task: its name.
        policy: name of the policy.
        tokens: budget per KV head.
        progress: called as tokens are read.
        rows: most sequences per batch.
        options: of the policy, or `prefill_block`.

    Returns:
        One entry per example, in the order given.
    """
    block = options.pop("prefill_block", None)
    run = _driver(task, policy, options)
    if run is by_episode:
        get_policy(policy)
    drive = Drive(model, policy, tokens, options, block)
    scored = Scored()
    batches = _batches(examples, rows)
    with torch.no_grad():
        for b, batch in enumerate(batches):

            def report(done: int, total: int, text: str, b: int = b) -> None:
                progress(b * total + done, len(batches) * total, f"{task}, {policy}")

            scored.add(run(drive, batch, report))
    return scored


def with_defaults(task: str, policy: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options with those of `DEFAULTS` that were not given."""
    return {**DEFAULTS.get((policy, ""), {}), **DEFAULTS.get((policy, task), {}), **options}


def accuracy(scored: Scored, examples: Sequence[Example]) -> float:
    """Mean over all questions of whether every token of the answer was right."""
    right: list[bool] = []
    for hits, example in zip(scored.hits, examples, strict=True):
        questions: dict[int, bool] = {}
        for hit, group in zip(hits, example.groups, strict=True):
            questions[group] = questions.get(group, True) and hit
        right += questions.values()
    return sum(right) / len(right)


def perplexity(scored: Scored) -> float:
    """Exponential of the mean negative log probability per answer."""
    flat = [x for row in scored.nll for x in row]
    return math.exp(sum(flat) / len(flat))


def summary(scored: Scored) -> dict[str, Any]:
    """Means per sequence, as plain data."""
    out: dict[str, Any] = {name: round(_mean(getattr(scored, name))) for name in ("bytes", "peak_bytes", "bytes_full")}
    out["kept_fraction"] = _mean(scored.kept)
    out["tokens_per_second"] = scored.tokens / scored.seconds if scored.seconds else 0.0
    return {**out, **{name: _mean(values) for name, values in scored.extra.items()}}


def versions(model: Any) -> dict[str, Any]:
    """Where a figure was measured."""
    import transformers

    from remnant import __version__

    device = torch.device(model.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"
    found = {"remnant": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {"device": name, "versions": {"python": platform.python_version(), **found}}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _driver(task: str, policy: str, options: dict[str, Any]) -> Callable[[Drive, Sequence[Example], Progress], Scored]:
    if task == "tree" and policy == "tim":
        return by_tree
    if task == "episodes" and policy == "epicache":
        wrong = sorted(set(options) - _EPISODIC)
        if wrong:
            raise ConfigError(f"options {', '.join(wrong)} of episodes", accepted=sorted(_EPISODIC))
        return by_episode
    return plain


def _batches(examples: Sequence[Example], rows: int) -> list[list[Example]]:
    """Neighbours of one shape, at most `rows` of them."""
    out: list[list[Example]] = []
    for example in examples:
        shape = (len(example.context), len(example.probe))
        if out and len(out[-1]) < rows and (len(out[-1][0].context), len(out[-1][0].probe)) == shape:
            out[-1].append(example)
        else:
            out.append([example])
    return out


@lru_cache(maxsize=1)
def _model(device: str) -> Any:
    from remnant.testbed.model import load

    return load(device=device)[0]
