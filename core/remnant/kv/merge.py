"""Fold evicted slots into kept ones: who is nearest, with which weights, and the fold itself."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from remnant.errors import ShapeError
from remnant.kv.view import Keep, KVView, Merge
from remnant_kernels.op import get_op
from remnant_kernels.rows import take

__all__ = [
    "Weights",
    "apply_merge",
    "evicted",
    "fold_one",
    "fold_weights",
    "make_merge",
    "nearest",
    "take",
]

Weights = Literal["paper", "code"]


def evicted(keep: Keep, view: KVView) -> Tensor:
    """`[B, H, E]` int64 real slots that a plan drops, ascending by position, -1 behind a row's end; no padding."""
    b, h, s = view.shape
    gone = torch.ones(b, h, s + 1, dtype=torch.bool, device=view.k.device)
    gone.scatter_(-1, keep.indices.where(keep.indices >= 0, s), False)  # holes of a ragged row hit the extra column
    gone = gone[..., :s] if view.valid is None else gone[..., :s] & view.valid
    counts = gone.sum(-1, keepdim=True)
    most = int(counts.max()) if counts.numel() else 0
    far = torch.iinfo(torch.int64).max
    slots = view.positions.where(gone, far).topk(most, largest=False, sorted=True).indices
    return slots.masked_fill(torch.arange(most, device=slots.device) >= counts, -1)


def nearest(k: Tensor, src: Tensor, kept: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """For every evicted key, the kept key with the largest cosine similarity.

    Args:
        k: `[B, H, S, D]` keys.
        src: `[B, H, E]` int64 slots that go, -1 for none.
        kept: `[B, H, K]` int64 slots that stay, ascending by position, -1 for none.
        valid: `[B, H, S]` bool; padding is never a target.

    Returns:
        similarity `[B, H, E]` float32 in -1..1, -inf where src is -1 or nothing is kept; and place in `kept`
        `[B, H, E]` int64. Equal similarities go to the later kept key. A key of norm 0 has similarity 0 to everything.
    """
    if valid is not None:
        kept = kept.masked_fill(~valid.gather(-1, kept.clamp(min=0)), -1)
    found = get_op("nearest")(k=k, src=src, kept=kept)
    return found.similarity, found.place


def fold_weights(similarity: Tensor, dst: Tensor, chosen: Tensor, kept: int, form: Weights) -> tuple[Tensor, Tensor]:
    """Shares of the evicted and of the kept values.

    Args:
        similarity: `[B, H, E]` float32, m.
        dst: `[B, H, E]` int64, place of the target among the kept.
        chosen: `[B, H, E]` bool, which evicted slots are folded at all.
        kept: K.
        form: `paper` gives own = e / (e + sum exp(m)) and weight = exp(m) / (e + sum exp(m)), which sum to 1;
            `code` gives own = 1 / (1 + n) and weight = m / (1 + n), which sum to less than 1 and so shrink the value.

    Returns:
        weight `[B, H, E]` float32, 0 where not chosen; own `[B, H, K]` float32, 1 where nothing arrives.
    """
    m = similarity.float().masked_fill(~chosen, 0.0)
    one = torch.e if form == "paper" else 1.0
    # What a target is divided by: exp(m) of every member against e, or simply how many there are.
    member = (m.exp() if form == "paper" else torch.ones_like(m)).masked_fill(~chosen, 0.0)
    total = torch.full((*dst.shape[:2], kept), one, device=m.device).scatter_add(-1, dst, member)
    return (member if form == "paper" else m) / total.gather(-1, dst), one / total


def make_merge(
    src: Tensor, dst: Tensor, similarity: Tensor, chosen: Tensor, kept: int, form: Weights = "paper", keys: bool = False
) -> Merge:
    """A `Merge` of the chosen slots; the others have src -1, dst 0 and weight 0. Shapes as in `fold_weights`."""
    weight, own = fold_weights(similarity, dst, chosen, kept, form)
    return Merge(src.masked_fill(~chosen, -1), dst.masked_fill(~chosen, 0), weight, own, keys)


def apply_merge(v: Tensor, keep: Keep) -> Tensor:
    """Gather the kept values and fold the evicted ones in.

    Args:
        v: `[B, H, S, Dv]` values before the eviction (or keys with their rotation undone).
        keep: a plan; without a merge this is the plain gather.

    Returns:
        `[B, H, K, Dv]` in the dtype of v, summed in float32; zeros in the holes of a ragged plan.

    Raises:
        ShapeError: the plan is for another number of sequences or heads.
    """
    if keep.indices.shape[:2] != v.shape[:2]:
        raise ShapeError(f"plan {list(keep.indices.shape)} for values {list(v.shape)}", accepted="equal B and H")
    merge = keep.merge
    if merge is None:
        return take(v, keep.indices).masked_fill((keep.indices < 0).unsqueeze(-1), 0.0)
    return get_op("fold")(v=v, kept=keep.indices, own=merge.own, src=merge.src, dst=merge.dst, weight=merge.weight)


def fold_one(kept: Tensor, v: Tensor, merge: Merge) -> None:
    """Fold one evicted slot per head into values that are already gathered, in place: what a decoded token costs.

    Args:
        kept: `[B, H, K, Dv]` the kept values of `v`, written to.
        v: `[B, H, S, Dv]` values before the eviction.
        merge: with one source per head.
    """
    gone = (merge.src < 0).unsqueeze(-1)
    part = (take(v, merge.src).float() * merge.weight.unsqueeze(-1)).masked_fill(gone, 0.0)
    at = merge.dst.unsqueeze(-1).expand_as(part)
    own = merge.own.gather(-1, merge.dst).unsqueeze(-1)
    kept.scatter_(2, at, (kept.gather(2, at).float() * own + part).to(kept.dtype))
