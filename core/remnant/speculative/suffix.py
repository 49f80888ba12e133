"""How a text went on the last time: an index over one request's tokens, whose answers take the same time at any length.

`SuffixIndex` finds where the newest tokens occurred before and proposes what followed there. It is plain Python over
lists of ints, without torch, so that any host may call it between two steps.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Final

from remnant.errors import ConfigError
from remnant.speculative.match import (
    COPIED,
    JUDGED,
    MatchOptions,
    Rates,
    as_bytes,
    common_suffix,
    grounds_of,
    most_shared,
    pack,
    packed,
)
from remnant.speculative.turns import common_prefix

__all__ = ["MatchOptions", "SuffixIndex"]

_PENDING: Final = 16
"""Tokens that a match may foretell before they are indexed: together they cost less; too many make one call slow."""
_NO_MATCH: Final = (-1, 0, 0)
_WIDE: Final = 4
"""Bytes of a token."""
_TURN: Final = Struct("=5i").pack
_NOTHING: Final = 1e-9
"""Less than any match makes one expect."""


class SuffixIndex:
    """Where the newest tokens of one request occurred before, kept up to date token by token.

    A draft is what followed the longest earlier match of the newest tokens, among the newest `probes` occurrences.
    Of equally long ones, the one closest to where the text was last copied from is followed, as an edited copy goes on
    where it was left; before anything was copied, one with the continuation that most of them share; of those that are
    alike in this, the newest. All is a function of the prompt and of the tokens after it, not of how they were handed
    over: taking tokens back leaves what never adding them would have left.

    Cost: a token that continues the match costs one comparison. Any other costs two dictionary entries and a search of
    at most `2 * probes` occurrences of at most `depth` tokens: constants, whatever the length of the text.
    Memory: at most 24 bytes per token of history, and 290 more per indexed token, of which there are at most
    `max_tokens`.

    Args:
        prompt: tokens to begin with; they are indexed, and nothing is learnt from how well they predict each other.
        options: what counts as a match.

    Raises:
        ConfigError: a token is not an integer from 0 to 2**31 - 1.

    Source: in the spirit of prompt lookup (Saxena 2023) and SuffixDecoding (Oliaro et al. 2024, arXiv 2411.04975).
        Differs: hash chains in place of a suffix tree (bounded work, exact removal), and the chance of a continuation
        is learnt per length of match rather than read off its frequency.
    Example: SuffixIndex([1, 2, 3, 4, 1, 2]).propose(2) -> [3, 4]
    """

    def __init__(self, prompt: Iterable[int] = (), options: MatchOptions | None = None) -> None:
        """See the class."""
        self.options = options or MatchOptions()
        self._longest, self._most = self.options.long_match, self.options.max_tokens
        self._orders = (self._longest, self.options.min_match)
        self._least = max(self.options.min_share * JUDGED, _NOTHING)
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
        history, new = self._tokens, packed(tokens)
        n, source, more = len(history), self._source, len(new) - 1
        if more > 1 and source >= 0:
            ahead = source + n - self._at
            if history[ahead : ahead + more] == new[:-1]:  # all as foretold but for the last, perhaps
                history += new[:-1]
                n += more
                new = new[-1:]
        for token in new:
            history.append(token)
            n += 1
            if source < 0 or history[source + n - 1 - self._at] != token:
                self._turn(n)
                source = self._source
        if n - self._indexed >= _PENDING:
            self._index(n)

    def propose(self, limit: int) -> list[int]:
        """What probably follows: at most `limit` tokens, none where too little is expected of them.

        A match that overlaps the end goes on in its own period.
        """
        source = self._source
        if limit <= 0 or source < 0 or self.expected(JUDGED) < self._least:
            return []
        start = source + len(self._tokens) - self._at
        draft = self._tokens[start : start + limit].tolist()
        while len(draft) < limit:  # the match runs into the end: its continuation is the draft itself
            draft += draft[: limit - len(draft)]
        return draft

    def expected(self, limit: int) -> float:
        """Tokens of a draft of `limit` that are expected to be accepted; 0 where nothing matches."""
        if self._source < 0:
            return 0.0
        run = len(self._tokens) - self._at
        return self._rates.expected(self._length + run, COPIED if run else self._grounds, limit)

    def match(self) -> tuple[int, int]:
        """Where a draft is read from, as an index into the history, and how many tokens before it agree; or -1, 0."""
        if self._source < 0:
            return -1, 0
        run = len(self._tokens) - self._at
        return self._source + run, self._length + run

    def truncate(self, n: int) -> None:
        """Take tokens back, down to the first n.

        It costs what they cost; the rest is indexed anew only where the window had moved, or the prompt is cut into.

        Raises:
            ConfigError: n is negative or beyond the end.
        """
        if not 0 <= n <= len(self._tokens):
            raise ConfigError(f"{n} of {len(self._tokens)} tokens", accepted="0 up to as many as there are")
        if n < self._prompt:
            self._reset(self._tokens[:n])
            return
        while self._at > n:
            at = self._at
            del self._turns[-5:]
            self._at, self._source, self._length, self._grounds, self._diagonal = self._turns[-5:]
            if self._source >= 0:
                self._rates.count(self._length, self._grounds, at - 1 - self._at, -1)
        self._forget(n)
        del self._tokens[n:]

    def holds(self, history: Sequence[int]) -> bool:
        """Whether a history, ints or a numpy array, begins with exactly the tokens held here."""
        known = len(self._tokens)
        if not known or len(history) < known:
            return not known
        return history[known - 1] == self._tokens[-1] and as_bytes(history[:known]) == self._tokens.tobytes()

    def sync(self, history: Sequence[int]) -> int:
        """Make the index hold exactly this history, whatever it held before.

        Args:
            history: ints or a numpy int32 array; hosts that move or restart requests hand it over whole.

        Returns:
            How many tokens were known already; 0 says that the index was built anew. What is expected of a match is
            learnt anew then, too.
        """
        known = len(self._tokens)
        if not known or not self.holds(history):
            given = pack(history)
            known = common_prefix(given, self._tokens)
            if known < self._prompt or 2 * known < len(self._tokens):
                self._reset(given)
                return 0
            self.truncate(known)
        self.extend(history[known:])
        return known

    def stats(self) -> dict[str, int]:
        """What is held and what was done since the index was built.

        Returns:
            `tokens` and `indexed` positions held; `searches`, `probes` (occurrences looked at in them), and positions
            `linked` (indexed, those indexed again when the window moved included).
        """
        done = {"searches": self._searches, "probes": self._probes, "linked": self._linked}
        return {"tokens": len(self._tokens), "indexed": self._indexed - self._base, **done}

    def _reset(self, prompt: array[int]) -> None:
        self._tokens = prompt
        self._prompt = len(prompt)
        self._searches = self._probes = self._linked = 0
        self._rates = Rates()
        self._clear(0)
        # A turn is a search: the length of the history then, where its match goes on, the length of the match and its
        # grounds, and how far back the text was copied from last. Between two turns the match only grew. Five numbers
        # a turn, kept so that turns can be taken back; the newest also as attributes.
        self._turns = array("i")
        self._at, self._source, self._length, self._grounds, self._diagonal = 0, -1, 0, 0, 0
        self._search(len(prompt))

    def _turn(self, n: int) -> None:
        """The last of n tokens is not what the match said: learn that, and look for another."""
        run = n - 1 - self._at
        if self._source >= 0:
            self._rates.count(self._length, self._grounds, run)
            if self._length + run >= self._longest:
                self._diagonal = self._at - self._source
        self._search(n)

    def _search(self, n: int) -> None:
        self._at = n
        self._source, self._length, self._grounds = source, length, grounds = self._find(n)
        self._turns.frombytes(_TURN(n, source, length, grounds, self._diagonal))

    def _clear(self, base: int) -> None:
        self._base = self._indexed = base
        # Per length of key: the newest position that each key ends at, and per position the one before it.
        self._levels = tuple((order, dict[bytes, int](), array("i")) for order in self._orders)

    def _find(self, n: int) -> tuple[int, int, int]:
        """Index the end of the first n tokens, and find its best earlier match: where it goes on, length, grounds."""
        end = n - 1
        if end < 0:
            return _NO_MATCH
        if self._indexed != end or self._base or n > self._most:
            self._index(end)
        self._indexed = n
        self._searches += 1
        self._linked += 1
        inside, best = n - self._base, _NO_MATCH
        newest = self._tokens[n - self._longest if n > self._longest else 0 : n].tobytes()
        for order, heads, chain in self._levels:
            q = -1
            if inside >= order:
                key = newest[-_WIDE * order :]
                q = heads.get(key, -1)
                heads[key] = end
            chain.append(q)
            if q >= 0 and best is _NO_MATCH:
                best = self._choose(q, end, order, chain)
        return best

    def _choose(self, q: int, end: int, order: int, chain: array[int]) -> tuple[int, int, int]:
        tokens, base, depth = self._tokens, self._base, self.options.depth
        best, found, following = order, list[int](), list[int]()
        for _ in range(self.options.probes):
            if q >= best and tokens[q - best] == tokens[end - best]:  # perhaps longer than all before
                length = common_suffix(tokens, q, end, order, depth)
                if length > best:
                    best, found = length, [q]
                elif length == best:
                    found.append(q)
            elif best == order or common_suffix(tokens, q, end, order, best) == best:
                found.append(q)
            following.append(tokens[q + 1])
            q = chain[q - base]
            if q < 0:
                break
        self._probes += len(following)
        chosen = found[0]
        if len(found) > 1:
            if self._diagonal:
                chosen = min(found, key=lambda q: abs(end - q - self._diagonal))
            else:
                chosen = most_shared(found, [tokens[q + 1] for q in found])[0]
        return chosen + 1, best, grounds_of(tokens[chosen + 1], following)

    def _index(self, upto: int) -> None:
        """Index the grams that end before position `upto`, within the window that a history with it has."""
        base = self._window(upto + 1)
        if base != self._base:
            self._clear(base)
        start = self._indexed
        if start >= upto:
            return
        self._indexed = upto
        self._linked += upto - start
        for order, heads, chain in self._levels:
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
        for order, heads, chain in self._levels:
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
