"""Training batches of the testbed: repeated random tokens, plain text and the tasks, with labels by kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.testbed import tasks
from remnant.testbed.tokenizer import Alphabet

__all__ = ["IGNORE", "Batch", "Stage", "make_batch"]

Ids = NDArray[np.int64]
IGNORE = -100
_MODES = ("text", "recall", "passkey-early", "passkey-late", "recurrence", "episodes")
_SHARES = (0.34, 0.24, 0.08, 0.08, 0.13, 0.13)


class Stage(NamedTuple):
    """Some steps of one kind; shares are fractions of the rows.

    Attributes:
        steps: optimizer steps.
        length: tokens per row.
        tokens: tokens per batch.
        repeat: share of repeated random sequences.
        passkey: share of passkeys, on top of their usual share.
        drill: share of rows with many passkeys, all of them asked.
    """

    steps: int
    length: int
    tokens: int
    repeat: float = 0.0
    passkey: float = 0.0
    drill: float = 0.0


@dataclass(frozen=True)
class Batch:
    """`ids` `[B, S]`; `text`, `copy` and `recall` `[B, S]` hold the label of the next token or `IGNORE`.

    Separate label sets let the few answer tokens weigh as much as the many text tokens.
    """

    ids: Ids
    text: Ids
    copy: Ids
    recall: Ids


_Row = tuple[Ids, Ids, Ids, Ids]


def _blank(length: int) -> Ids:
    return np.full(length, IGNORE, dtype=np.int64)


def _repeat(rng: np.random.Generator, vocab: int, length: int) -> _Row:
    """Random tokens said twice: the shortest way to an induction head, and to one that ignores which token it is."""
    period = int(rng.integers(length // 4, length // 2 + 1))
    ids = np.resize(rng.integers(0, vocab, size=period), length)
    copy = _blank(length)
    copy[period:-1] = ids[period + 1 :]
    return ids, _blank(length), copy, _blank(length)


def _text(rng: np.random.Generator, a: Alphabet, filler: tasks.Filler, length: int) -> _Row:
    ids = np.concatenate([np.array([a.bos]), filler.take(rng, length - 1)])
    labels = _blank(length)
    labels[:-1] = ids[1:]
    return ids, labels, _blank(length), _blank(length)


def _options(rng: np.random.Generator, task: str, length: int) -> dict[str, Any]:
    if task == "recall":
        pairs = int(rng.integers(2, max(4, min(64, length // 14)) + 1))
        return {"pairs": pairs, "asked": min(pairs, 48, max(2, length // 16))}
    if task == "recurrence":
        return {"premises": int(rng.integers(2, 9)), "every": int(rng.integers(24, 257))}
    if task.startswith("passkey"):
        return {"digits": 4, "remark": True}
    if task == "episodes" and length >= 256:
        return {"topics": int(rng.integers(2, 6)), "rounds": int(rng.integers(2, 4))}
    return {}


def _drill(rng: np.random.Generator, a: Alphabet, filler: tasks.Filler, length: int) -> _Row:
    """Four to eight passkeys in one text, all of them asked."""
    example = tasks.passkeys(rng, a, filler, length, int(rng.integers(4, 9)))
    return _labelled(example, a, length)


def _task(rng: np.random.Generator, task: str, a: Alphabet, filler: tasks.Filler, length: int) -> _Row:
    example = tasks.TASKS[task](rng, a, filler, length, **_options(rng, task, length))
    return _labelled(example, a, length)


def _labelled(example: tasks.Example, a: Alphabet, length: int) -> _Row:
    ids = example.tokens()
    first_text = a.topics.stop
    text = _blank(len(ids))
    # The alphabet's own tokens cannot be foreseen where they are stated, so only text is predicted there.
    text[:-1] = np.where(ids[1:] >= first_text, ids[1:], IGNORE)
    recall = _blank(len(ids))
    for i, token in example.answers:
        recall[len(example.context) + i] = token
    return _fit(ids, length, a.pad), _fit(text, length, IGNORE), _blank(length), _fit(recall, length, IGNORE)


def _fit(row: Ids, length: int, fill: int) -> Ids:
    out = np.full(length, fill, dtype=np.int64)
    # A stream a little too long loses its beginning at most by a few filler tokens: the end carries the questions.
    row = row[-length:]
    out[: len(row)] = row
    return out


def make_batch(rng: np.random.Generator, a: Alphabet, filler: tasks.Filler, vocab: int, stage: Stage) -> Batch:
    """Draw a batch.

    Args:
        rng: the only source of chance.
        a: the tokenizer's task alphabet.
        filler: real text.
        vocab: repeated sequences are drawn from the task alphabet; half of the longer ones from this many tokens.
        stage: size and shares.
    """
    length = stage.length
    parts: list[_Row] = []
    for mode in rng.choice(len(_MODES), size=stage.tokens // length, p=_SHARES):
        name = _MODES[int(mode)]
        if stage.drill and rng.random() < stage.drill:
            parts.append(_drill(rng, a, filler, length))
            continue
        if stage.passkey and rng.random() < stage.passkey:
            name = "passkey-late" if rng.random() < 0.5 else "passkey-early"
        if rng.random() < stage.repeat:
            parts.append(_repeat(rng, vocab if length > 64 and rng.random() < 0.5 else a.topics.stop, length))
        elif name == "text":
            parts.append(_text(rng, a, filler, length))
        else:
            parts.append(_task(rng, name, a, filler, length))
    return Batch(*(np.stack(column) for column in zip(*parts, strict=True)))
