"""Recurrence where re-use is rare: what was read often is over, what matters comes back after a long gap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from remnant.errors import ConfigError
from remnant.testbed.tasks import Example, Filler
from remnant.testbed.tokenizer import Alphabet

__all__ = ["rare"]

Ids = NDArray[np.int64]
_PROMPT, _ROUND, _USES = 0.4, 36, 3


def rare(
    rng: np.random.Generator,
    a: Alphabet,
    filler: Filler,
    length: int,
    premises: int = 3,
    gap: int = 64,
    hitters: int | None = None,
) -> Example:
    """Premises that a long chain needs in rounds, `gap` tokens apart, behind a prompt of facts that it never needs.

    The prompt states the premises once, and after them other facts, each of which it uses three times: they gather
    attention, and are never used again. In the chain nothing but the premises is used, all of them within 36 tokens;
    then there is text until the next round. A value is never restated: `<ok>` stands in its place.

    Args:
        rng: the only source of chance.
        a: the tokenizer's task alphabet.
        filler: real text.
        length: tokens of prompt and chain together, at least 128.
        premises: facts that the chain needs, at most 6.
        gap: tokens from one round to the next, at least 36. One that is longer than the window of a policy tells more.
        hitters: other facts; default one per 64 tokens of the length.

    Raises:
        ConfigError: not even one round fits.
    """
    hitters = max(2, length // 64) if hitters is None else hitters
    keys = rng.choice(np.arange(a.keys.start, a.keys.stop), size=premises + hitters, replace=False)
    values = rng.integers(a.values.start, a.values.stop, size=len(keys))
    facts = [np.array([a.fact, k, v], dtype=np.int64) for k, v in zip(keys, values, strict=True)]
    uses = [np.array([a.fact, k, a.ok], dtype=np.int64) for k in keys]
    order: Ids = rng.permutation(np.repeat(np.arange(premises, len(keys)), _USES))
    again = [uses[int(i)] for i in order]
    context = _prompt(rng, a, filler, int(length * _PROMPT), [*facts, *again])
    if len(context) + gap > length:
        raise ConfigError(f"recurrence-rare in {length} tokens", accepted="at least 128 tokens")
    chain: list[Ids] = []
    answers: list[tuple[int, int]] = []
    every = _ROUND // premises
    at = 0
    while at + gap <= length - len(context):
        for i in rng.permutation(premises):
            chain += [filler.take(rng, every - 3), uses[i]]
            at += every
            answers.append((at - 2, int(values[i])))
        chain.append(filler.take(rng, gap - every * premises))
        at += gap - every * premises
    return Example(context, np.concatenate(chain), tuple(answers), tuple(range(len(answers))))


def _prompt(rng: np.random.Generator, a: Alphabet, filler: Filler, n: int, pieces: list[Ids]) -> Ids:
    """`n` tokens: the pieces in their order, with text between them."""
    text = filler.take(rng, max(n - 1 - sum(map(len, pieces)), 0))
    cuts = np.sort(rng.integers(0, len(text) + 1, size=len(pieces)))
    parts = np.split(text, cuts)
    out = [np.array([a.bos], dtype=np.int64), parts[0]]
    for piece, part in zip(pieces, parts[1:], strict=True):
        out += [piece, part]
    return np.concatenate(out)
