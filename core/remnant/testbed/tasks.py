"""Tasks with known answers, made from a seed: recall, passkey, recurrence, episodes.

Each task is a stream of tokens with real text as filler and a few facts `<fact> key value`. A question repeats
the beginning of a fact, `<fact> key`, and the model must say the value. An `Example` separates the `context`, which
a policy may compress, from the `probe`, which is fed token by token afterwards; `answers` tells at which probe
positions which token must be predicted. Whether a question was already known when the context was compressed is thus
a property of the data and not of the policy under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from remnant.testbed.tokenizer import Alphabet

__all__ = ["BENCHMARK_SEED_BASE", "TASKS", "Example", "Filler", "make_example"]

Ids = NDArray[np.int64]
BENCHMARK_SEED_BASE = 1_000_000
"""Seeds from here on are kept for benchmarks; training and tests stay below."""


@dataclass(frozen=True)
class Example:
    """One exactly answerable stream.

    Attributes:
        context: `[S]` int64 ids; a policy compresses its cache when these have been read.
        probe: `[T]` int64 ids fed after the compression.
        answers: `(i, token)`: after reading `probe[i]` the model must predict `token`.
        groups: for each answer, the index of the question that it belongs to; a question counts when all are right.
        segments: `(start, end, topic)` spans of the context, where a task has topics.
    """

    context: Ids
    probe: Ids
    answers: tuple[tuple[int, int], ...]
    groups: tuple[int, ...]
    segments: tuple[tuple[int, int, int], ...] = field(default=())

    def tokens(self) -> Ids:
        """Context and probe as one stream `[S + T]`."""
        return np.concatenate([self.context, self.probe])


class Filler:
    """Random slices of real text, as token ids."""

    def __init__(self, ids: Ids) -> None:
        """Take a stream `[N]` of text ids."""
        self.ids = ids

    def take(self, rng: np.random.Generator, n: int) -> Ids:
        """A contiguous slice of `n` tokens; wraps around at the end of the text."""
        start = int(rng.integers(0, len(self.ids)))
        return np.take(self.ids, np.arange(start, start + n), mode="wrap")


Maker = Callable[[np.random.Generator, Alphabet, Filler, int], Example]


def _pick(rng: np.random.Generator, span: range, n: int) -> Ids:
    return rng.choice(np.arange(span.start, span.stop), size=n, replace=False)


def _scatter(rng: np.random.Generator, filler: Ids, pieces: list[Ids]) -> Ids:
    """Insert pieces into the filler at random places, in the given order, never inside one another."""
    cuts = np.sort(rng.integers(0, len(filler) + 1, size=len(pieces)))
    out: list[Ids] = []
    last = 0
    for cut, piece in zip(cuts, pieces, strict=True):
        out += [filler[last:cut], piece]
        last = int(cut)
    return np.concatenate([*out, filler[last:]])


def _facts(rng: np.random.Generator, a: Alphabet, n: int) -> tuple[Ids, Ids]:
    keys = _pick(rng, a.keys, n)
    values = rng.integers(a.values.start, a.values.stop, size=n)
    return keys, values


def _fact(a: Alphabet, key: int, *value: int) -> Ids:
    return np.array([a.fact, key, *value], dtype=np.int64)


def _bos(a: Alphabet) -> Ids:
    return np.array([a.bos], dtype=np.int64)


def recall(
    rng: np.random.Generator, a: Alphabet, filler: Filler, length: int, pairs: int | None = None, asked: int = 16
) -> Example:
    """Multi-query associative recall; the questions come after the context was compressed.

    `pairs` defaults to one per 32 tokens, at most 64.
    """
    pairs = pairs or max(2, min(64, length // 32))
    asked = min(asked, pairs)
    keys, values = _facts(rng, a, pairs)
    room = length - 1 - 3 * pairs - 3 * asked
    pieces = [_fact(a, int(k), int(v)) for k, v in zip(keys, values, strict=True)]
    context = np.concatenate([_bos(a), _scatter(rng, filler.take(rng, max(room, 0)), pieces)])
    order = rng.permutation(pairs)[:asked]
    probe = np.concatenate([pieces[int(i)] for i in order])
    answers = tuple((3 * j + 1, int(values[i])) for j, i in enumerate(order))
    return Example(context, probe, answers, tuple(range(asked)))


_DIGITS, _NEEDLES = 4, 4


def _passkey(
    rng: np.random.Generator,
    a: Alphabet,
    filler: Filler,
    length: int,
    early: bool,
    digits: int = 3,
    remark: bool = False,
) -> Example:
    """A key among distractors. The question stands once in full, `<fact> key <ok>`, and is then asked for real.

    `remark` only mentions the key instead, `<ask> key`; training has those too.
    """
    keys = _pick(rng, a.keys, _NEEDLES)
    values = np.reshape(_pick(rng, a.values, _NEEDLES * digits), (_NEEDLES, digits))
    needles = [_fact(a, int(k), *map(int, d)) for k, d in zip(keys, values, strict=True)]
    target = int(rng.integers(_NEEDLES))
    asked = [a.ask, keys[target]] if remark else [a.fact, keys[target], a.ok]
    probe = needles[target]
    room = max(length - 1 - len(probe) * (_NEEDLES + 1) - len(asked), 4)
    text = filler.take(rng, room)
    tail = min(6, room // 2)
    body = _scatter(rng, text[:-tail], needles)
    # The late form carries the same question outside the context, so both forms have the same length.
    question = np.concatenate([np.array(asked, dtype=np.int64), text[-tail:]])
    context = np.concatenate([_bos(a), body, question]) if early else np.concatenate([_bos(a), body])
    stream = probe if early else np.concatenate([question, probe])
    shift = 0 if early else len(question)
    answers = tuple((shift + 1 + i, int(d)) for i, d in enumerate(values[target]))
    return Example(context, stream, answers, (0,) * digits)


def passkey_early(
    rng: np.random.Generator, a: Alphabet, filler: Filler, length: int, digits: int = 3, remark: bool = False
) -> Example:
    """A key of several tokens among distractors; the question stands at the end of the context, before compression."""
    return _passkey(rng, a, filler, length, True, digits, remark)


def passkey_late(
    rng: np.random.Generator, a: Alphabet, filler: Filler, length: int, digits: int = 3, remark: bool = False
) -> Example:
    """The same stream, but the context ends before the question: what to keep must be decided without it."""
    return _passkey(rng, a, filler, length, False, digits, remark)


def passkeys(rng: np.random.Generator, a: Alphabet, filler: Filler, length: int, needles: int) -> Example:
    """Several four-token keys, every one of them asked: for training only."""
    keys = _pick(rng, a.keys, needles)
    digits = np.reshape(_pick(rng, a.values, needles * _DIGITS), (needles, _DIGITS))
    facts = [_fact(a, int(k), *map(int, d)) for k, d in zip(keys, digits, strict=True)]
    size = 2 + _DIGITS
    room = max(length - 1 - 2 * size * needles, 0)
    context = np.concatenate([_bos(a), _scatter(rng, filler.take(rng, room), facts)])
    order = [int(i) for i in rng.permutation(needles)]
    answers = tuple((size * j + 1 + d, int(digits[i][d])) for j, i in enumerate(order) for d in range(_DIGITS))
    groups = tuple(j for j in range(needles) for _ in range(_DIGITS))
    return Example(context, np.concatenate([facts[i] for i in order]), answers, groups)


def recurrence(
    rng: np.random.Generator, a: Alphabet, filler: Filler, length: int, premises: int | None = None, every: int = 64
) -> Example:
    """Premises at the start, each used again every `every` steps of a long chain that never restates its value.

    The chain continues with `<ok>` instead of the value, so that a recent copy cannot replace the premise.
    """
    every = min(every, max(16, length // 4))
    premises = premises or 4
    keys, values = _facts(rng, a, premises)
    start = [_fact(a, int(k), int(v)) for k, v in zip(keys, values, strict=True)]
    head = _scatter(rng, filler.take(rng, 4 * premises), start)
    context = np.concatenate([_bos(a), head])
    gap = max(every // premises - 3, 1)
    chain: list[Ids] = []
    answers: list[tuple[int, int]] = []
    used = 0
    for turn in range(max(1, (length - len(context)) // (gap + 3))):
        which = turn % premises
        chain += [filler.take(rng, gap), np.array([a.fact, keys[which], a.ok], dtype=np.int64)]
        used += gap + 3
        answers.append((used - 2, int(values[which])))
    return Example(context, np.concatenate(chain), tuple(answers), tuple(range(len(answers))))


def episodes(
    rng: np.random.Generator, a: Alphabet, filler: Filler, length: int, topics: int = 4, rounds: int = 3
) -> Example:
    """Topics take turns in blocks of one conversation; at the end there is one question per topic.

    Each topic has its own facts and its own text; every block restates two of the topic's facts.
    """
    if length < 256:
        topics, rounds = 2, 2
    per_topic = 4
    names = _pick(rng, a.topics, topics)
    keys, values = _facts(rng, a, topics * per_topic)
    block = (length - 1 - 4 * topics) // (topics * rounds)
    texts = [filler.take(rng, block * rounds) for _ in range(topics)]
    out, at = [_bos(a)], 1
    segments: list[tuple[int, int, int]] = []
    for r in range(rounds):
        for t in range(topics):
            chosen = [t * per_topic + (2 * r + i) % per_topic for i in range(2)]
            pieces = [_fact(a, int(keys[c]), int(values[c])) for c in chosen]
            text = texts[t][r * block : r * block + block - 7]
            out.append(np.concatenate([[names[t]], _scatter(rng, text, pieces)]))
            segments.append((at, at + len(out[-1]), t))
            at += len(out[-1])
    probe: list[Ids] = []
    answers: list[tuple[int, int]] = []
    for j, t in enumerate(rng.permutation(topics)):
        c = t * per_topic + int(rng.integers(min(per_topic, 2 * rounds)))
        probe.append(np.array([names[t], a.fact, keys[c], values[c]], dtype=np.int64))
        answers.append((4 * j + 2, int(values[c])))
    return Example(np.concatenate(out), np.concatenate(probe), tuple(answers), tuple(range(topics)), tuple(segments))


TASKS: dict[str, Maker] = {
    "recall": recall,
    "passkey-early": passkey_early,
    "passkey-late": passkey_late,
    "recurrence": recurrence,
    "episodes": episodes,
}


def make_example(task: str, a: Alphabet, filler: Filler, length: int, seed: int) -> Example:
    """Make one example of a task; the same arguments always give the same example.

    Args:
        task: a key of `TASKS`.
        a: the tokenizer's task alphabet.
        filler: real text to hide the facts in.
        length: tokens of context and probe together, at least 48.
        seed: any non-negative integer.
    """
    return TASKS[task](np.random.default_rng(seed), a, filler, length)
