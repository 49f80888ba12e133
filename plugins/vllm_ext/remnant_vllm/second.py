"""A second model in the worker: run by transformers, with a row of cache per text, texts of any length in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from remnant.errors import ConfigError, UnsupportedPolicy

__all__ = ["SecondModel"]

_BLOCK = 512


class SecondModel:
    """A causal language model of transformers over rows that come and go.

    All caches are allocated at once, so that whoever measures free memory afterwards sees them.

    Args:
        model: in eval mode, with plain attention in every layer. A sliding window is read as a full one, which is right
            for texts within it and only makes worse guesses beyond.
        rows: texts at once.
        context: tokens of one text at most.

    Raises:
        UnsupportedPolicy: the model cannot run over such a cache.
    """

    def __init__(self, model: Any, rows: int, context: int) -> None:
        """See the class."""
        self.model, self.rows, self.context = model, rows, context
        self.lengths = [0] * rows
        self._free = list(range(rows))[::-1]
        self._cache = self._tried()

    @property
    def nbytes(self) -> int:
        """Bytes of all caches."""
        return sum(layer.k.nbytes + layer.v.nbytes for layer in self._cache.mine)

    def take(self) -> int | None:
        """An empty row; None when all are taken."""
        if not self._free:
            return None
        row = self._free.pop()
        self.lengths[row] = 0
        return row

    def give(self, row: int) -> None:
        """A row is not needed any more."""
        self._free.append(row)

    def crop(self, row: int, length: int) -> None:
        """Forget what a row holds beyond `length` tokens."""
        self.lengths[row] = min(self.lengths[row], length)

    def read(self, row: int, tokens: Sequence[int]) -> None:
        """Read a long text into a row, in blocks."""
        for start in range(0, len(tokens), _BLOCK):
            self._run([row], [tokens[start : start + _BLOCK]], logits=False)

    def feed(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Let rows go on, in one pass.

        Args:
            rows: distinct.
            tokens: per row, one or more.

        Returns:
            `[len(rows), V]` float32, logits after the last token of each.

        Raises:
            ConfigError: a row would become longer than `context`.
        """
        logits = self._run(rows, tokens)
        assert logits is not None
        return logits

    def _run(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], logits: bool = True) -> Tensor | None:
        widths = [len(new) for new in tokens]
        ends = [self.lengths[row] + width for row, width in zip(rows, widths, strict=True)]
        if max(ends) > self.context:
            raise ConfigError(f"a text of {max(ends)} tokens", accepted=f"at most {self.context}")
        device, t = self.model.device, max(widths)
        ids = torch.tensor([[*new, *[0] * (t - len(new))] for new in tokens], device=device)
        start = torch.tensor([self.lengths[row] for row in rows], device=device)
        positions = start[:, None] + torch.arange(t, device=device)
        with torch.inference_mode():
            mask = self._cache.begin(torch.tensor(list(rows), device=device), positions, max(ends))
            out = self.model.model if not logits and hasattr(self.model, "model") else self.model
            keep = {} if not logits else {"logits_to_keep": t - min(widths) + 1}
            got = out(input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=self._cache,
                      use_cache=True, **keep)  # fmt: skip
        for row, end in zip(rows, ends, strict=True):
            self.lengths[row] = end
        if not logits:
            return None
        last = torch.tensor(widths, device=device) - 1 - t + got.logits.shape[1]
        return got.logits[torch.arange(len(rows), device=device), last].float()

    def _tried(self) -> _Rows:
        """The caches, after one pass of two rows: what cannot work says so before the engine serves anyone."""
        try:
            self._cache = _Rows(self.model, self.rows, self.context)
            rows = list(range(min(2, self.rows)))
            self.feed(rows, [[0] * (i + 1) for i in rows])
        except Exception as error:
            raise UnsupportedPolicy(
                f"drafter model {type(self.model).__name__} does not run over a cache of rows: {error}",
                accepted="decoder-only models whose layers all have plain attention",
            ) from error
        self.lengths = [0] * self.rows
        return self._cache


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, `[rows, H, context + 1, D]`; the last column takes what is padding."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.k = self.keys = keys
        self.v = self.values = values
        self.is_initialized = True
        self.rows, self.columns, self.end = torch.zeros(1), torch.zeros(1), 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: all is there."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns and give all of the rows in this pass."""
        for held, new in ((self.k, key_states), (self.v, value_states)):
            held[self.rows[:, None], :, self.columns] = new.transpose(1, 2).to(held.dtype)
        return self.k[self.rows, :, : self.end], self.v[self.rows, :, : self.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a pass sees, and where they begin."""
        return self.end, 0

    def get_seq_length(self) -> int:
        """Rows differ; positions are given."""
        return 0

    def get_max_length(self) -> int:
        """Tokens of a row at most."""
        return self.k.shape[2] - 1


class _Rows(Cache):
    """A cache of which each pass uses some rows."""

    def __init__(self, model: Any, rows: int, context: int) -> None:
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        kind = {"dtype": model.dtype, "device": model.device}
        shape = (rows, heads, context + 1, dim)
        self.mine = [
            _Layer(torch.zeros(shape, **kind), torch.zeros(shape, **kind)) for _ in range(config.num_hidden_layers)
        ]
        layers: list[Any] = [*self.mine]
        super().__init__(layers=layers)
        self.context = context

    def begin(self, rows: Tensor, positions: Tensor, end: int) -> Tensor:
        """Name the rows of the next pass.

        Args:
            rows: `[B]` int64.
            positions: `[B, T]` int64, of the new tokens; those of padding may lie behind the cache.
            end: columns that the longest row has after it.

        Returns:
            `[B, 1, T, end]`, what to add to the scores.
        """
        columns = positions.clamp(max=self.context)
        for layer in self.mine:
            layer.rows, layer.columns, layer.end = rows, columns, end
        dtype = self.mine[0].k.dtype
        hidden = torch.arange(end, device=positions.device) > positions[:, None, :, None]
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, torch.finfo(dtype).min)
