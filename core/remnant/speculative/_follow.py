"""A drafting model that follows B texts: every token is fed once, and what was drafted in vain leaves its cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.speculative._lists import ints
from remnant.speculative._text import as_rows
from remnant.speculative.target import Target

__all__ = ["Follower"]


class Follower:
    """The texts, and what of them the model has cached.

    Nothing is read before a draft is wanted. What was drafted and accepted stays cached, what was rejected is cropped,
    and a token that was emitted but never fed (the correction, the bonus) is fed when the logits after it are wanted.
    """

    def __init__(self, model: Target) -> None:
        """Follow with this model."""
        self.model = model
        self.texts: list[list[int]] = []
        self.starts: list[int] = []
        """Tokens of each prompt."""
        self.after: Tensor = torch.zeros(0)
        """`[B, V]` logits after each row's text, right for rows whose text is cached to its end."""
        self._fed: list[int] = []
        """Tokens of each row's text that are cached."""
        self._drafted: list[list[int]] = []
        """Drafted tokens that are cached behind the text."""
        self._read = False
        """Whether the model has these texts; before that nothing of them is cached."""

    def reset(self, prompts: Sequence[Tensor]) -> None:
        """Begin with these prompts."""
        self.texts = [ints(row) for row in as_rows(prompts, None)]
        self.starts = [len(text) for text in self.texts]
        self._fed, self._drafted, self._read = [0] * len(self.texts), [[] for _ in self.texts], False

    def catch_up(self, limits: Sequence[int]) -> bool:
        """Make `after` right for the rows with a limit; whether there is any.

        Raises:
            ConfigError: not one limit per row.
        """
        if len(limits) != len(self.texts):
            raise ConfigError(f"{len(limits)} limits for {len(self.texts)} rows", accepted="one per row, after reset")
        if not any(limit > 0 for limit in limits):
            return False
        if not self._read:
            self.after = self.model.prefill([torch.tensor(text) for text in self.texts])
            self._fed, self._read = [len(text) for text in self.texts], True
            return True
        self._crop()
        # A row without a limit is fed nothing: it has ended, or its host wants no draft now.
        waiting = {row: text[self._fed[row] :] for row, text in enumerate(self.texts) if limits[row] > 0}
        waiting = {row: tokens for row, tokens in waiting.items() if tokens}
        if waiting:
            raw, rows = self._feed(waiting), list(waiting)
            self.after = self.after.index_copy(0, torch.tensor(rows, device=raw.device), raw[rows].to(self.after))
            for row in rows:
                self._fed[row] = len(self.texts[row])
        return True

    def extend(self, drafted: dict[int, int]) -> Tensor:
        """Feed one drafted token of some rows; `[B, V]` logits after them, of no meaning for the other rows."""
        raw = self._feed({row: [token] for row, token in drafted.items()})
        for row, token in drafted.items():
            self._drafted[row].append(token)
        return raw

    def look(self, columns: list[list[int]], depths: list[list[int]], masks: list[Tensor]) -> Tensor:
        """Run columns behind each text and cache none of them.

        Args:
            columns: per row the tokens; empty where the row has none.
            depths: per row the columns' steps from the newest token of the text, 1 or more.
            masks: per row `[c, c]` bool, which columns each column sees.

        Returns:
            `[B, T, V]` logits.
        """
        device, b, widest = self.after.device, len(columns), max(map(len, columns))
        mask = torch.eye(widest, dtype=torch.bool).repeat(b, 1, 1)
        for row, own in enumerate(masks):
            mask[row, : own.shape[0], : own.shape[0]] = own
        # The first column of a row that has none stands where its text ends in the cache.
        places = [[self._fed[row] + d - 1 for d in depth] or [self._fed[row]] for row, depth in enumerate(depths)]
        widths = torch.tensor([max(1, len(row)) for row in columns], device=device)
        logits = self.model.step(_table(columns, device), _table(places, device), widths, mask.to(device))
        self.model.commit(torch.zeros(b, 0, dtype=torch.int64, device=device))
        return logits

    def observe(self, emitted: Sequence[Tensor]) -> None:
        """Keep in the cache what was drafted and emitted, crop the rest."""
        drafted = any(self._drafted)
        for row, tokens in enumerate(map(ints, emitted)):
            text, guess = self.texts[row], self._drafted[row]
            same = 0
            while same < min(len(guess), len(tokens)) and guess[same] == tokens[same]:
                same += 1
            self._fed[row] += same
            text += tokens
            if tokens and self._read:  # the newest token is fed when its logits are wanted
                self._fed[row] = min(self._fed[row], len(text) - 1)
        self._crop(drafted)

    def rollback(self, counts: Sequence[int]) -> None:
        """Take back emitted tokens, per row.

        Raises:
            ConfigError: more than the row emitted.
        """
        for row, count in enumerate(counts):
            emitted = len(self.texts[row]) - self.starts[row]
            if not 0 <= count <= emitted:
                raise ConfigError(f"{count} tokens to take back", accepted=f"0 to {emitted}, what row {row} emitted")
        for row, count in enumerate(counts):
            if count:
                del self.texts[row][-count:]
                self._fed[row] = min(self._fed[row], len(self.texts[row]) - 1)
        self._crop(force=True)

    def _feed(self, tokens: dict[int, list[int]]) -> Tensor:
        """Run and cache tokens of some rows; `[B, V]` logits after each row's last."""
        device, widest = self.after.device, max(map(len, tokens.values()))
        rows = [tokens.get(row, [0]) for row in range(len(self.texts))]  # a row that is not fed still needs a column
        widths = torch.tensor([len(row) for row in rows], device=device)
        cached = [[fed + len(guess)] for fed, guess in zip(self._fed, self._drafted, strict=True)]
        steps = torch.arange(widest, device=device)
        logits = self.model.step(_table(rows, device), torch.tensor(cached, device=device) + steps, widths)
        real = torch.tensor([[row in tokens] for row in range(len(rows))], device=device)
        self.model.commit(torch.where(real & (steps < widths.unsqueeze(1)), steps, -1))
        return logits[torch.arange(len(rows), device=device), widths - 1]

    def _crop(self, force: bool = False) -> None:
        if self._read and (force or any(self._drafted)):
            self._drafted = [[] for _ in self.texts]
            self.model.crop(torch.tensor(self._fed))


def _table(rows: list[list[int]], device: torch.device) -> Tensor:
    """Rows of unequal length as `[B, T]`, zeros behind."""
    widest = max(map(len, rows))
    return torch.tensor([row + [0] * (widest - len(row)) for row in rows], dtype=torch.int64, device=device)
