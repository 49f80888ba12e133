"""The truth: one head of one sequence at a time, a softmax written out."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Decoded", "Reduce", "Score", "naive_decode_attention", "unpacked"]

Score = Literal["none", "row", "sum", "stamp"]
Reduce = Literal["mean", "max", "sum"]


class Decoded(NamedTuple):
    """What a decoded token reads, and what it leaves behind.

    Attributes:
        out: `[B, G*H, Dv]`, the dtype of the queries; zeros for a head without a visible slot.
        lse: `[B, G*H]` float32, natural logarithm of the softmax denominator; -inf for such a head.
        score: `[B, H, S]` float32: the probabilities of this step (`row`), or `acc` (`sum`), written in place.
        last: `[B, H, S]` int32, written in place (`stamp`).
        interval: `[B, H, S]` int32, likewise.
    """

    out: Tensor
    lse: Tensor
    score: Tensor | None = None
    last: Tensor | None = None
    interval: Tensor | None = None


def naive_decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lens: Tensor | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    score: Score = "none",
    reduce: Reduce = "mean",
    acc: Tensor | None = None,
    last: Tensor | None = None,
    interval: Tensor | None = None,
    now: Tensor | None = None,
    threshold: Tensor | None = None,
    begin: Tensor | None = None,
    width: int = 0,
) -> Decoded:
    """Attention of one new token per sequence, with the score update of a policy fused in.

    Args:
        q: `[B, G*H, D]`, the queries of the newest token.
        k: `[B, H, S, D]`.
        v: `[B, H, S, Dv]`.
        lens: `[B, H]` int64, slots in use; what lies behind is never read. None uses all of S.
        bias: `[B, H, S]` float32, added to the logits after the softcap; -inf hides a slot.
        sinks: `[G*H]` float32, a logit per head that takes part in the denominator and has no value.
        scale: of the logits; `D ** -0.5` if left out.
        softcap: logits become `softcap * tanh(logits / softcap)`.
        score: what happens to the probabilities, after `reduce` over the G query heads of a KV head. `row` returns
            them; `sum` adds them to `acc`; `stamp` marks slots that got at least `threshold`.
        reduce: `mean`, `max` or `sum`.
        acc: `[B, H, S]` float32, for `sum`.
        last: `[B, H, S]` int32, for `stamp`: when a slot was last active; below 0 it counts as active just before now.
        interval: `[B, H, S]` int32, for `stamp`: the longest that a slot was ever away.
        now: `[B]` int32, for `stamp`: the clock of each sequence.
        threshold: `[B, H]` float32, for `stamp`: the least probability that counts as activity.
        begin: `[B, H]` int64: heads of different length lie one after the other. Then `k` is `[N, D]`, `v` `[N, Dv]`,
            the slots of a head are rows `begin` to `begin + lens`, and S is `width`.
        width: S where `begin` is given, at least the largest of `lens`.

    Returns:
        See `Decoded`. Slots behind `lens` keep their state, and have 0 in a `row`.

    Source: scores after Zhang et al. 2023 (sum), Oren et al. 2024 (row), Zhang et al. 2025, arXiv 2506.15969 (stamp).
    """
    if begin is not None:
        k, v = unpacked(k, v, begin, width)
    b, hq, d = q.shape
    h, s, g = k.shape[1], k.shape[2], q.shape[1] // k.shape[1]
    factor = d**-0.5 if scale is None else scale
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = torch.zeros(b, hq, v.shape[3], dtype=wide, device=q.device)
    lse = torch.full((b, hq), float("-inf"), dtype=wide, device=q.device)
    p = torch.zeros(b, hq, s, dtype=wide, device=q.device)
    for i in range(b):
        for head in range(hq):
            kv = head // g
            n = s if lens is None else int(lens[i, kv])
            x = (k[i, kv, :n].to(wide) @ q[i, head].to(wide)) * factor
            if softcap is not None:
                x = softcap * torch.tanh(x / softcap)
            if bias is not None:
                x = x + bias[i, kv, :n].to(wide)
            x = x if sinks is None else torch.cat([x, sinks[head : head + 1].to(wide)])
            if x.numel() == 0 or bool((x == float("-inf")).all()):
                continue
            lse[i, head] = torch.logsumexp(x, 0)
            p[i, head, :n] = (x - lse[i, head]).exp()[:n]
            out[i, head] = p[i, head, :n] @ v[i, kv, :n].to(wide)
    done = Decoded(out.to(q.dtype), lse)
    if score == "none":
        return done
    grouped = p.view(b, h, g, s)
    row = grouped.mean(2) if reduce == "mean" else grouped.amax(2) if reduce == "max" else grouped.sum(2)
    if score == "row":
        return done._replace(score=row)
    used = torch.arange(s, device=q.device) < (s if lens is None else lens[:, :, None])
    if score == "sum":
        assert acc is not None
        return done._replace(score=acc.add_(torch.where(used, row, 0).to(acc.dtype)))
    assert last is not None
    assert interval is not None
    assert now is not None
    assert threshold is not None
    clock = now.view(b, 1, 1)
    known = torch.where(last < 0, clock - 1, last)
    active = row >= threshold[:, :, None]
    new_last = torch.where(active, clock, known)
    new_interval = torch.where(active, torch.maximum(interval, clock - known), interval)
    last.copy_(torch.where(used, new_last, last))
    interval.copy_(torch.where(used, new_interval, interval))
    return done._replace(last=last, interval=interval)


def unpacked(k: Tensor, v: Tensor, begin: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Keys and values `[B, H, S, ...]` of heads that lie one after the other; what lies behind a head is anybody's."""
    index = (begin[..., None] + torch.arange(width, device=k.device)).clamp(max=max(k.shape[0] - 1, 0))
    return k[index], v[index]
