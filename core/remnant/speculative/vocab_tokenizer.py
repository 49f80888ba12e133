"""The tokenizer beside a model, without any framework where its file allows that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remnant.errors import ConfigError
from remnant.lazy import needs
from remnant.speculative.vocab_counts import Encode

__all__ = ["Tokenizer", "open_tokenizer"]

_OTHERS = ("tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Tokenizer:
    """What is asked of a tokenizer.

    Args:
        plain: encodes text as it is.
        prompt: encodes text as models are given it, with a beginning where the model has one.
        size: tokens that it knows.
    """

    plain: Encode
    prompt: Encode
    size: int


def open_tokenizer(folders: Iterable[Path | None]) -> Tokenizer | None:
    """The tokenizer of the first folder that has one.

    Returns:
        None where no folder has one.

    Raises:
        ConfigError: a tokenizer that cannot be read.
    """
    for folder in folders:
        if folder is not None and (folder / "tokenizer.json").is_file():
            return _fast(folder / "tokenizer.json")
        if folder is not None and any((folder / name).is_file() for name in _OTHERS):
            return _slow(folder)
    return None


def _fast(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Fast

    try:
        inner: Any = Fast.from_file(str(path))
    except Exception as error:  # the library raises nothing more exact
        raise ConfigError(f"{str(path)!r} is not a tokenizer: {error}") from None
    inner.no_truncation()
    inner.no_padding()
    return Tokenizer(
        lambda text: inner.encode(text, add_special_tokens=False).ids,
        lambda text: inner.encode(text).ids,
        int(inner.get_vocab_size()),
    )


def _slow(folder: Path) -> Tokenizer:
    with needs("hf", wanted_by=f"the tokenizer in {folder.name!r}, which has no tokenizer.json,"):
        from transformers import AutoTokenizer
    loader: Any = AutoTokenizer
    try:
        inner: Any = loader.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the tokenizer in {str(folder)!r} cannot be read: {error}") from None
    return Tokenizer(lambda text: inner.encode(text, add_special_tokens=False), inner.encode, len(inner))
