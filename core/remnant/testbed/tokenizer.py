"""The testbed's byte-level BPE tokenizer: ordinary sub-words for text, single tokens for the task alphabet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from remnant.errors import ConfigError
from remnant.testbed.text import load_corpus

__all__ = ["N_KEYS", "N_TOPICS", "N_VALUES", "TOKENIZER_FILE", "Alphabet", "load_tokenizer", "train_tokenizer"]

TOKENIZER_FILE = Path(__file__).with_name("tokenizer.json")
N_KEYS, N_VALUES, N_TOPICS = 192, 96, 16
_MARKERS = ("<pad>", "<bos>", "<eos>", "<fact>", "<ask>", "<ok>")
_VOCAB = 2048


def _specials() -> list[str]:
    keys = [f"<k{i}>" for i in range(N_KEYS)]
    values = [f"<v{i}>" for i in range(N_VALUES)]
    return [*_MARKERS, *keys, *values, *(f"<t{i}>" for i in range(N_TOPICS))]


@dataclass(frozen=True)
class Alphabet:
    """Token ids of the task alphabet. `keys`, `values` and `topics` are half-open ranges of ids."""

    pad: int
    bos: int
    eos: int
    fact: int
    ask: int
    ok: int
    keys: range
    values: range
    topics: range

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Alphabet:
        """Look the task alphabet up in a tokenizer made by `train_tokenizer`.

        Raises:
            ConfigError: the tokenizer lacks one of the tokens.
        """
        pad, bos, eos, fact, ask, ok = (_id(tokenizer, name) for name in _MARKERS)
        sizes = {"<k0>": N_KEYS, "<v0>": N_VALUES, "<t0>": N_TOPICS}
        keys, values, topics = (range(a := _id(tokenizer, name), a + n) for name, n in sizes.items())
        return cls(pad, bos, eos, fact, ask, ok, keys, values, topics)


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ConfigError(
            f"a tokenizer without the token {token!r}",
            accepted="one made by remnant.testbed.tokenizer.train_tokenizer",
            do="use load_tokenizer(), which loads the shipped one",
        )
    return found


def train_tokenizer() -> Tokenizer:
    """Train the BPE merges on the training split; deterministic for one corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB,
        special_tokens=_specials(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(load_corpus().train, trainer)
    return tokenizer


@lru_cache(maxsize=1)
def load_tokenizer() -> Tokenizer:
    """Load the shipped tokenizer."""
    return Tokenizer.from_file(str(TOKENIZER_FILE))
