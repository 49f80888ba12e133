"""Whose text to count: the target's own or a corpus's, the same number of tokens of each, over seeds.

A case of `drafting_vocab`. Per seed the target writes anew after openings of the training documents, the corpus gives
other stretches of the same documents, and acceptance is measured on what the target writes after held-out documents.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from drafting_written import answers, prompts_of, write

from remnant.speculative.vocab_counts import count_tokens
from remnant.speculative.vocab_map import VocabMap
from remnant.speculative.vocab_measure import Measured, measure

SIZES, KS, PROMPT, NEW, HELD = (2_400, 16_000, 64_000), (64, 128, 256, 512, 1024), 32, 96, 48
LARGE = 400_000
"""Tokens of the corpus in `acceptance`; more than the target writes here, as is usual for FR-Spec."""
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
Forward = Callable[[torch.Tensor], torch.Tensor]
Found = dict[tuple[str, int, int], Measured]  # by source, tokens, k


def sources(
    target: Any, tokenizer: Any, forwards: tuple[Forward, Forward], corpus: torch.Tensor, seeds: int
) -> Iterator[dict[str, Any]]:
    """A line per number of tokens and k: acceptance by either source, and their difference with its interval."""
    from remnant.testbed.text import load_corpus, load_held_out

    train, held = prompts_of(tokenizer, load_corpus().train, PROMPT, 2), prompts_of(tokenizer, load_held_out(), PROMPT)
    runs: list[Found] = []
    for seed in range(seeds):
        runs.append(_seed(target, tokenizer.eos_token_id, forwards, corpus, (train, held), seed))
        print(f"sources: seed {seed + 1} of {seeds}", file=sys.stderr)
    for tokens in SIZES:
        for k in KS:
            yield _line(runs, ("target", tokens), ("corpus", tokens), k)
    for k in KS:
        yield _line(runs, ("target", SIZES[-1]), ("corpus", LARGE), k)


def _seed(
    target: Any,
    end: int,
    forwards: tuple[Forward, Forward],
    corpus: torch.Tensor,
    prompts: tuple[torch.Tensor, torch.Tensor],
    seed: int,
) -> Found:
    r, size = torch.Generator().manual_seed(1000 + seed), int(target.config.vocab_size)
    order = torch.randperm(len(prompts[0]), generator=r)[: -(-SIZES[-1] // NEW)]
    written = answers(write(target, prompts[0][order], NEW, 1.0, r), PROMPT + 1, end)
    ours = torch.cat([text.chosen() for text in written])
    starts = torch.randperm(len(corpus) // NEW, generator=r) * NEW
    theirs = torch.cat([corpus[i : i + NEW] for i in starts])
    counts = {(name, n): torch.bincount(ids[:n], minlength=size)
              for name, ids in (("target", ours), ("corpus", theirs)) for n in SIZES}  # fmt: skip
    counts["corpus", LARGE] = torch.bincount(theirs[:LARGE], minlength=size)
    chosen = torch.randperm(len(prompts[1]), generator=r)[:HELD]
    held = answers(write(target, prompts[1][chosen], NEW, 1.0, r), PROMPT + 1, end)
    keys = [(name, n, k) for name, n in counts for k in KS]
    maps = [VocabMap.from_counts(counts[name, n], k, [end]) for name, n, k in keys]
    _, _, found = measure(*forwards, held, maps)
    print(f"{len(ours)} tokens of the target, {int(count_tokens(held, size).sum())} held out", file=sys.stderr)
    return dict(zip(keys, found, strict=True))


def _line(runs: Sequence[Found], one: tuple[str, int], other: tuple[str, int], k: int) -> dict[str, Any]:
    pairs = [(run[(*one, k)], run[(*other, k)]) for run in runs]
    return {
        "case": "sources", "k": k, "target_tokens": one[1], "corpus_tokens": other[1], "seeds": len(runs),
        "temperature": 1.0,
        "acceptance": {"target": statistics.mean(a.acceptance for a, _ in pairs),
                       "corpus": statistics.mean(b.acceptance for _, b in pairs)},
        "acceptance_gain": _interval([a.acceptance - b.acceptance for a, b in pairs]),
        "coverage_gain": _interval([a.coverage - b.coverage for a, b in pairs]),
    }  # fmt: skip


def _interval(gains: Sequence[float]) -> dict[str, float]:
    """Mean over seeds, and its 95 % interval (Student's t)."""
    mean = statistics.mean(gains)
    half = T95[len(gains)] * statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("inf")
    return {"mean": mean, "low": mean - half, "high": mean + half}
