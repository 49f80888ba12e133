"""Between token ids and text, for tokenizers of transformers and of tokenizers alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Detokenizer", "decode", "encode"]


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text, without special tokens around it."""
    out = tokenizer.encode(text, add_special_tokens=False)
    return list(getattr(out, "ids", out))


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of ids, special tokens left out."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


class Detokenizer:
    """Text of a stream of tokens, piece by piece; what the pieces join to is the text of the whole.

    A character that is spread over tokens comes with its last one; the tokens before it give "".
    """

    def __init__(self, tokenizer: Any) -> None:
        """Start before the first token."""
        self._tokenizer = tokenizer
        self._told: list[int] = []  # tokens of the last piece: the context in which the next one is decoded
        self._new: list[int] = []

    def copy(self) -> Detokenizer:
        """The same place in the same stream, to return to."""
        other = Detokenizer(self._tokenizer)
        other._told, other._new = list(self._told), list(self._new)
        return other

    def piece(self, token: int) -> str:
        """The text that this token adds."""
        self._new.append(token)
        whole = decode(self._tokenizer, self._told + self._new)
        if whole.endswith("\ufffd"):
            return ""
        before = decode(self._tokenizer, self._told)
        self._told, self._new = self._new, []
        return whole[len(before) :]
