"""Fold evicted slots into kept ones: who is nearest, with which weights, and the fold itself.

`naive_merge` is the truth that `apply_merge` is tested against.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from remnant.errors import ShapeError
from remnant.kv.view import Keep, KVView, Merge
from remnant_kernels.dispatch import wanted
from remnant_kernels.op import get_op

__all__ = [
    "Weights",
    "apply_merge",
    "evicted",
    "fold_one",
    "fold_weights",
    "make_merge",
    "naive_merge",
    "nearest",
    "take",
]

Weights = Literal["paper", "code"]
_TILE = 512
_FEW = 16


def take(x: Tensor, slots: Tensor) -> Tensor:
    """Gather slots: x `[B, H, S, ...]`, slots `[B, H, N]` int64 -> `[B, H, N, ...]`; -1 reads slot 0, mask it after.

    Whole rows are copied at once, several times faster than `gather` with an index for every channel.
    """
    slots = slots.clamp(min=0)
    if x.dim() == 3:
        return x.gather(2, slots)
    b, h, s = x.shape[:3]
    if not x.is_contiguous():
        rows, heads = (torch.arange(n, device=x.device) for n in (b, h))
        return x[rows[:, None, None], heads[:, None], slots]
    begin = torch.arange(b * h, device=x.device).view(b, h, 1) * s
    return x.flatten(0, 2).index_select(0, (begin + slots).flatten()).view(*slots.shape, *x.shape[3:])


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


def nearest(
    k: Tensor, src: Tensor, kept: Tensor, valid: Tensor | None = None, tile: int = _TILE
) -> tuple[Tensor, Tensor]:
    """For every evicted key, the kept key with the largest cosine similarity; a running arg-max over tiles.

    Args:
        k: `[B, H, S, D]` keys.
        src: `[B, H, E]` int64 slots that go, -1 for none.
        kept: `[B, H, K]` int64 slots that stay, ascending by position, -1 for none.
        valid: `[B, H, S]` bool; padding is never a target.
        tile: keys of either side handled at once; the peak is `B * H * tile * tile` float32 values, so that an
            E x K matrix never exists.

    Returns:
        similarity `[B, H, E]` float32 in -1..1, -inf where src is -1; and place in `kept` `[B, H, E]` int64. Equal
        similarities go to the later kept key. A key of norm 0 has similarity 0 to everything.
    """
    b, h, e = src.shape
    tile = max(16, min(tile, k.shape[2] // 4))
    hidden = kept < 0
    if valid is not None:
        hidden = hidden | ~valid.gather(-1, kept.clamp(min=0))
    if wanted("nearest", k):
        found = get_op("nearest")(k=k, src=src, kept=kept.masked_fill(hidden, -1))
        return found.similarity, found.place
    if e <= _FEW <= kept.shape[-1] and k.dtype == torch.float32:
        return _nearest_of_few(k, src, kept, hidden)
    best = torch.full((b, h, e), float("-inf"), device=k.device)
    place = torch.zeros_like(src)
    for start in range(0, kept.shape[-1], tile):
        part = slice(start, start + tile)
        # Flipped, so that the first maximum, which arg-max returns, is the latest position.
        target = F.normalize(take(k, kept[..., part]).float(), dim=-1, eps=1e-12).flip(2).transpose(2, 3)
        mask = hidden[..., part].flip(2).unsqueeze(2)
        last = start + target.shape[-1] - 1
        for begin in range(0, e, tile):
            rows = slice(begin, begin + tile)
            x = F.normalize(take(k, src[..., rows]).float(), dim=-1, eps=1e-12) @ target
            x = x.masked_fill(mask, float("-inf"))
            at = x.argmax(-1)
            top = x.gather(-1, at.unsqueeze(-1)).squeeze(-1)
            better = top >= best[..., rows]
            best[..., rows] = torch.where(better, top, best[..., rows])
            place[..., rows] = torch.where(better, last - at, place[..., rows])
    return best.masked_fill(src < 0, float("-inf")), place.masked_fill(src < 0, 0)


def _nearest_of_few(k: Tensor, src: Tensor, kept: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """`nearest` for the few slots that go at a decoded token: every key is read in place, none is gathered."""
    length = cast(Tensor, torch.linalg.vector_norm(k, dim=-1))  # pyright: ignore[reportUnknownMemberType]
    x = F.normalize(take(k, src), dim=-1, eps=1e-12) @ k.transpose(2, 3) / length.clamp(min=1e-12).unsqueeze(2)
    at = kept.clamp(min=0).unsqueeze(2).expand(-1, -1, src.shape[-1], -1)
    x = x.gather(-1, at).masked_fill(hidden.unsqueeze(2), float("-inf")).flip(-1)
    place = x.argmax(-1)
    best = x.gather(-1, place.unsqueeze(-1)).squeeze(-1)
    gone = src < 0
    return best.masked_fill(gone, float("-inf")), (kept.shape[-1] - 1 - place).masked_fill(gone, 0)


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


def apply_merge(v: Tensor, keep: Keep, tile: int = _TILE) -> Tensor:
    """Gather the kept values and fold the evicted ones in.

    Args:
        v: `[B, H, S, Dv]` values before the eviction (or keys with their rotation undone).
        keep: a plan; without a merge this is the plain gather.
        tile: evicted slots handled at once.

    Returns:
        `[B, H, K, Dv]` in the dtype of v, summed in float32; zeros in the holes of a ragged plan.

    Raises:
        ShapeError: the plan is for another number of sequences or heads.
    """
    if keep.indices.shape[:2] != v.shape[:2]:
        raise ShapeError(f"plan {list(keep.indices.shape)} for values {list(v.shape)}", accepted="equal B and H")
    merge = keep.merge
    if merge is not None and wanted("fold", v):
        return get_op("fold")(v=v, kept=keep.indices, own=merge.own, src=merge.src, dst=merge.dst, weight=merge.weight)
    out = take(v, keep.indices).masked_fill((keep.indices < 0).unsqueeze(-1), 0.0)
    if merge is None:
        return out
    total = out.float() * merge.own.unsqueeze(-1)
    for start in range(0, merge.src.shape[-1], tile):
        src, dst = merge.src[..., start : start + tile], merge.dst[..., start : start + tile]
        share = merge.weight[..., start : start + tile].masked_fill(src < 0, 0.0)
        # Not a product with 0: an unused slot may hold NaN.
        part = (take(v, src).float() * share.unsqueeze(-1)).masked_fill((src < 0).unsqueeze(-1), 0.0)
        total = total.scatter_add(2, dst.unsqueeze(-1).expand_as(part), part)
    return total.to(v.dtype)


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


def naive_merge(v: Tensor, keep: Keep, tile: int = _TILE) -> Tensor:
    """The same by loops over batch, head and slot, in float64: slow, and the truth. `tile` is ignored."""
    b, h, kept = keep.indices.shape
    out = torch.zeros(b, h, kept, v.shape[-1], dtype=torch.float64)
    for bi in range(b):
        for hi in range(h):
            for c in range(kept):
                slot = int(keep.indices[bi, hi, c])
                if slot < 0:
                    continue
                own = 1.0 if keep.merge is None else float(keep.merge.own[bi, hi, c])
                out[bi, hi, c] = own * v[bi, hi, slot].double().cpu()
            for e in range(0 if keep.merge is None else keep.merge.src.shape[-1]):
                assert keep.merge is not None
                slot, c = int(keep.merge.src[bi, hi, e]), int(keep.merge.dst[bi, hi, e])
                if slot >= 0:
                    out[bi, hi, c] += float(keep.merge.weight[bi, hi, e]) * v[bi, hi, slot].double().cpu()
    return out.to(v.dtype)
