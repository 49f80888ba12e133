"""Corpus and prompts of the testbed: the text and tasks that it was trained on, and held-out ones to measure on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from remnant.speculative.fastdraft.data import IGNORE, Data, Ids, Prompt
from remnant.testbed.batches import Stage, make_batch
from remnant.testbed.examples import make_examples, stream
from remnant.testbed.tasks import TASKS, Filler
from remnant.testbed.text import load_corpus
from remnant.testbed.tokenizer import Alphabet, load_tokenizer

__all__ = ["DOMAINS", "TestbedRows", "held_out_prompts", "read_testbed"]

DOMAINS = ("text", "recall", "passkey-early", "episodes")
_REPEAT = 0.15  # of the rows are random tokens said twice, as in the testbed's own training
_TEXT = 0.6  # of the prompts
_SEED = 400_000  # of the held-out examples; training draws its own from a generator


@lru_cache(maxsize=1)
def _filler() -> Filler:
    return Filler(stream(load_corpus().train))


@dataclass(frozen=True)
class TestbedRows:
    """Rows of the testbed's training: see `remnant.testbed.batches`."""

    __test__ = False  # its name is not meant for pytest

    repeat: float = _REPEAT

    def rows(self, rng: np.random.Generator, n: int, length: int) -> tuple[Ids, Ids]:
        """See `data.Rows`."""
        alphabet, vocab = Alphabet.of(load_tokenizer()), load_tokenizer().get_vocab_size()
        batch = make_batch(rng, alphabet, _filler(), vocab, Stage(1, length, n * length, self.repeat))
        labels = np.where(batch.recall != IGNORE, batch.recall, np.where(batch.copy != IGNORE, batch.copy, batch.text))
        return batch.ids, labels


def read_testbed(wanted: int, held_out: int, seed: int, length: int = 128) -> Data:
    """Prompts of both kinds: the beginning of a text, and a task just before its first answer.

    Args:
        wanted: prompts for training.
        held_out: prompts for the measurement, per domain; their text was never trained on.
        seed: of the training prompts.
        length: tokens of a task.
    """
    rng = np.random.default_rng([seed, 1])
    alphabet, filler = Alphabet.of(load_tokenizer()), _filler()
    train = {_draw(rng, alphabet, filler, length): None for _ in range(wanted)}
    kept = [prompt for domain in DOMAINS for prompt in held_out_prompts(domain, held_out, length)]
    return Data(TestbedRows(), None, tuple(train), tuple(kept), load_corpus().sha256)


def _draw(rng: np.random.Generator, a: Alphabet, filler: Filler, length: int) -> Prompt:
    if rng.random() < _TEXT:
        body = filler.take(rng, int(rng.integers(8, length // 2)))
        return Prompt((a.bos, *body.tolist()), "text")
    task = DOMAINS[1 + int(rng.integers(len(DOMAINS) - 1))]
    return _question(TASKS[task](rng, a, filler, length), task)


def _question(example: Any, domain: str) -> Prompt:
    """The stream of a task up to where its first answer is due."""
    first = example.answers[0][0]
    return Prompt((*example.context.tolist(), *example.probe[: first + 1].tolist()), domain)


def held_out_prompts(domain: str, n: int, length: int) -> list[Prompt]:
    """Prompts of one domain whose text the testbed never saw; the same for every run."""
    if domain == "text":
        found = make_examples("perplexity", length, n, _SEED // 10_000)
        return [Prompt(tuple(e.context[: length // 2].tolist()), "text") for e in found]
    return [_question(e, domain) for e in make_examples(domain, length, n, _SEED // 10_000)]
