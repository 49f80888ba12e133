"""Past outputs that later requests of the same tenant may draft from: bounded, scoped, and off unless it is made."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from threading import Lock

from remnant.errors import ConfigError
from remnant.speculative.match import at_least, common_suffix, grounds_of, most_shared, pack

__all__ = ["OutputStore", "StoreOptions"]

_SHIFT, _OFFSET = 32, (1 << 32) - 1


@dataclass(frozen=True)
class StoreOptions:
    """What a store holds, and what counts as a match in it.

    Args:
        max_tokens: tokens of all outputs together.
        max_scope_tokens: tokens of one scope's outputs together, so that no tenant can drive out all others.
        min_match: tokens that must agree before anything is proposed.
        probes: occurrences that one search looks at, newest first.
        depth: tokens up to which two occurrences are compared.

    Raises:
        ConfigError: a value below its least one, or a scope that may hold more than the store.
    """

    max_tokens: int = 1 << 20
    max_scope_tokens: int = 1 << 18
    min_match: int = 4
    probes: int = 16
    depth: int = 32

    def __post_init__(self) -> None:
        """Check every value."""
        at_least("min_match", self.min_match, 1)
        at_least("probes", self.probes, 1)
        at_least("depth", self.depth, self.min_match)
        at_least("max_scope_tokens", self.max_scope_tokens, self.min_match + 1)
        at_least("max_tokens", self.max_tokens, self.max_scope_tokens)


@dataclass
class _Output:
    """One output, and for every position the next older and the next newer place with the same key, or -1."""

    tokens: array[int]
    digest: bytes
    older: array[int]
    newer: array[int]


@dataclass
class _Shelf:
    """All of one scope, the least recently used output first.

    A place is an output's number and a position in it, in one integer.
    """

    outputs: OrderedDict[int, _Output] = field(default_factory=OrderedDict[int, _Output])
    heads: dict[bytes, int] = field(default_factory=dict[bytes, int])
    digests: dict[bytes, int] = field(default_factory=dict[bytes, int])
    tokens: int = 0


class OutputStore:
    """Outputs of finished requests, kept per scope, to draft similar ones from.

    A scope is a tenant: every call names one, and nothing that was added under one name is ever compared with, counted
    for or proposed to another. A proposal never runs over the end of the output that it is read from. Full stores drop
    whole outputs, the least recently used ones first: those of a scope that is over its own share, then any.
    Calls from several threads are safe.

    Cost: adding and dropping cost O(1) per token, a proposal at most `probes` comparisons of `depth` tokens.
    Memory: at most 240 bytes per token held.

    Args:
        options: bounds and matching.

    Source: in the spirit of SuffixDecoding's global tree (Oliaro et al. 2024, arXiv 2411.04975). Differs: scopes, and
        whole outputs that can be dropped exactly.
    Example:
        store = OutputStore(); store.add("a", [1, 2, 3, 4, 5, 6])
        store.propose("a", [9, 1, 2, 3, 4], 8) -> [5, 6]; store.propose("b", [9, 1, 2, 3, 4], 8) -> []
    """

    def __init__(self, options: StoreOptions | None = None) -> None:
        """See the class."""
        self.options = options or StoreOptions()
        self._shelves: dict[str, _Shelf] = {}
        self._used: OrderedDict[int, str] = OrderedDict()  # output -> scope, least recently used first
        self._next, self._tokens = 0, 0
        self._lock = Lock()

    def add(self, scope: str, tokens: Iterable[int]) -> bool:
        """Keep an output; of one longer than a scope may hold, the end.

        Returns:
            Whether it was added: one that is too short to match anything, or held already, is not (the latter counts as
            used).

        Raises:
            ConfigError: an empty scope, or a token is not an integer from 0 to 2**31 - 1.
        """
        _check(scope)
        packed = pack(tokens)[-self.options.max_scope_tokens :]
        if len(packed) <= self.options.min_match:
            return False
        digest = blake2b(packed.tobytes(), digest_size=16).digest()
        with self._lock:
            shelf = self._shelves.setdefault(scope, _Shelf())
            known = shelf.digests.get(digest)
            if known is not None:
                self._touch(scope, known)
                return False
            self._make_room(scope, len(packed))
            self._insert(scope, packed, digest)
        return True

    def propose(self, scope: str, context: Sequence[int], limit: int) -> list[int]:
        """What followed the end of `context` in an output of this scope: at most `limit` tokens, or none.

        Args:
            scope: the tenant.
            context: the newest tokens of the request, at least `min_match` of them; `depth` are read.
            limit: in tokens.

        Raises:
            ConfigError: an empty scope, or a token is not an integer from 0 to 2**31 - 1.
        """
        return self.find(scope, context, limit)[0]

    def find(self, scope: str, context: Sequence[int], limit: int) -> tuple[list[int], int, int]:
        """`propose`, how many tokens of the context agree (0 where nothing matches), and the grounds; see `match`."""
        _check(scope)
        near = pack(context[-self.options.depth :])
        key = near[-self.options.min_match :].tobytes()
        if limit <= 0 or len(near) < self.options.min_match:
            return [], 0, 0
        with self._lock:
            shelf = self._shelves.get(scope)
            place = shelf.heads.get(key, -1) if shelf else -1
            if shelf is None or place < 0:
                return [], 0, 0
            place, length, grounds = self._choose(shelf, place, near)
            self._touch(scope, place >> _SHIFT)
            start = (place & _OFFSET) + 1
            return shelf.outputs[place >> _SHIFT].tokens[start : start + limit].tolist(), length, grounds

    def forget(self, scope: str) -> int:
        """Drop all that one scope holds; how many outputs that were."""
        _check(scope)
        with self._lock:
            shelf = self._shelves.pop(scope, _Shelf())
            for number in shelf.outputs:
                del self._used[number]
            self._tokens -= shelf.tokens
            return len(shelf.outputs)

    def stats(self) -> dict[str, int]:
        """`scopes`, `outputs` and `tokens` held."""
        with self._lock:
            return {"scopes": len(self._shelves), "outputs": len(self._used), "tokens": self._tokens}

    def _choose(self, shelf: _Shelf, place: int, near: array[int]) -> tuple[int, int, int]:
        """The place whose past agrees longest, how many tokens agree, and the grounds."""
        options, end = self.options, len(near) - 1
        best, found, following, left = 0, list[int](), dict[int, int](), options.probes
        while place >= 0 and left:
            output, at = shelf.outputs[place >> _SHIFT], place & _OFFSET
            length = common_suffix(output.tokens, at, end, options.min_match, options.depth, near)
            if length > best:
                best, found = length, [place]
            elif length == best:
                found.append(place)
            following[place] = output.tokens[at + 1]
            place = output.older[at]
            left -= 1
        if len(found) > 1:
            found = most_shared(found, [following[q] for q in found])
        return found[0], best, grounds_of(following[found[0]], list(following.values()))

    def _touch(self, scope: str, number: int) -> None:
        self._used.move_to_end(number)
        self._shelves[scope].outputs.move_to_end(number)

    def _make_room(self, scope: str, tokens: int) -> None:
        shelf = self._shelves[scope]
        while shelf.tokens + tokens > self.options.max_scope_tokens:
            self._drop(scope, next(iter(shelf.outputs)))
        while self._tokens + tokens > self.options.max_tokens:
            oldest = next(iter(self._used))
            self._drop(self._used[oldest], oldest)

    def _insert(self, scope: str, tokens: array[int], digest: bytes) -> None:
        shelf, number, width = self._shelves.setdefault(scope, _Shelf()), self._next, self.options.min_match
        none = array("q", [-1]) * len(tokens)
        output = _Output(tokens, digest, none, none[:])
        shelf.outputs[number], shelf.digests[digest] = output, number
        self._used[number] = scope
        for at in range(width - 1, len(tokens) - 1):  # the last token has nothing after it
            key = tokens[at - width + 1 : at + 1].tobytes()
            older, place = shelf.heads.get(key, -1), number << _SHIFT | at
            output.older[at] = older
            if older >= 0:
                shelf.outputs[older >> _SHIFT].newer[older & _OFFSET] = place
            shelf.heads[key] = place
        self._next += 1
        shelf.tokens += len(tokens)
        self._tokens += len(tokens)

    def _drop(self, scope: str, number: int) -> None:
        """Take one output out, and close the gaps that it leaves between others."""
        shelf, width = self._shelves[scope], self.options.min_match
        output = shelf.outputs[number]
        for at in range(width - 1, len(output.tokens) - 1):
            older, newer = output.older[at], output.newer[at]
            if older >= 0:
                shelf.outputs[older >> _SHIFT].newer[older & _OFFSET] = newer
            if newer >= 0:
                shelf.outputs[newer >> _SHIFT].older[newer & _OFFSET] = older
                continue
            key = output.tokens[at - width + 1 : at + 1].tobytes()
            if older >= 0:
                shelf.heads[key] = older
            else:
                del shelf.heads[key]
        del shelf.outputs[number], shelf.digests[output.digest], self._used[number]
        shelf.tokens -= len(output.tokens)
        self._tokens -= len(output.tokens)
        if not shelf.outputs:
            del self._shelves[scope]


def _check(scope: str) -> None:
    if not scope:
        raise ConfigError("an empty scope", accepted="the name of a tenant", do="name whose outputs these are")
