"""What a drafter is worth: its drafts are verified by the target, greedily and sampled, and counted by domain."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.progress import Progress, silent
from remnant.speculative.accept import accept_chain
from remnant.speculative.fastdraft.data import IGNORE, Prompt, Rows
from remnant.speculative.fastdraft.hf import hf
from remnant.speculative.fastdraft.samples import draw, temper
from remnant.speculative.stats import SpecStats, block_efficiency, mbsu, speedup

__all__ = ["Measured", "evaluate", "expected_acceptance", "speculate", "time_step"]

_CONTEXT, _REPEATS = 64, 12  # of a timed pass


@dataclass
class Measured:
    """Counts of some prompts.

    Args:
        stats: counts of `SpecStats`; only blocks that drafted all of `num_draft` tokens are in it.
        rejections: blocks that ended in one.
    """

    stats: SpecStats
    rejections: int = 0

    @property
    def alpha(self) -> float:
        """Probability that a drafted token is accepted given that it was looked at, a fraction of 1.

        `acceptance` counts all drafted tokens instead: those behind a rejection were never looked at.
        """
        looked = self.stats.accepted + self.rejections
        return self.stats.accepted / looked if looked else 0.0

    def to_dict(self, num_draft: int, cost: float) -> dict[str, Any]:
        """AR, block efficiency as measured and as predicted from alpha, and memory-bound speed-up."""
        s = self.stats
        return {
            "acceptance": s.acceptance,
            "alpha": self.alpha,
            "block_efficiency": s.block_efficiency,
            "block_efficiency_predicted": block_efficiency(self.alpha, num_draft),
            "mbsu": mbsu(s.block_efficiency, cost, num_draft),
            "blocks": s.passes,
            "by_position": [a / p if p else 0.0 for a, p in zip(s.by_position, s.proposed_by_position, strict=True)],
        }


class _Reader:
    """A model with its cache: reads tokens, answers with the logits after each, forgets on demand."""

    def __init__(self, model: Any) -> None:
        self.model, self.seen = model, 0
        # Without the config: layers with a sliding window would keep only that, and could not forget a draft.
        self.cache = hf().DynamicCache()
        self.device = next(model.parameters()).device

    def read(self, tokens: Tensor) -> Tensor:
        """Logits `[n, V]` after each of `tokens` `[n]`."""
        found = self.model(input_ids=tokens.to(self.device).unsqueeze(0), past_key_values=self.cache, use_cache=True)
        self.seen += tokens.shape[0]
        return found.logits[0]

    def forget(self, seen: int) -> None:
        """Keep the first `seen` tokens."""
        if seen < self.seen:
            self.cache.crop(seen - self.seen)
            self.seen = seen


@torch.inference_mode()
def speculate(
    target: Any,
    draft: Any,
    prompt: Sequence[int],
    new: int,
    num_draft: int,
    temperature: float,
    ends: Tensor,
    real: int,
    generator: torch.Generator,
    into: Measured | None = None,
) -> list[int]:
    """Decode one prompt with a drafter; what is emitted is distributed as the target's own.

    Args:
        target: a causal language model of transformers.
        draft: another one, of the same vocabulary.
        prompt: ids, at least 2.
        new: most tokens to emit.
        num_draft: tokens per block.
        temperature: 0 is greedy.
        ends: `[n]` ids that end a text.
        real: ids that exist.
        generator: the source of chance.
        into: where blocks are counted.

    Returns:
        The emitted ids, an end among them at most once and last.
    """
    ids = torch.tensor(list(prompt))
    judge, guesser = _Reader(target), _Reader(draft)
    judge.read(ids[:-1])
    guesser.read(ids[:-1])
    done = False
    while not done and len(ids) - len(prompt) < new:
        began = time.perf_counter()
        drafted, q = _guess(guesser, ids, num_draft, temperature, real, generator)
        middle = time.perf_counter()
        p = temper(judge.read(torch.cat([ids[judge.seen :], drafted])), temperature, real).cpu()
        found = accept_chain(
            drafted.unsqueeze(0), p.unsqueeze(0), None if temperature == 0 else q.unsqueeze(0), generator=generator
        )
        accepted = int(found.n)
        emitted = torch.cat([drafted[:accepted], found.next])
        ended = torch.isin(emitted, ends).nonzero()
        full = accepted + 1
        if len(ended):
            done = True
            emitted = emitted[: int(ended[0]) + 1]
        if into is not None and len(emitted) == full:  # a block that the end cut short says nothing of the drafter
            into.stats.block(num_draft, accepted, full)
            into.rejections += accepted < num_draft
            into.stats.draft_seconds += middle - began
            into.stats.target_seconds += time.perf_counter() - middle
        ids = torch.cat([ids, emitted])
        for reader in (judge, guesser):
            reader.forget(min(reader.seen, len(ids) - 1))
    return cast(Any, ids)[len(prompt) :][:new].tolist()


def _guess(
    reader: _Reader, ids: Tensor, num_draft: int, temperature: float, real: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A chain `[num_draft]` and the distributions `[num_draft, V]` that it was drawn from."""
    fresh = ids[reader.seen :]
    tokens: list[Tensor] = []
    q: list[Tensor] = []
    for _ in range(num_draft):
        p = temper(reader.read(fresh)[-1:], temperature, real).cpu()
        fresh = p.argmax(-1) if temperature == 0 else draw(p, generator)
        tokens.append(fresh)
        q.append(p)
    return torch.cat(tokens), torch.cat(q)


@torch.inference_mode()
def expected_acceptance(
    target: Any, draft: Any, rows: Rows, temperature: float, real: int, rng: Any, n: int = 32, length: int = 128
) -> float:
    """Mean of `sum min(p, q)` over labelled places of some rows, a fraction of 1: acceptance without decoding.

    Args:
        target: a causal language model of transformers.
        draft: another one, of the same vocabulary.
        rows: what both read.
        temperature: of p and q.
        real: ids that exist.
        rng: numpy's generator, for the rows.
        n: rows.
        length: most tokens of a row.
    """
    ids, labels = rows.rows(rng, n, length)
    chosen = torch.as_tensor(labels) != IGNORE
    both: list[Tensor] = []
    for model in (target, draft):
        device = next(model.parameters()).device
        logits = model(input_ids=torch.as_tensor(ids).to(device), use_cache=False).logits
        both.append(temper(logits[chosen.to(device)], temperature, real).cpu())
    return float(torch.minimum(*both).sum(-1).mean())


def evaluate(
    target: Any,
    draft: Any,
    prompts: Sequence[Prompt],
    ends: Tensor,
    real: int,
    num_draft: int = 3,
    temperatures: Sequence[float] = (0.0, 0.6),
    new: int = 48,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure a drafter on prompts.

    Args:
        target: a causal language model of transformers.
        draft: another one, of the same vocabulary.
        prompts: held-out ones.
        ends: `[n]` ids that end a text.
        real: ids that exist.
        num_draft: tokens per block.
        temperatures: 0 is greedy; the paper's table has 0.6.
        new: most tokens per prompt.
        seed: of the draws.
        progress: called after every prompt.

    Returns:
        `greedy` and `T=...`: per domain and for `all`, see `Measured.to_dict`; `cost`: bytes of a draft step over
        those of a target step, the same precision assumed; `seconds`: the four terms of the wall-clock speed-up.

    Raises:
        ConfigError: there is no prompt, or the vocabularies differ.

    Source: FastDraft (Zafrir et al. 2024, arXiv 2411.11055): 3 drafted tokens, temperature 0.6.
    """
    if not prompts:
        raise ConfigError("no prompts to measure on", do="give at least one")
    sizes = int(target.config.get_text_config().vocab_size), int(draft.config.get_text_config().vocab_size)
    if sizes[0] != sizes[1]:
        raise ConfigError(f"a drafter of {sizes[1]} tokens for a target of {sizes[0]}", accepted="equal vocabularies")
    cost = _size(draft) / _size(target)
    result: dict[str, Any] = {"num_draft": num_draft, "cost": cost, "prompts": len(prompts)}
    total = len(prompts) * len(temperatures)
    whole: Measured | None = None
    for turn, temperature in enumerate(temperatures):
        by: dict[str, Measured] = {"all": Measured(SpecStats())}
        for i, prompt in enumerate(prompts):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
            one = Measured(SpecStats())
            speculate(target, draft, prompt.ids, new, num_draft, temperature, ends, real, generator, one)
            for name in ("all", prompt.domain):
                _add(by.setdefault(name, Measured(SpecStats())), one)
            progress(turn * len(prompts) + i + 1, total, f"measuring at temperature {temperature:g}")
        name = "greedy" if temperature == 0 else f"T={temperature:g}"
        result[name] = {domain: found.to_dict(num_draft, cost) for domain, found in by.items()}
        whole = by["all"]
    if whole is not None and whole.stats.passes:
        result["seconds"] = _wall_clock(target, draft, whole.stats, num_draft)
    return result


def _add(into: Measured, other: Measured) -> None:
    a, b = into.stats, other.stats
    for name in ("passes", "proposed", "accepted", "emitted", "draft_seconds", "target_seconds"):
        setattr(a, name, getattr(a, name) + getattr(b, name))
    for name in ("by_position", "proposed_by_position"):
        one, two = getattr(a, name), getattr(b, name)
        size = max(len(one), len(two))
        filled = [list(x) + [0] * (size - len(x)) for x in (one, two)]
        setattr(a, name, [x + y for x, y in zip(*filled, strict=True)])
    into.rejections += other.rejections


def _size(model: Any) -> int:
    """Parameters; a tied head counts once."""
    return sum(p.numel() for p in model.parameters())


def _wall_clock(target: Any, draft: Any, stats: SpecStats, num_draft: int) -> dict[str, float]:
    """The four terms, in seconds, and what follows from them on this machine.

    Passes are timed alone; the overhead is what blocks took beyond them: probabilities, draws and acceptance, with a
    neighbour's load, if there was one.
    """
    step, verify, guess = time_step(target), time_step(target, num_draft + 1), time_step(draft)
    block = (stats.draft_seconds + stats.target_seconds) / stats.passes
    overhead = max(0.0, block - verify - num_draft * guess)
    gain = speedup(stats.block_efficiency, step, guess, verify, overhead, num_draft)
    return {"target_step": step, "draft_step": guess, "verify": verify, "overhead": overhead, "speedup": gain}


@torch.inference_mode()
def time_step(model: Any, tokens: int = 1, context: int = _CONTEXT, repeats: int = _REPEATS) -> float:
    """Seconds of a pass over `tokens` tokens behind `context` others: the fastest of some, so that a neighbour's load
    on the machine counts little.
    """
    device = next(model.parameters()).device
    ids = torch.zeros(1, context, dtype=torch.int64, device=device)
    cache = hf().DynamicCache()
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    best = float("inf")
    for turn in range(repeats + 2):
        began = time.perf_counter()
        model(input_ids=ids[:, :tokens], past_key_values=cache, use_cache=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn >= 2:  # the first passes allocate
            best = min(best, time.perf_counter() - began)
        cache.crop(-tokens)
    return best
