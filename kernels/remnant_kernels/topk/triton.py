"""Radix selection: four sweeps find the threshold digit by digit, a fifth writes the slots, which come out sorted.

One program per row. Keys are the bits of a float32, turned so that unsigned order is numeric order. A row of 32k
scores is 128 KB and stays in cache between sweeps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from remnant_kernels.topk.naive import Chosen

__all__ = ["topk"]

_TILE = 1024


@triton.jit
def _keys(p_scores, at, length):
    """Bits of float32 scores in an order that unsigned integers share; -0.0 equals 0.0."""
    x = tl.load(p_scores + at, mask=at < length, other=0.0) + 0.0
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, ~bits, bits | -2147483648)
    return bits.to(tl.uint32, bitcast=True)


@triton.jit(do_not_specialize=["S", "width"])
def _topk_kernel(p_scores, p_k, p_lens, p_indices, p_counts, S, width, LENS: tl.constexpr, TILE: tl.constexpr):
    """One row: the threshold by radix, then the slots above it and the newest of those that equal it."""
    row = tl.program_id(0).to(tl.int64)
    p_scores += row * S
    length = tl.load(p_lens + row).to(tl.int32) if LENS else S
    k = tl.minimum(tl.maximum(tl.load(p_k + row).to(tl.int32), 0), length)
    tl.store(p_counts + row, k.to(tl.int64))
    if k > 0:
        bins = tl.arange(0, 512)
        prefix = tl.zeros((), tl.uint32)
        left = k  # of the k wanted, those that are not above every key with the prefix found so far
        ties = length
        for step in tl.static_range(4):
            shift = 24 - 8 * step
            counts = tl.zeros((512,), tl.int32)
            for start in range(0, length, TILE):
                at = start + tl.arange(0, TILE)
                key = _keys(p_scores, at, length)
                same = at < length
                if step > 0:
                    same = same & ((key >> (shift + 8)) == prefix)
                digit = tl.where(same, ((key >> shift) & 255).to(tl.int32), 256)
                counts += tl.histogram(digit, 512)
            counts = tl.where(bins < 256, counts, 0)
            at_least = tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts
            found = tl.max(tl.where((at_least >= left) & (bins < 256), bins, 0), 0)
            above = tl.sum(tl.where((bins > found) & (bins < 256), counts, 0), 0)
            ties = tl.sum(tl.where(bins == found, counts, 0), 0)
            left -= above
            prefix = (prefix << 8) | found.to(tl.uint32)
        spared = ties - left  # ties that lose, the oldest ones
        written = tl.zeros((), tl.int32)
        met = tl.zeros((), tl.int32)
        for start in range(0, length, TILE):
            at = start + tl.arange(0, TILE)
            key = _keys(p_scores, at, length)
            here = at < length
            equal = (here & (key == prefix)).to(tl.int32)
            rank = met + tl.cumsum(equal, 0)
            keep = ((here & (key > prefix)) | ((equal > 0) & (rank > spared))).to(tl.int32)
            place = written + tl.cumsum(keep, 0) - 1
            tl.store(p_indices + row * width + place, at.to(tl.int64), mask=keep > 0)
            written += tl.sum(keep, 0)
            met += tl.sum(equal, 0)


def topk(scores: Tensor, k: Tensor, width: int, lens: Tensor | None = None) -> Chosen:
    """See `naive_topk`."""
    b, h, s = scores.shape
    indices = torch.full((b, h, width), -1, dtype=torch.int64, device=scores.device)
    counts = torch.empty(b, h, dtype=torch.int64, device=scores.device)
    lens = None if lens is None else lens.contiguous()
    scores, k = scores.float().contiguous(), k.contiguous()
    tile = min(_TILE, max(16, triton.next_power_of_2(s)))
    _topk_kernel[(b * h,)](scores, k, lens, indices, counts, s, width, lens is not None, tile, num_warps=8)
    return Chosen(indices, counts)
