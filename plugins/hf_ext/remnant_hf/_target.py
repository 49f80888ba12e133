"""A causal language model of transformers as the engine's `Target`, and as the stepper of a drafter."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.speculative.target import Head
from remnant_hf import bridge
from remnant_hf._head import Halves, halves
from remnant_hf._limits import refuse_kinds
from remnant_hf._refusals import parameter_bytes, vocab_size
from remnant_hf._rows import RowsCache
from remnant_hf.cache import RemnantCache
from remnant_hf.layer import RemnantLayer

__all__ = ["ModelTarget"]

_FOREVER = 2**31 - 1


class ModelTarget:
    """A model and one cache per row; see `remnant.speculative.target`: a `Target`, and a `LazyTarget`.

    One row with a chain runs as in plain generation. Several rows share a pass, with attention row by row.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        cache: of one row: it is used itself, and what it holds already is not read again. Of several rows: an empty
            one, of which every row gets a copy. None is a `DynamicCache`.
        chunk: tokens per pass while reading prompts; None reads them at once.
        revocable: keep what a sliding window has left behind, so that any number of tokens can be taken back: for
            drafters, which go back over several passes.

    Raises:
        ConfigError: the model takes no positions, or its attention has no masks of ours.
    """

    def __init__(self, model: Any, cache: Any = None, chunk: int | None = None, revocable: bool = False) -> None:
        """See the class."""
        self.model, self.cache, self.chunk, self.revocable = model, cache, chunk, revocable
        self.vocab_size, self.weight_bytes = vocab_size(model), parameter_bytes(model)
        self.caches: list[Any] = []
        self.alive: list[int] = []
        """The caller's row of each row that is left."""
        parameters = inspect.signature(getattr(model, "_orig_mod", model).forward).parameters
        self._keeps = "logits_to_keep" in parameters
        if "position_ids" not in parameters:
            raise ConfigError(f"{type(model).__name__} takes no position_ids", accepted="models with rotary positions")
        self._kind = str(getattr(model.config, "_attn_implementation", "sdpa"))
        self._widths: list[int] = []
        self._together: RowsCache | None = None
        self._halves: Halves | None = None

    def defer(self) -> None:
        """Leave the head to whoever wants logits; see `LazyTarget.defer`."""
        self._halves = halves(self.model)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Tensor]) -> Tensor:
        """Read the prompts; see `Target.prefill`."""
        self.caches = self._begin(len(prompts))
        self.alive = list(range(len(prompts)))
        self._together = None
        device = self.model.device
        out: Tensor | None = None
        rest = [ids.to(device)[cache.get_seq_length() :] for ids, cache in zip(prompts, self.caches, strict=True)]
        size = self.chunk or max(map(len, rest))
        for start in range(0, max(map(len, rest)), size):
            parts = [ids[start : start + size] for ids in rest]
            rows = [i for i, part in enumerate(parts) if len(part)]
            ends = [place for place, row in enumerate(rows) if len(rest[row]) <= start + size]
            together = len(ends) == len(prompts)
            # Rows of a vocabulary are large: where the head can be left, it runs for one row after the other.
            now = ends if together or self._halves is None else ends[:1]
            logits = self._read(rows, [parts[i] for i in rows], now)
            if together:
                out = logits
            elif ends:
                out = logits.new_empty(len(prompts), logits.shape[1]) if out is None else out
                out[[rows[place] for place in now]] = logits
            del logits
            for place in ends[len(now) :]:
                assert self._halves is not None
                assert out is not None
                last = torch.tensor([len(parts[rows[place]]) - 1])
                out[rows[place]] = self._halves.head(torch.tensor([place]), last)[0]
        for cache in self.caches:
            cache.activate_past_recording()
        if self._halves is not None:
            self._halves.drop()
        assert out is not None
        return out

    def _begin(self, rows: int) -> list[Any]:
        if rows == 1:
            return [self._new() if self.cache is None else self.cache]
        if self._kind not in ("sdpa", "eager") and "flash" not in self._kind:
            raise ConfigError(f"attention {self._kind!r} with several rows", accepted="sdpa, eager, flash attention")
        bridge.install()
        if self.cache is None:
            return [self._new() for _ in range(rows)]
        return [copy.deepcopy(self.cache) for _ in range(rows)]

    def _new(self) -> DynamicCache:
        cache = DynamicCache(config=self.model.config)
        for i, layer in enumerate(cache.layers):
            if self.revocable and isinstance(layer, DynamicSlidingWindowLayer):
                cache.layers[i] = _Whole(layer.sliding_window)
        return cache

    def _read(self, rows: list[int], parts: list[Tensor], places: list[int]) -> Tensor:
        """Part of the prompts of some rows, kept for good; `[P, V]` logits after the last token of some of them."""
        widths = torch.tensor([len(part) for part in parts])
        tokens = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        base = torch.tensor([self.caches[row].get_seq_length() for row in rows])
        positions = (base[:, None] + torch.arange(tokens.shape[1])).to(tokens.device)
        caches = [self.caches[row] for row in rows]
        run = partial(self._forward, caches, tokens, positions, widths.tolist(), None)
        if self._halves is not None:
            some = torch.tensor(places or [0])
            return run(partial(self._halves.run, some, widths[some] - 1))
        ends = (widths - 1).unique()
        logits = run(partial(self._logits, ends.to(tokens.device)))
        column = torch.searchsorted(ends, widths - 1) if logits.shape[1] == len(ends) else widths - 1
        return logits[torch.tensor(places, dtype=torch.int64), column[places]]

    def _logits(self, ends: Tensor | None, **inputs: Any) -> Tensor:
        """The whole model; logits after the columns `ends` where it can leave out others."""
        if self._keeps and ends is not None:
            inputs["logits_to_keep"] = ends
        return self.model(**inputs).logits

    @torch.no_grad()
    def step(self, tokens: Tensor, positions: Tensor, widths: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run further tokens; see `Target.step`."""
        return self._step(tokens, positions, widths, mask, partial(self._logits, None))

    @torch.no_grad()
    def step_lazy(
        self, tokens: Tensor, positions: Tensor, widths: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Head]:
        """Run further tokens but for the head; see `LazyTarget.step_lazy`."""
        if self._halves is None:
            raise ConfigError("step_lazy before defer", do="call defer before prefill")
        rows = torch.arange(len(tokens))
        run = partial(self._halves.run, rows, torch.zeros_like(rows))
        return self._step(tokens, positions, widths, mask, run), self._halves.head

    def _step(
        self, tokens: Tensor, positions: Tensor, widths: Tensor, mask: Tensor | None, run: Callable[..., Tensor]
    ) -> Tensor:
        device = self.model.device
        self._widths = widths.tolist()
        if mask is not None and self._kind not in ("sdpa", "eager"):
            raise ConfigError(f"a drafted tree with attention {self._kind!r}", accepted="sdpa, eager; or chains")
        if mask is not None and any(isinstance(x, RemnantLayer) and x.policy.when for x in self.caches[0].layers):
            raise UnsupportedPolicy("a drafted tree over a cache that evicts", accepted="chains")
        return self._forward(self.caches, tokens.to(device), positions.to(device), self._widths, mask, run)

    def _forward(
        self,
        caches: list[Any],
        tokens: Tensor,
        positions: Tensor,
        widths: list[int],
        tree: Tensor | None,
        run: Callable[..., Tensor],
    ) -> Tensor:
        """One pass of the model, by `run`, which is given its arguments."""
        inputs: dict[str, Any] = {"input_ids": tokens, "position_ids": positions, "use_cache": True}
        if len(caches) == 1 and tree is None and widths[0] == tokens.shape[1]:
            return run(past_key_values=caches[0], **inputs)
        together = self._rows(caches)
        block = together.block
        block.widths, block.positions, block.tree = widths, positions, None if tree is None else tree.to(tokens.device)
        # A mask of four dimensions is passed through; ours are made per row.
        unused = torch.zeros(tokens.shape[0], 1, tokens.shape[1], 1, dtype=self.model.dtype, device=tokens.device)
        logits = run(past_key_values=together, attention_mask=unused, **inputs)
        together.finish()
        return logits

    def _rows(self, caches: list[Any]) -> RowsCache:
        refuse_kinds(self.model)
        if caches is not self.caches:
            return RowsCache(caches, self._kind)
        if self._together is None:
            bridge.install()
            self._together = RowsCache(caches, self._kind)
        return self._together

    def commit(self, keep: Tensor) -> None:
        """Keep some columns of the last step; see `Target.commit`."""
        if self._halves is not None:
            self._halves.drop()
        for cache, width, row in zip(self.caches, self._widths, keep.tolist(), strict=True):
            columns = [column for column in row if column >= 0]
            if columns != list(range(len(columns))):
                _move_front(cache, width, columns)
            cache.crop(len(columns) - width)

    def crop(self, lengths: Tensor) -> None:
        """Shorten the caches; see `Target.crop`."""
        for cache, length in zip(self.caches, lengths.tolist(), strict=True):
            if cache.get_seq_length() > length:
                cache.crop(length - cache.get_seq_length())

    def select(self, rows: Tensor) -> None:
        """Keep some rows; see `Target.select`."""
        chosen = rows.tolist()
        self.caches, self.alive = [self.caches[i] for i in chosen], [self.alive[i] for i in chosen]
        self._together = None

    def nbytes(self) -> int:
        """Bytes that the caches hold now."""
        return sum(_bytes(layer) for cache in self.caches for layer in cache.layers)

    def room(self, row: int) -> int:
        """Tokens that the caller's row may draft before its cache evicts."""
        if row not in self.alive:
            return _FOREVER
        cache = self.caches[self.alive.index(row)]
        return cache.tokens_until_eviction() if isinstance(cache, RemnantCache) else _FOREVER

    def end(self) -> None:
        """No pass will be undone any more: the caches evict at once again."""
        for cache in self.caches:
            for layer in cache.layers:
                if hasattr(layer, "record_past"):
                    layer.record_past = False


class _Whole(DynamicLayer):
    """A layer with a sliding window that keeps everything; masks hide what the window has left behind."""

    def __init__(self, sliding_window: int) -> None:
        super().__init__()
        self.sliding_window = sliding_window


def _bytes(layer: Any) -> int:
    if isinstance(layer, RemnantLayer):
        return layer.store.allocated() if layer.seen else 0
    held = (getattr(layer, "keys", None), getattr(layer, "values", None))
    return sum(x.nbytes for x in held if isinstance(x, Tensor))


def _move_front(cache: Any, width: int, columns: list[int]) -> None:
    """Bring accepted columns of the newest `width` to their front; the rest goes with the next crop."""
    others = [column for column in range(width) if column not in columns]
    for layer in cache.layers:
        if isinstance(layer, RemnantLayer):
            raise UnsupportedPolicy("accepted columns that are no prefix, in a RemnantCache", accepted="chains")
        order = torch.tensor(columns + others, device=layer.keys.device)
        for name in ("keys", "values"):
            whole = getattr(layer, name)
            new = whole[:, :, whole.shape[2] - width :].index_select(2, order)
            setattr(layer, name, torch.cat([whole[:, :, : whole.shape[2] - width], new], 2))
