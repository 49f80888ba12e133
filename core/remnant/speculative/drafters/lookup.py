"""`lookup`: what followed when the newest tokens occurred before, in the request or in past outputs of its tenant."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import ClassVar, Final

import torch
from torch import Tensor

from remnant.errors import ConfigError, ShapeError
from remnant.speculative._lists import ints
from remnant.speculative.drafter import Draft, Sampler
from remnant.speculative.match import JUDGED, MatchOptions, Rates
from remnant.speculative.output_store import OutputStore
from remnant.speculative.suffix import SuffixIndex

__all__ = ["Lookup"]

_NOTHING: Final = (list[int](), 0, 0)


class Lookup:
    """Drafts without a model: copies what followed an earlier occurrence of the newest tokens.

    Every row has an index of its own over its prompt and what it emitted. With a store, a row also looks at past
    outputs of its scope, and follows them where they agree for longer; finished outputs are added to the store by
    `finish`, which the next `reset` calls too. Drafts are deterministic: exact under sampling as well.

    Args:
        min_match: see `MatchOptions`, as all options up to `max_tokens`.
        min_share: as above.
        long_match: as above; at least one above `min_match` whatever is given.
        probes: as above.
        depth: as above; at least `long_match` whatever is given.
        max_tokens: as above, per row.
        store: past outputs; None, the default, shares nothing between requests.
        scope: the tenant of every row, or one per row; needed with a store.

    Raises:
        ConfigError: an option outside its range, a store without a scope, or a scope without a store.

    Example: get_drafter("lookup", min_match=3)
    """

    name: ClassVar[str] = "lookup"

    def __init__(
        self,
        min_match: int = MatchOptions.min_match,
        min_share: float = MatchOptions.min_share,
        long_match: int = MatchOptions.long_match,
        probes: int = MatchOptions.probes,
        depth: int = MatchOptions.depth,
        max_tokens: int = MatchOptions.max_tokens,
        store: OutputStore | None = None,
        scope: str | Sequence[str] | None = None,
    ) -> None:
        """See the class."""
        if (store is None) != (not scope):
            have, lack = ("a scope", "store") if store is None else ("a store", "scope")
            raise ConfigError(f"{have} without a {lack}", accepted="both, or neither", do=f"pass {lack}=")
        longer = max(long_match, min_match + 1)
        self.options = MatchOptions(min_match, min_share, longer, probes, max(depth, longer), max_tokens)
        self.vocab_size: int | None = None
        self._store, self._scope = store, scope
        self._rows: list[_Row] = []

    def reset(self, prompts: Sequence[Tensor]) -> None:
        """Begin with new prompts; what the rows before emitted goes to the store.

        Raises:
            ShapeError: a prompt is not one-dimensional int64.
            ConfigError: there are not as many scopes as prompts.
        """
        scopes = self._scopes(len(prompts))
        texts = [_tokens(prompt, "a prompt") for prompt in prompts]
        self.finish()
        self._rows = [_Row(text, self.options, scope) for text, scope in zip(texts, scopes, strict=True)]

    def propose(self, limits: Sequence[int], sampler: Sampler | None = None) -> list[Draft]:
        """At most `limits[row]` tokens per row; none where too little is expected of them. Nothing is ever drawn.

        Raises:
            ConfigError: not one limit per row, or a negative one.
        """
        self._one_per_row("limits", len(limits))
        if any(limit < 0 for limit in limits):
            raise ConfigError(f"limits {list(limits)}", accepted="0 or more tokens per row")
        drafts = (row.propose(limit, self._store) for row, limit in zip(self._rows, limits, strict=True))
        return [Draft(torch.tensor(draft, dtype=torch.int64)) for draft in drafts]

    def observe(self, emitted: Sequence[Tensor]) -> None:
        """Append what every row really emitted.

        Raises:
            ShapeError: tokens are not one-dimensional int64.
            ConfigError: not one tensor per row.
        """
        self._one_per_row("emitted rows", len(emitted))
        for row, tokens in zip(self._rows, [_tokens(row, "emitted tokens") for row in emitted], strict=True):
            row.observe(tokens)

    def rollback(self, counts: Sequence[int]) -> None:
        """Take back the last emitted tokens of every row, as if they had never been observed.

        Raises:
            ConfigError: not one count per row, or more than the row has emitted.
        """
        self._one_per_row("counts", len(counts))
        for number, (row, count) in enumerate(zip(self._rows, counts, strict=True)):
            if not 0 <= count <= row.emitted:
                raise ConfigError(f"{count} tokens to take back", accepted=f"0 to {row.emitted}, what row {number} has")
        for row, count in zip(self._rows, counts, strict=True):
            row.rollback(count)

    def finish(self) -> None:
        """Give what was emitted to the store, if there is one, and forget the rows."""
        if self._store is not None:
            for row in self._rows:
                self._store.add(row.scope, row.index.tokens[row.prompt :])
        self._rows = []

    def _scopes(self, rows: int) -> Sequence[str]:
        if self._scope is None or isinstance(self._scope, str):
            return [self._scope or ""] * rows
        if len(self._scope) != rows or not all(self._scope):
            raise ConfigError(f"scopes {list(self._scope)}", accepted=f"{rows} names, one per prompt")
        return self._scope

    def _one_per_row(self, what: str, count: int) -> None:
        if count != len(self._rows):
            raise ConfigError(f"{count} {what} for {len(self._rows)} rows", accepted="one per row", do="reset first")


class _Row:
    """One request: its index, and how well the store did for it."""

    def __init__(self, prompt: list[int], options: MatchOptions, scope: str) -> None:
        self.index, self.prompt, self.scope = SuffixIndex(prompt, options), len(prompt), scope
        self._options = options
        self._rates = Rates()
        self._asked: tuple[list[int], int, int] = _NOTHING
        """The store's last continuation, the length of the match, and its grounds."""
        self._outcomes = array("i")
        """What was learnt of the store, five numbers each: length of the text before, length of the match, its grounds,
        tokens that were right, and whether one was wrong."""

    @property
    def emitted(self) -> int:
        return len(self.index) - self.prompt

    def propose(self, limit: int, store: OutputStore | None) -> list[int]:
        self._asked = _NOTHING
        if store is None or not limit:
            return self.index.propose(limit)
        draft, length, grounds = store.find(self.scope, self.index.tokens[-store.options.depth :], limit)
        if length <= min(self.index.match()[1], store.options.depth):
            return self.index.propose(limit)
        self._asked = (draft, length, grounds)
        good = self._rates.expected(length, grounds, JUDGED) >= JUDGED * self._options.min_share
        return draft if good else self.index.propose(limit)

    def observe(self, tokens: list[int]) -> None:
        draft, length, grounds = self._asked
        if draft:
            pairs = zip(draft, tokens, strict=False)
            right = next((i for i, (guess, token) in enumerate(pairs) if guess != token), None)
            known = min(len(draft), len(tokens)) if right is None else right
            self._learn(len(self.index), length, grounds, known, right is not None)
        self._asked = _NOTHING
        self.index.extend(tokens)

    def rollback(self, count: int) -> None:
        self._asked = _NOTHING
        left = len(self.index) - count
        while self._outcomes and self._outcomes[-5] + self._outcomes[-2] + self._outcomes[-1] > left:
            at, length, grounds, right, failed = self._outcomes[-5:]
            del self._outcomes[-5:]
            self._rates.count(length, grounds, right, -1, failed=bool(failed))
            if at < left:  # what is left of the text still says that this much was right
                self._learn(at, length, grounds, left - at, failed=False)
        self.index.truncate(left)

    def _learn(self, at: int, length: int, grounds: int, right: int, failed: bool) -> None:
        self._rates.count(length, grounds, right, failed=failed)
        self._outcomes.extend((at, length, grounds, right, failed))


def _tokens(row: Tensor, what: str) -> list[int]:
    if row.dim() != 1 or row.dtype != torch.int64:
        raise ShapeError(f"{what} of {row.dtype} {tuple(row.shape)}", accepted="int64 [n]")
    return ints(row)
