"""What the request's index and the store of past outputs share: packed tokens, comparison, and learnt chances."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any, Final

from remnant.errors import ConfigError

__all__ = ["Rates", "common_suffix", "pack"]

_PRIOR: Final = (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.8, 0.85, 0.88, 0.9, 0.92, 0.93, 0.94, 0.95, 0.95, 0.95, 0.97, 0.98)
"""Chance that the next token is right, by length of match: single lengths, 16 to 31, and above; where to start from."""
_WEIGHT: Final = 4.0
"""Tokens that the prior counts for."""
_SINGLE, _LONG = 16, 32


class Rates:
    """How often the token after a match was the right one, by the length of the match.

    Counts are plain sums, so what was counted can be taken back exactly.
    """

    __slots__ = ("_hits", "_known", "_seen")

    def __init__(self) -> None:
        """Begin with the prior alone."""
        self._hits = [0] * len(_PRIOR)
        self._seen = [0] * len(_PRIOR)
        self._known: dict[tuple[int, int], float] = {}

    def count(self, length: int, run: int, sign: int = 1) -> None:
        """Count a match of `length` tokens that went on for `run` tokens and then failed; -1 takes it back."""
        self._known.clear()
        end = length + run
        for at in range(length, min(end, _SINGLE)):
            self._hits[at] += sign
            self._seen[at] += sign
        for bucket, low, high in ((_SINGLE, _SINGLE, _LONG), (_SINGLE + 1, _LONG, end)):
            inside = min(end, high) - max(length, low)
            if inside > 0:
                self._hits[bucket] += sign * inside
                self._seen[bucket] += sign * inside
        self._seen[_bucket(end)] += sign

    def chance(self, length: int) -> float:
        """Chance that the token after a match of `length` tokens is right."""
        bucket = _bucket(length)
        return (self._hits[bucket] + _WEIGHT * _PRIOR[bucket]) / (self._seen[bucket] + _WEIGHT)

    def expected(self, length: int, limit: int) -> float:
        """Tokens of a draft of `limit` after a match of `length` tokens that are expected to be accepted."""
        length = min(length, _LONG)
        known = self._known.get((length, limit))
        if known is None:
            whole, known = 1.0, 0.0
            for place in range(limit):
                whole *= self.chance(length + place)
                known += whole
            self._known[length, limit] = known
        return known


def _bucket(length: int) -> int:
    return length if length < _SINGLE else _SINGLE + (length >= _LONG)


def common_suffix(tokens: array[int], a: int, b: int, known: int, depth: int, other: array[int] | None = None) -> int:
    """How many tokens agree, going back from position a of `tokens` and position b of `other` (or of `tokens`).

    Args:
        tokens: one text.
        a: position in it.
        b: position in the other.
        known: tokens that are known to agree.
        depth: where to stop counting.
        other: the other text; None is the same one, and then a is below b.
    """
    second = tokens if other is None else other
    most = min(depth, a + 1, b + 1)
    length = known
    while length < most and tokens[a - length] == second[b - length]:
        length += 1
    return length


def pack(tokens: Iterable[Any]) -> array[int]:
    """Tokens as `array("i")`: 4 bytes each, and slices of it compare and hash in C.

    Raises:
        ConfigError: a token is not an integer from 0 to 2**31 - 1.
    """
    if isinstance(tokens, array) and tokens.typecode == "i":
        return tokens
    try:
        packed = _from_buffer(tokens) if hasattr(tokens, "dtype") else array("i", tokens)
    except (OverflowError, TypeError, ValueError) as error:
        raise ConfigError(f"tokens: {error}", accepted="integers from 0 to 2**31 - 1") from error
    if packed and min(packed) < 0:
        raise ConfigError(f"a token {min(packed)}", accepted="integers from 0 to 2**31 - 1")
    return packed


def _from_buffer(tokens: Any) -> array[int]:
    """A one-dimensional array of numpy's, copied in one go when its items are 32 bits wide."""
    if str(tokens.dtype) != "int32":
        return array("i", tokens.tolist())
    packed = array("i")
    packed.frombytes(tokens.tobytes())
    return packed
