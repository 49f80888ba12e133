"""Rows of unequal length in one pass: every row has a cache of its own, the weights are read once for all.

Linear layers see the batch; attention runs row by row over what that row's own layer holds, so that a row may be
cropped, compressed or dropped alone, and no slot is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant_hf import bridge
from remnant_hf.layer import RemnantLayer

__all__ = ["RowsCache", "RowsLayer"]


class RowsLayer(DynamicLayer):
    """One layer of every row.

    Args:
        index: the model's layer index.
        rows: this layer of each row's cache.
        block: what the pass at hand feeds; shared by the layers.
    """

    is_croppable = False

    def __init__(self, index: int, rows: list[Any], block: Block) -> None:
        """See the class."""
        super().__init__()
        self.index, self.rows, self.block = index, rows, block
        self.read: list[tuple[Tensor, Tensor]] = []

    def get_seq_length(self) -> int:
        """Tokens of the longest row."""
        return max(row.get_seq_length() for row in self.rows)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Never used: the rows' own masks are made in `attend`."""
        return query_length, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Give every row its real columns of `[B, H, T, D]`, and lead the attention call to this layer."""
        self.read = [
            row.update(key_states[i : i + 1, :, :width], value_states[i : i + 1, :, :width])
            for i, (row, width) in enumerate(zip(self.rows, self.block.widths, strict=True))
        ]
        bridge.set_pending(self)
        return bridge.tag(key_states.view_as(key_states), self), value_states

    def attend(
        self, inner: Callable[..., Any], module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, *args: Any, **kw: Any
    ) -> tuple[Tensor, None]:
        """Attention of every row over its own cache, `[B, T, G*H, Dv]`; padding columns give zeros."""
        if not self.read or k.shape[1] != self.read[0][1].shape[1]:
            raise UnsupportedPolicy(
                f"{type(module).__name__} shares keys between layers or expands them during attention",
                accepted="one row, or attention that reads the keys that it stored",
                do="generate row by row",
            )
        outs = [self._row(i, inner, module, q, args, kw) for i in range(len(self.rows))]
        self.read = []
        out = outs[0].new_zeros(len(outs), q.shape[2], *outs[0].shape[2:])
        for i, part in enumerate(outs):
            out[i, : part.shape[1]] = part[0]
        return out, None

    def _row(self, i: int, inner: Any, module: Any, q: Tensor, args: Any, kw: Any) -> Tensor:
        layer, (k, v), width = self.rows[i], self.read[i], self.block.widths[i]
        mine = q[i : i + 1, :, :width]
        mask = self.block.mask(i, self._stored(layer, k, width), getattr(layer, "sliding_window", None), q.dtype)
        if isinstance(layer, RemnantLayer):
            return layer.attend(inner, module, mine, k, v, mask, *args, **kw)[0]
        return inner(module, mine, k, v, mask, *args, **kw)[0]

    def _stored(self, layer: Any, k: Tensor, width: int) -> int:
        """Slots before the new ones; a governed layer may store otherwise than it shows."""
        return (layer.physical if isinstance(layer, RemnantLayer) else k.shape[2]) - width


class Block:
    """What one pass feeds: `widths` real columns per row, their `positions`, and who sees whom.

    Args:
        kind: the model's attention implementation.
    """

    def __init__(self, kind: str) -> None:
        """See the class."""
        self.kind = kind
        self.widths: list[int] = []
        self.positions: Tensor | None = None
        self.tree: Tensor | None = None

    def mask(self, i: int, past: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Mask `[1, 1, w, past + w]` of row i in the form of the implementation; None where it masks rightly itself."""
        width = self.widths[i]
        slides = window is not None and past + width > window
        if self.tree is None and (self._masks_itself(past, slides) or (width == 1 and not slides)):
            return None
        seen = self._seen(i, past, window if slides else None)
        if self.kind != "eager":
            return seen[None, None]
        hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return hidden.masked_fill(~seen, torch.finfo(dtype).min)[None, None]

    def _masks_itself(self, past: int, slides: bool) -> bool:
        """Flash attention ends its triangle at the newest key and is told the window; sdpa begins it at the first."""
        return "flash" in self.kind or (self.kind == "sdpa" and not past and not slides)

    def _seen(self, i: int, past: int, window: int | None) -> Tensor:
        """`[w, past + w]` bool: which keys each new token of row i sees."""
        assert self.positions is not None
        new = self.positions[i, : self.widths[i]]
        seen = torch.ones(len(new), len(new), dtype=torch.bool, device=new.device).tril()
        if self.tree is not None:
            seen = self.tree[i, : len(new), : len(new)]
        seen = torch.cat([seen.new_ones(len(new), past), seen], 1)
        if window is None:
            return seen
        before = torch.arange(-past, 0, device=new.device) + new[0]
        return seen & (new[:, None] - torch.cat([before, new]) < window)


class RowsCache(Cache):
    """Caches of single rows behind one, for a model's forward pass.

    Args:
        caches: per row, a `DynamicCache` or `RemnantCache` of one row; equal kinds of layers.
        kind: the model's attention implementation.
    """

    def __init__(self, caches: Sequence[Any], kind: str) -> None:
        """See the class."""
        self.block = Block(kind)
        count = len(caches[0].layers)
        self._own = [RowsLayer(i, [cache.layers[i] for cache in caches], self.block) for i in range(count)]
        super().__init__(layers=list(self._own))

    def finish(self) -> None:
        """Refuse a model whose attention did not come by.

        Raises:
            ConfigError: keys were stored and never read.
        """
        if any(layer.read for layer in self._own):
            raise ConfigError(
                "attention that does not use transformers' AttentionInterface, over rows of unequal length",
                accepted="one row and chains",
            )
