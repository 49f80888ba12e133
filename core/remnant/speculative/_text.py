"""The rows of one run as text: what was given, what was emitted, and when a row ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from remnant.errors import ConfigError, ShapeError

__all__ = ["Stop", "Text", "as_rows", "room"]

Stop = Callable[[int, Tensor], bool]
"""Row and its emitted tokens `[n]` int64 so far -> whether the row ends here; asked after every single token."""


def as_rows(prompts: Tensor | Sequence[Tensor], mask: Tensor | None) -> list[Tensor]:
    """Prompts without padding, per row `[T]` int64.

    Args:
        prompts: `[B, L]` int64, or per row `[T]`.
        mask: `[B, L]`, nonzero at real tokens, on either side; None is no padding.

    Raises:
        ShapeError: shapes do not fit, or a row is empty.
    """
    if isinstance(prompts, Tensor) and prompts.dim() != 2:
        raise ShapeError(f"prompts of {tuple(prompts.shape)}", accepted="[B, L], or a list of [T]")
    if mask is not None and (not isinstance(prompts, Tensor) or mask.shape != prompts.shape):
        raise ShapeError(f"a mask of {tuple(mask.shape)}", accepted="the shape of the prompts")
    rows = [prompts[i] if mask is None else prompts[i][mask[i].bool()] for i in range(len(prompts))]
    for row in rows:
        if row.dim() != 1 or row.dtype != torch.int64 or not row.numel():
            raise ShapeError(f"a prompt of {row.dtype} {tuple(row.shape)}", accepted="int64 [T], T of 1 or more")
    if not rows:
        raise ShapeError("no prompts", accepted="1 or more rows")
    return rows


class Text:
    """Tokens of B rows in one buffer, so that a history is a view and drafts cost no copy of it."""

    def __init__(
        self, prompts: list[Tensor], room: list[int], eos: Iterable[int], stop: Stop | None, device: torch.device
    ) -> None:
        """Place the prompts; `room` is how many tokens each row may emit."""
        self.start = [row.shape[0] for row in prompts]
        self.length = list(self.start)
        self.end = [a + b for a, b in zip(self.start, room, strict=True)]
        self.done = [False] * len(prompts)
        self._eos, self._stop = frozenset(eos), stop
        self._buffer = torch.zeros(len(prompts), max(self.end) + 1, dtype=torch.int64, device=device)
        for i, row in enumerate(prompts):
            self._buffer[i, : self.start[i]] = row

    def __len__(self) -> int:
        """Rows."""
        return len(self.start)

    def left(self, row: int) -> int:
        """Tokens that a row may still emit; 0 once it ended."""
        return 0 if self.done[row] else self.end[row] - self.length[row]

    def last(self, rows: Sequence[int]) -> Tensor:
        """The newest token of each row, `[R, 1]` int64."""
        at = torch.tensor([self.length[row] - 1 for row in rows], device=self._buffer.device)
        return self._buffer[torch.tensor(rows, device=at.device), at].unsqueeze(1)

    def new(self, row: int) -> Tensor:
        """What a row emitted, `[n]` int64, a copy."""
        return self._buffer[row, self.start[row] : self.length[row]].clone()

    def histories(self, row: int, draft: Tensor, generated: bool) -> list[Tensor]:
        """What precedes each token of a draft and the one after it, `n + 1` views that later writes overwrite.

        Args:
            row: which.
            draft: `[n]` int64, not longer than what the row may still emit.
            generated: leave the prompt out.
        """
        begin, length, n = self.start[row] if generated else 0, self.length[row], draft.shape[0]
        self._buffer[row, length : length + n] = draft
        return [self._buffer[row, begin : length + i] for i in range(n + 1)]

    def append(self, row: int, tokens: list[int]) -> list[int]:
        """Emit tokens until the row ends.

        Returns:
            Those that were emitted: cut behind an end token, where the caller stops, and at the row's bound.
        """
        if self.done[row]:
            return []
        tokens = tokens[: self.left(row)]
        begin = self.length[row]
        self._buffer[row, begin : begin + len(tokens)] = torch.tensor(tokens, device=self._buffer.device)
        for place, token in enumerate(tokens, 1):
            if token in self._eos or (self._stop and self._stop(row, self._upto(row, begin + place))):
                tokens, self.done[row] = tokens[:place], True
                break
        self.length[row] = begin + len(tokens)
        self.done[row] = self.done[row] or self.length[row] >= self.end[row]
        return tokens

    def _upto(self, row: int, end: int) -> Tensor:
        return self._buffer[row, self.start[row] : end]


def room(prompts: list[Tensor], max_new_tokens: int, longest: int | None) -> list[int]:
    """Tokens that each row may emit, under a plan's longest text.

    Raises:
        ConfigError: fewer than one token.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens}", accepted="1 or more")
    if longest is None:
        return [max_new_tokens] * len(prompts)
    for row in prompts:
        if row.shape[0] >= longest:
            raise ConfigError(
                f"a prompt of {row.shape[0]} tokens under a plan for {longest}",
                accepted=f"prompts of at most {longest - 1}",
                do="plan for a longer text, or shorten the prompt",
            )
    return [min(max_new_tokens, longest - row.shape[0]) for row in prompts]
