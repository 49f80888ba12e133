"""What a stock attention mask says about padding, whatever its form, and how to fit it to one layer's slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["fit", "newest_valid"]


def fit(mask: Any, stored: int, queries: int) -> Any:
    """Cut a mask to the columns of a layer that stores fewer slots than the widest one.

    Columns are right-aligned by construction, so the last ones belong to this layer.

    Args:
        mask: None, `[B, S]`, `[B, 1, n, S]` bool or additive, or a flex `BlockMask`.
        stored: slots of this layer, new ones included.
        queries: n, tokens of this forward pass.
    """
    if isinstance(mask, Tensor):
        return mask[..., -stored:] if mask.shape[-1] > stored else mask
    if mask is None or not hasattr(mask, "mask_mod") or mask.seq_lengths[1] == stored:
        return mask
    return _shift_block_mask(mask, stored, queries)


def _shift_block_mask(mask: Any, stored: int, queries: int) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    offset, inner = mask.seq_lengths[1] - stored, mask.mask_mod

    def shifted(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return inner(b, h, q, kv + offset)

    batch, heads = mask.kv_num_blocks.shape[:2]
    return create_block_mask(shifted, batch, heads, queries, stored, device=mask.kv_num_blocks.device)


def newest_valid(mask: Any, batch: int, queries: int, keys: int, device: torch.device) -> Tensor | None:
    """Which of the `queries` new tokens are real: `[B, n]` bool, or None when all are.

    The mask's last row sees every token that is not padding, so its last n columns tell.
    """
    if mask is None:
        return None
    if isinstance(mask, Tensor):
        row = mask if mask.dim() == 2 else mask[:, 0, -1, :]
        if row.dtype.is_floating_point:
            row = row > torch.finfo(row.dtype).min / 2
        valid = row[..., -queries:].bool()
    else:
        rows = torch.arange(batch, device=device)[:, None]
        columns = torch.arange(mask.seq_lengths[1] - queries, mask.seq_lengths[1], device=device)
        last, head = torch.tensor(queries - 1, device=device), torch.zeros((), dtype=torch.long, device=device)
        valid = mask.mask_mod(rows, head, last, columns[None])
    valid = valid.expand(batch, -1)
    return None if bool(valid.all()) else valid
