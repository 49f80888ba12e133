"""Training batches: what is labelled, and as what."""

import numpy as np
import pytest

from remnant.testbed.batches import IGNORE, Stage, make_batch
from remnant.testbed.examples import held_out
from remnant.testbed.tokenizer import Alphabet, load_tokenizer

A = Alphabet.of(load_tokenizer())


def batch(seed: int, repeat: float, length: int = 128, rows: int = 24):
    stage = Stage(1, length, length * rows, repeat)
    return make_batch(np.random.default_rng(seed), A, held_out(), 2048, stage)


def test_a_drill_asks_every_passkey():
    stage = Stage(1, 256, 256 * 8, drill=1.0)
    made = make_batch(np.random.default_rng(4), A, held_out(), 2048, stage)
    asked = (made.recall != IGNORE).sum(1)
    assert ((asked >= 16) & (asked <= 32) & (asked % 4 == 0)).all()


def test_the_generator_decides_everything():
    first, again = batch(1, 0.5), batch(1, 0.5)
    assert all(np.array_equal(getattr(first, k), getattr(again, k)) for k in ("ids", "text", "copy", "recall"))


def test_repeats_are_labelled_with_the_next_token():
    made = batch(2, 1.0)
    rows, columns = np.nonzero(made.copy != IGNORE)
    assert len(rows) > 0
    assert np.array_equal(made.copy[rows, columns], made.ids[rows, columns + 1])
    assert (made.recall == IGNORE).all()
    assert (made.text == IGNORE).all()


@pytest.mark.parametrize("length", [64, 128, 512])
def test_tasks_label_values_and_text(length: int):
    made = batch(3, 0.0, length)
    assert made.ids.shape == (24, length)
    asked = made.recall[made.recall != IGNORE]
    assert len(asked) > 0
    assert np.isin(asked, np.arange(A.values.start, A.values.stop)).all()
    said = made.text[made.text != IGNORE]
    assert len(said) > 0
    assert ((said >= A.topics.stop) | (said == A.eos)).all()
