"""How a text went on the last time: an index over one request's tokens, whose answers take the same time at any length.

`SuffixIndex` finds where the newest tokens occurred before and proposes what followed there. It is plain Python over
lists of ints, without torch, so that any host may call it between two steps.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from remnant.errors import ConfigError
from remnant.speculative.match import Rates, common_suffix, pack

__all__ = ["MatchOptions", "SuffixIndex"]


@dataclass(frozen=True)
class MatchOptions:
    """What counts as a match, and what may be spent on it.

    Args:
        min_match: tokens that must agree before anything is proposed.
        min_share: propose nothing where less than this fraction of the draft is expected to be accepted; 0 proposes
            whenever something matches. The expectation is learnt from the request itself.
        long_match: tokens of the second, longer key: matches of at least this length are found among the occurrences
            of the longer key, which are few.
        probes: occurrences that one search looks at, newest first.
        depth: tokens up to which two occurrences are compared; longer matches count as equally long.
        max_tokens: tokens of the request that are indexed at most, the newest; never fewer than half of it.

    Raises:
        ConfigError: a value outside its range.
    """

    min_match: int = 2
    min_share: float = 0.4
    long_match: int = 8
    probes: int = 16
    depth: int = 32
    max_tokens: int = 1 << 17

    def __post_init__(self) -> None:
        """Check every value."""
        _at_least("min_match", self.min_match, 1)
        _at_least("long_match", self.long_match, self.min_match + 1)
        _at_least("probes", self.probes, 1)
        _at_least("depth", self.depth, self.long_match)
        _at_least("max_tokens", self.max_tokens, 2 * self.depth)
        if not 0 <= self.min_share <= 1:
            raise ConfigError(f"min_share {self.min_share}", accepted="a fraction from 0 to 1")


class SuffixIndex:
    """Where the newest tokens of one request occurred before, kept up to date token by token.

    A draft is what followed the longest earlier match of the newest tokens, among the newest `probes` occurrences.
    Of equally long ones the continuation that most of them share is taken; then the one that lies closest to where the
    text was last copied from; then the newest. Everything is a function of the prompt and of the tokens after it, not
    of how they were handed over: taking tokens back leaves what never adding them would have left.

    Cost: a token that continues the match costs one comparison. Any other costs two dictionary entries and a search of
    at most `2 * probes` occurrences of at most `depth` tokens: constants, whatever the length of the text.
    Memory: at most 36 bytes per token of history, and about 290 per indexed token, of which there are at most
    `max_tokens`.

    Args:
        prompt: tokens to begin with; they are indexed, and nothing is learnt from how well they predict each other.
        options: what counts as a match.

    Raises:
        ConfigError: a token is not an integer from 0 to 2**31 - 1.

    Source: in the spirit of prompt lookup (Saxena 2023) and SuffixDecoding (Oliaro et al. 2024, arXiv 2411.04975).
        Differs: hash chains in place of a suffix tree (bounded work, exact removal), and the chance of a continuation
        is learnt per length of match rather than read off its frequency.
    Example: SuffixIndex([1, 2, 3, 4, 5, 1, 2, 3]).propose(2) -> [4, 5]
    """

    def __init__(self, prompt: Iterable[int] = (), options: MatchOptions | None = None) -> None:
        """See the class."""
        self.options = options or MatchOptions()
        self._orders = (self.options.long_match, self.options.min_match)
        self._tokens = array("i")
        self._runs: list[tuple[int, int, int, int]] = []
        self._reset(pack(prompt))

    def __len__(self) -> int:
        """Tokens of history."""
        return len(self._tokens)

    @property
    def tokens(self) -> array[int]:
        """The history, `array("i")`; read it, never change it."""
        return self._tokens

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens that were really emitted.

        Raises:
            ConfigError: see the class; nothing is appended then.
        """
        history = self._tokens
        at, source, length, diagonal = self._runs[-1]
        n = len(history)
        for token in pack(tokens):
            history.append(token)
            n += 1
            if source >= 0 and history[source + n - 1 - at] == token:
                continue
            run = n - 1 - at
            if source >= 0:
                self._rates.count(length, run)
                if length + run >= self.options.long_match:
                    diagonal = at - source
            source, length = self._search(n, diagonal)
            at = n
            self._runs.append((at, source, length, diagonal))

    def propose(self, limit: int) -> list[int]:
        """What probably follows: at most `limit` tokens, none where too little is expected of them.

        A match that overlaps the end goes on in its own period.
        """
        at, source, length, _ = self._runs[-1]
        if source < 0 or limit <= 0:
            return []
        n = len(self._tokens)
        if self._rates.expected(length + n - at, limit) < self.options.min_share * limit:
            return []
        start = source + n - at
        draft = self._tokens[start : start + limit].tolist()
        while len(draft) < limit:  # the match runs into the end: its continuation is the draft itself
            draft += draft[: limit - len(draft)]
        return draft

    def expected(self, limit: int) -> float:
        """Tokens of a draft of `limit` that are expected to be accepted; 0 where nothing matches."""
        at, source, length, _ = self._runs[-1]
        return self._rates.expected(length + len(self._tokens) - at, limit) if source >= 0 else 0.0

    def match(self) -> tuple[int, int]:
        """Where the draft is read from, as an index into the history, and how many tokens before it agree; or -1, 0."""
        at, source, length, _ = self._runs[-1]
        run = len(self._tokens) - at
        return (source + run, length + run) if source >= 0 else (-1, 0)

    def truncate(self, n: int) -> None:
        """Take tokens back, down to the first n.

        Raises:
            ConfigError: n is negative or beyond the end.
        """
        if not 0 <= n <= len(self._tokens):
            raise ConfigError(f"{n} of {len(self._tokens)} tokens", accepted="0 up to as many as there are")
        if n < self._prompt:
            self._reset(self._tokens[:n])
            return
        while self._runs[-1][0] > n:
            at = self._runs.pop()[0]
            before, source, length, _ = self._runs[-1]
            if source >= 0:
                self._rates.count(length, at - 1 - before, -1)
        self._forget(max(n - 1, 0))
        del self._tokens[n:]

    def sync(self, history: Sequence[int]) -> int:
        """Make the index hold exactly this history, whatever it held before.

        Args:
            history: ints, or an int32 array; a host that moves or restarts requests hands it over whole.

        Returns:
            How many tokens were known already; 0 says that the index was built anew.
        """
        given = pack(history)
        known = len(self._tokens)
        if len(given) < known or given[:known] != self._tokens:
            shared = _shared(given, self._tokens)
            if shared < self._prompt or 2 * shared < known:
                self._reset(given)
                return 0
            self.truncate(shared)
            known = shared
        self.extend(given[known:])
        return known

    def stats(self) -> dict[str, int]:
        """Counts since the index was built: `tokens`, `indexed`, `searches`, `probes` (occurrences looked at)."""
        return {
            "tokens": len(self._tokens),
            "indexed": self._indexed - self._base,
            "searches": self._searches,
            "probes": self._probes,
        }

    def _reset(self, prompt: array[int]) -> None:
        self._tokens = prompt[:]
        self._prompt = len(prompt)
        self._searches = self._probes = 0
        self._rates = Rates()
        self._clear(0)
        source, length = self._search(len(prompt), 0)
        # Where a search was made: (history length, source, match length, last copy's distance); between two of them the
        # match only goes on.
        self._runs = [(len(prompt), source, length, 0)]

    def _clear(self, base: int) -> None:
        self._base = self._indexed = base
        self._heads: tuple[dict[bytes, int], ...] = ({}, {})
        self._chains = (array("i"), array("i"))

    def _search(self, n: int, diagonal: int) -> tuple[int, int]:
        """The best earlier match of the end of the first n tokens: where it goes on, and its length; or -1, 0."""
        end = n - 1
        if end < 1:
            return -1, 0
        self._index(end)
        self._searches += 1
        for order, heads, chain in zip(self._orders, self._heads, self._chains, strict=True):
            if n < order:
                continue
            q = heads.get(self._tokens[n - order : n].tobytes(), -1)
            if q >= 0:
                return self._choose(q, end, order, chain, diagonal)
        return -1, 0

    def _choose(self, q: int, end: int, order: int, chain: array[int], diagonal: int) -> tuple[int, int]:
        tokens, base, depth = self._tokens, self._base, self.options.depth
        best, found, left = 0, list[int](), self.options.probes
        while q >= 0 and left:
            length = common_suffix(tokens, q, end, order, depth)
            if length > best:
                best, found = length, [q]
            elif length == best:
                found.append(q)
            q = chain[q - base]
            left -= 1
        self._probes += self.options.probes - left
        if len(found) > 1:
            found = _most_shared(found, tokens)
            if diagonal:
                return min(found, key=lambda q: abs(end - q - diagonal)) + 1, best
        return found[0] + 1, best

    def _index(self, upto: int) -> None:
        """Index the grams that end before position `upto`, within the window that a history of this length has."""
        base = self._window(upto)
        if base != self._base:
            self._clear(base)
        start, self._indexed = self._indexed, max(upto, self._indexed)
        if start >= upto:
            return
        for order, heads, chain in zip(self._orders, self._heads, self._chains, strict=True):
            first = max(start, base + order - 1)
            chain.extend([-1] * (min(first, upto) - start))
            packed, width = self._tokens[first - order + 1 : upto].tobytes(), 4 * order
            get, link = heads.get, chain.append
            for at, end in zip(range(0, len(packed) - width + 1, 4), range(first, upto), strict=True):
                key = packed[at : at + width]
                link(get(key, -1))
                heads[key] = end

    def _forget(self, n: int) -> None:
        """Take back the grams that end at position n and later."""
        for order, heads, chain in zip(self._orders, self._heads, self._chains, strict=True):
            for end in range(self._indexed - 1, max(n, self._base + order - 1) - 1, -1):
                key = self._tokens[end - order + 1 : end + 1].tobytes()
                before = chain[end - self._base]
                if before < 0:
                    del heads[key]
                else:
                    heads[key] = before
            del chain[max(n - self._base, 0) :]
        self._indexed = max(min(self._indexed, n), self._base)

    def _window(self, n: int) -> int:
        """First indexed position of a history of n tokens; it moves by half windows, so that moving is O(1) a token."""
        over = n - self.options.max_tokens
        half = self.options.max_tokens // 2
        return 0 if over <= 0 else -(-over // half) * half


def _most_shared(found: list[int], tokens: array[int]) -> list[int]:
    """Those of the occurrences that go on with the token that most of them go on with; the newest decides a tie."""
    votes: dict[int, int] = {}
    for q in found:
        votes[tokens[q + 1]] = votes.get(tokens[q + 1], 0) + 1
    most = max(votes, key=votes.__getitem__)  # the first of equals, which is the newest: `found` is newest first
    return [q for q in found if tokens[q + 1] == most]


def _shared(a: array[int], b: array[int]) -> int:
    """Length of the common prefix."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or value < least or value != int(value):
        raise ConfigError(f"{name} {value!r}", accepted=f"an integer of at least {least}")
