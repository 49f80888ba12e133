"""Examples of every task that can be evaluated, from a seed; the filler is text that was never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from remnant.errors import unknown
from remnant.testbed.rare import rare
from remnant.testbed.tasks import TASKS, Example, Filler, make_example
from remnant.testbed.text import load_held_out
from remnant.testbed.tokenizer import Alphabet, load_tokenizer
from remnant.testbed.tree import tree

__all__ = ["NAMES", "held_out", "make_examples", "stream"]

NAMES = (*TASKS, "recurrence-rare", "perplexity", "tree")
_STRIDE = 10_000
"""Examples per seed: example i of seed s is made from s * 10,000 + i, so two seeds share none."""


@lru_cache(maxsize=1)
def held_out() -> Filler:
    """The held-out text as tokens."""
    return Filler(stream(load_held_out()))


def stream(documents: Sequence[str]) -> NDArray[np.int64]:
    """Documents as one stream of tokens, each closed by `<eos>`."""
    tokenizer = load_tokenizer()
    eos = Alphabet.of(tokenizer).eos
    encoded = tokenizer.encode_batch(list(documents), add_special_tokens=False)
    return np.array([token for e in encoded for token in (*e.ids, eos)], dtype=np.int64)


def make_examples(task: str, length: int, n: int, seed: int) -> list[Example]:
    """The same arguments give the same examples.

    Args:
        task: one of `NAMES`.
        length: tokens of context and probe together.
        n: examples.
        seed: of the set; seeds from `BENCHMARK_SEED_BASE` on are for benchmarks.

    Raises:
        ConfigError: the task is unknown.
    """
    if task not in NAMES:
        raise unknown("task", task, NAMES)
    return [_make(task, length, seed * _STRIDE + i) for i in range(n)]


def _make(task: str, length: int, seed: int) -> Example:
    tokenizer = load_tokenizer()
    if task == "tree":
        return tree(np.random.default_rng(seed), tokenizer, held_out(), length)
    alphabet = Alphabet.of(tokenizer)
    if task == "recurrence-rare":
        return rare(np.random.default_rng(seed), alphabet, held_out(), length)
    if task == "perplexity":
        return _text(seed, alphabet, length)
    return make_example(task, alphabet, held_out(), length, seed)


def _text(seed: int, a: Alphabet, length: int) -> Example:
    """Plain text: the first half is the context, every token of the second half but its first is an answer."""
    ids = np.concatenate([np.array([a.bos]), held_out().take(np.random.default_rng(seed), length - 1)])
    half = length // 2
    probe = ids[half:]
    answers = tuple((i, int(token)) for i, token in enumerate(probe[1:]))
    return Example(ids[:half], probe, answers, tuple(range(len(answers))))
