"""A written task tree: long scratch inside subtasks, short conclusions that hold the facts, questions at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from remnant.errors import ConfigError
from remnant.testbed.tasks import Example, Filler
from remnant.testbed.tokenizer import Alphabet

__all__ = ["tree"]

Ids = NDArray[np.int64]
_SUBTASKS, _FACTS, _SHORTEST = 3, 4, 512
_CLEAN = str.maketrans({'"': "'", "\\": "/", "\n": " ", "\r": " ", "\t": " "})


class _Writer:
    """Token pieces of the tree; None stands for a hole that scratch will fill."""

    def __init__(self, tokenizer: Any, a: Alphabet) -> None:
        self.tokenizer, self.a = tokenizer, a
        self.parts: list[Ids | None] = [np.array([a.bos], dtype=np.int64)]

    def text(self, text: str) -> None:
        self.parts.append(encode(self.tokenizer, text))

    def hole(self) -> None:
        self.parts.append(None)

    def facts(self, keys: Ids, values: Ids) -> None:
        for key, value in zip(keys, values, strict=True):
            self.parts.append(np.array([self.a.fact, key, value], dtype=np.int64))

    def fill(self, rng: np.random.Generator, filler: Filler, length: int) -> Ids:
        """Close the holes with scratch so that the stream has `length` tokens."""
        room = length - sum(len(p) for p in self.parts if p is not None)
        holes = sum(p is None for p in self.parts)
        if room < holes:
            raise ConfigError(f"a task tree of {length} tokens", accepted=f"at least {_SHORTEST} tokens")
        out: list[Ids] = []
        for part in self.parts:
            if part is None:
                n = room // holes
                part = _scratch(rng, self.tokenizer, filler, n)
                room, holes = room - n, holes - 1
            out.append(part)
        return np.concatenate(out)


def encode(tokenizer: Any, text: str) -> Ids:
    """Ids of a text, for a tokenizer of `tokenizers`."""
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)


def _scratch(rng: np.random.Generator, tokenizer: Any, filler: Filler, n: int) -> Ids:
    """`n` tokens of real text that may stand inside a JSON string."""
    text = tokenizer.decode(filler.take(rng, 2 * n + 8).tolist(), skip_special_tokens=True)
    ids = encode(tokenizer, text.translate(_CLEAN))
    return np.resize(ids, n)


def _task(w: _Writer, own: tuple[Ids, Ids], other: tuple[Ids, Ids]) -> None:
    """One task: its facts are found in the scratch of its subtasks, among others, and restated as its conclusion."""
    w.text('{"thought":"","subtasks":[')
    for i in range(_SUBTASKS):
        w.text('{"thought":"' if i == 0 else ',{"thought":"')
        w.hole()
        w.facts(*(x[i::_SUBTASKS] for x in other))
        w.text('","subtasks":[{"thought":"')
        w.hole()
        w.facts(*(x[i::_SUBTASKS] for x in own))
        w.text('","conclusion":"ok"}],"conclusion":"')
        w.facts(*(x[i : i + 1] for x in other))
        w.text('"}')
    w.text('],"conclusion":"')
    w.facts(*own)
    w.text('"}')


def tree(rng: np.random.Generator, tokenizer: Any, filler: Filler, length: int) -> Example:
    """A tree with one task per 1,024 tokens; the answer asks for the facts that the conclusions of the tasks hold.

    Args:
        rng: the only source of chance.
        tokenizer: the testbed's, of `tokenizers`.
        filler: real text.
        length: tokens of tree and questions together, at least 512.
    """
    a = Alphabet.of(tokenizer)
    tasks = max(1, length // 1024)
    n = tasks * _FACTS
    keys = rng.choice(np.arange(a.keys.start, a.keys.stop), size=2 * n, replace=False)
    values = rng.integers(a.values.start, a.values.stop, size=2 * n)
    w = _Writer(tokenizer, a)
    w.text('{"reasoning": [')
    for t in range(tasks):
        span = slice(t * _FACTS, (t + 1) * _FACTS)
        if t:
            w.text(", ")
        _task(w, (keys[:n][span], values[:n][span]), (keys[n:][span], values[n:][span]))
    w.text('], "answer": "')
    order = rng.permutation(n)[:_FACTS]
    probe = np.concatenate([np.array([a.fact, keys[i], values[i]], dtype=np.int64) for i in order])
    context = w.fill(rng, filler, length - len(probe))
    answers = tuple((3 * j + 1, int(values[i])) for j, i in enumerate(order))
    return Example(context, probe, answers, tuple(range(len(order))))
