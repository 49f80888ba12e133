"""What the request's index and the store of past outputs share: packed tokens, comparison, and learnt chances."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

from remnant.errors import ConfigError

__all__ = [
    "COPIED",
    "JUDGED",
    "MatchOptions",
    "Rates",
    "as_bytes",
    "at_least",
    "common_suffix",
    "grounds_of",
    "most_shared",
    "pack",
    "packed",
]

JUDGED: Final = 4
"""Tokens of a draft by which it is judged, so that the same matches are followed whatever the limit."""
ALONE, ALL, MOST, FEW, COPIED = range(5)
"""Grounds of a continuation: its occurrence is the only one, all agree, most do, fewer do; or it was right so far."""
_TRUST: Final = (0.92, 1.0, 0.8, 0.5, 1.0)
"""What the prior is multiplied with, by grounds."""

_PRIOR: Final = (0.0, 0.6, 0.7, 0.7, 0.75, 0.8, 0.8, 0.85, 0.88, 0.9, 0.92, 0.93, 0.94, 0.95, 0.95, 0.95, 0.97, 0.98)
"""Chance that the next token is right, by length of match: single lengths, 16 to 31, and above; where to start from."""
_PRIORS: Final = tuple(tuple(trust * prior for prior in _PRIOR) for trust in _TRUST)
_WEIGHT: Final = 4.0
"""Tokens that the prior counts for."""
_SINGLE, _LONG = 16, 32
_BUCKETS: Final = (*range(_SINGLE), *(_SINGLE,) * (_LONG - _SINGLE), _SINGLE + 1)
"""Of a length up to `_LONG`, the place of its chance."""


@dataclass(frozen=True)
class MatchOptions:
    """What counts as a match, and what may be spent on it.

    Args:
        min_match: tokens that must agree before anything is proposed.
        min_share: propose nothing where, of four tokens, less than this fraction is expected to be accepted; 0 proposes
            whenever something matches. What is expected is learnt from the request itself.
        long_match: tokens of the second, longer key: matches of at least this length are found among the occurrences
            of the longer key, which are few.
        probes: occurrences that one search looks at, newest first.
        depth: tokens up to which two occurrences are compared; longer matches count as equally long.
        max_tokens: tokens of the request that are indexed at most, the newest; never fewer than half of it.

    Raises:
        ConfigError: a value outside its range.
    """

    min_match: int = 2
    min_share: float = 0.42
    long_match: int = 8
    probes: int = 16
    depth: int = 32
    max_tokens: int = 1 << 17

    def __post_init__(self) -> None:
        """Check every value."""
        at_least("min_match", self.min_match, 1)
        at_least("long_match", self.long_match, self.min_match + 1)
        at_least("probes", self.probes, 1)
        at_least("depth", self.depth, self.long_match)
        at_least("max_tokens", self.max_tokens, 2 * self.depth)
        if not 0 <= self.min_share <= 1:
            raise ConfigError(f"min_share {self.min_share}", accepted="a fraction from 0 to 1")


class Rates:
    """How often the token after a match was the right one, by the length of the match and what speaks for it.

    Counts are plain sums, so what was counted can be taken back exactly.
    """

    __slots__ = ("_chances", "_hits", "_seen")

    def __init__(self) -> None:
        """Begin with the prior alone."""
        self._hits = [[0] * len(_PRIOR) for _ in _TRUST]
        self._seen = [[0] * len(_PRIOR) for _ in _TRUST]
        self._chances = [list(priors) for priors in _PRIORS]

    def count(self, length: int, grounds: int, run: int, sign: int = 1, failed: bool = True) -> None:
        """Count a match of `length` tokens that went on for `run` tokens and then failed; a `sign` of -1 takes it back.

        Where it has not `failed`, only the tokens that were right are counted. The first token is counted for the
        grounds that the match had, those after it as copied.
        """
        if not run:
            if failed:
                self._add(grounds, _BUCKETS[min(length, _LONG)], 0, sign)
            return
        end = length + run
        self._add(grounds, _BUCKETS[min(length, _LONG)], sign, sign)
        low = length + 1
        for bucket in range(low, min(end, _SINGLE)):
            self._add(COPIED, bucket, sign, sign)
        for bucket, first, last in ((_SINGLE, _SINGLE, _LONG), (_SINGLE + 1, _LONG, end)):
            inside = min(end, last) - max(low, first)
            if inside > 0:
                self._add(COPIED, bucket, sign * inside, sign * inside)
        if failed:
            self._add(COPIED, _BUCKETS[min(end, _LONG)], 0, sign)

    def expected(self, length: int, grounds: int, limit: int) -> float:
        """Tokens of a draft of `limit` after a match of `length` tokens that are expected to be accepted."""
        if limit <= 0:
            return 0.0
        total = whole = self._chances[grounds][_BUCKETS[length] if length < _LONG else _SINGLE + 1]
        chances = self._chances[COPIED]
        if length >= _LONG:
            for _ in range(limit - 1):
                whole *= chances[_SINGLE + 1]
                total += whole
            return total
        for at in range(length + 1, length + limit):
            whole *= chances[_BUCKETS[at] if at < _LONG else _SINGLE + 1]
            total += whole
        return total

    def _add(self, grounds: int, bucket: int, hits: int, seen: int) -> None:
        right, all_of = self._hits[grounds], self._seen[grounds]
        right[bucket] += hits
        all_of[bucket] += seen
        known = right[bucket] + _WEIGHT * _PRIORS[grounds][bucket]
        self._chances[grounds][bucket] = known / (all_of[bucket] + _WEIGHT)


def grounds_of(token: int, following: list[int]) -> int:
    """What speaks for a continuation: how many of all occurrences that were looked at go on with it."""
    if len(following) == 1:
        return ALONE
    same = following.count(token)
    return ALL if same == len(following) else MOST if 2 * same > len(following) else FEW


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


def most_shared(found: list[int], following: list[int]) -> list[int]:
    """Those of equally good occurrences that go on with the token that most of them go on with.

    Args:
        found: occurrences, newest first.
        following: the token after each.

    Returns:
        A part of `found` in the same order; of two tokens that equally many go on with, the newest occurrence decides.
    """
    votes: dict[int, int] = {}
    for token in following:
        votes[token] = votes.get(token, 0) + 1
    most = max(votes, key=votes.__getitem__)  # the first of equals
    return [q for q, token in zip(found, following, strict=True) if token == most]


def at_least(name: str, value: int, least: int) -> None:
    """Check an option that counts something.

    Raises:
        ConfigError: it is not an integer, or below `least`.
    """
    if isinstance(value, bool) or value < least or value != int(value):
        raise ConfigError(f"{name} {value!r}", accepted=f"an integer of at least {least}")


def pack(tokens: Iterable[Any]) -> array[int]:
    """Tokens as `array("i")` of their own: 4 bytes each, and slices of it compare and hash in C.

    Args:
        tokens: ints, or a one-dimensional numpy array.

    Raises:
        ConfigError: a token is not an integer from 0 to 2**31 - 1.
    """
    made = packed(tokens)
    return made[:] if made is tokens else made


def packed(tokens: Iterable[Any]) -> array[int]:
    """What `pack` gives, or the tokens themselves where they are packed already.

    Raises:
        ConfigError: as `pack`.
    """
    try:
        if isinstance(tokens, array) and tokens.typecode == "i":
            made = tokens
        else:
            made = _from_buffer(tokens) if hasattr(tokens, "dtype") else array("i", tokens)
    except (OverflowError, TypeError, ValueError) as error:
        raise ConfigError(f"tokens: {error}", accepted="integers from 0 to 2**31 - 1") from error
    if made and (made[0] if len(made) == 1 else min(made)) < 0:
        raise ConfigError(f"a token {min(made)}", accepted="integers from 0 to 2**31 - 1")
    return made


def as_bytes(tokens: Iterable[Any]) -> bytes:
    """What `pack` gives, as bytes, without a second copy where the tokens are stored so."""
    return cast(Any, tokens).tobytes() if _is_packed(tokens) else pack(tokens).tobytes()


def _is_packed(tokens: Any) -> bool:
    """Whether a numpy array holds tokens as `pack` would: in one dimension, 32 bits wide, in this machine's order."""
    kind: Any = getattr(tokens, "dtype", None)
    return getattr(kind, "char", "") in ("i", "l") and kind.itemsize == 4 and kind.isnative and tokens.ndim == 1


def _from_buffer(tokens: Any) -> array[int]:
    """An array of numpy's, in one go where it can be; `array` refuses what is no integer."""
    if not _is_packed(tokens):
        return array("i", tokens.tolist())
    packed = array("i")
    packed.frombytes(tokens.tobytes())
    return packed
