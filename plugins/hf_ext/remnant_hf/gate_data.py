"""What gate training reads: windows of a text, or the testbed's own tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from remnant.errors import ConfigError

__all__ = ["IGNORE", "Batches", "GateBatch", "opening", "task_batches", "text_batches"]

IGNORE = -100


@dataclass(frozen=True)
class GateBatch:
    """What one step learns from.

    Attributes:
        ids: `[B, S]` int64 token ids.
        labels: `[B, S]` int64 next token of each position, `IGNORE` where there is none.
        weights: `[B, S]` float32, what each position counts; positions with 0 cost nothing.
        real: `[B, S]` bool, False for padding, which may stand at the end of a row only; None when there is none.
    """

    ids: Tensor
    labels: Tensor
    weights: Tensor
    real: Tensor | None = None


Batches = Callable[[int], GateBatch]
"""Draws the batch of a step; the same step always gives the same batch, so that a run can be resumed."""


def opening(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before every text, `<bos>` as a rule: a window without it is nothing the model knows."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for at in range(len(whole) - len(bare) + 1):
        if bare and whole[at : at + len(bare)] == bare:
            return whole[:at]
    return []


def text_batches(ids: Sequence[int], length: int, rows: int, seed: int = 0, first: Sequence[int] = ()) -> Batches:
    """Random windows of a token stream; every position of the text counts the same.

    Args:
        ids: the stream.
        length: tokens per row, `first` included.
        rows: per batch.
        seed: of every batch.
        first: tokens that open every row.

    Raises:
        ConfigError: the stream is shorter than one window.
    """
    stream, head = torch.tensor(ids, dtype=torch.int64), torch.tensor(list(first), dtype=torch.int64)
    room = length - len(head)
    if len(stream) <= room or room < 2:
        raise ConfigError(f"the data hold {len(stream)} tokens", accepted=f"more than the length, {length}")

    def draw(step: int) -> GateBatch:
        rng = np.random.default_rng([seed, step])
        starts = rng.integers(0, len(stream) - room, size=rows)
        pieces = torch.stack([torch.cat([head, stream[a : a + room + 1]]) for a in starts])
        weights = torch.ones(rows, length)
        weights[:, : max(len(head) - 1, 0)] = 0.0
        return GateBatch(pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous(), weights)

    return draw


def task_batches(length: int = 512, rows: int = 4, seed: int = 0, answers: float = 3.0, drill: float = 0.2) -> Batches:
    """Streams of the testbed's tasks and text, as its weights were trained on; one batch in three has half the length.

    Args:
        length: tokens per row, at least 96.
        rows: rows per batch at full length; twice as many at half of it.
        seed: of every batch; far from the seeds of the weights' own training.
        answers: what all answers of a batch weigh together, against all of its text.
        drill: share of rows with many passkeys, all of them asked.
    """
    from remnant.testbed.batches import Stage, make_batch
    from remnant.testbed.tasks import Filler
    from remnant.testbed.text import load_corpus
    from remnant.testbed.tokenizer import Alphabet, load_tokenizer

    tokenizer = load_tokenizer()
    alphabet = Alphabet.of(tokenizer)
    encoded = tokenizer.encode_batch(list(load_corpus().train), add_special_tokens=False)
    stream = np.concatenate([np.array([*e.ids, alphabet.eos], dtype=np.int64) for e in encoded])
    filler, vocab = Filler(stream), tokenizer.get_vocab_size()

    def draw(step: int) -> GateBatch:
        rng = np.random.default_rng([seed, 7, step])
        # Three and two have no common factor, so fading and compaction both see either length.
        stage = Stage(1, length // 2 if step % 3 == 2 else length, length * rows, drill=drill)
        batch = make_batch(rng, alphabet, filler, vocab, stage)
        text, recall = torch.from_numpy(batch.text), torch.from_numpy(batch.recall)
        asked, written = recall != IGNORE, text != IGNORE
        weights = asked * (answers / max(int(asked.sum()), 1)) + written * (1.0 / max(int(written.sum()), 1))
        ids = torch.from_numpy(batch.ids)
        return GateBatch(ids, torch.where(asked, recall, text), weights, ids != alphabet.pad)

    return draw
