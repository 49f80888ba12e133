"""The losses of training retention gates: capacity, choice and distillation, for any host.

Nothing here holds an S x S matrix: capacity runs over blocks of moments, forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Share", "capacity_loss", "choice", "distillation", "naive_retained", "retained"]

Share = Literal["head", "layer"]
_BLOCK = 128
_LOWEST = -60.0  # exp of this is nothing beside any logit, and finite


def naive_retained(log_beta: Tensor) -> Tensor:
    """`[..., S]`: sum over i <= t of `beta_i ** (t - i)`, with the whole matrix: the truth for tests."""
    s = log_beta.shape[-1]
    t = torch.arange(s, device=log_beta.device)
    ages = (t.unsqueeze(-1) - t).to(log_beta.dtype)
    return torch.where(ages >= 0, (ages.clamp(min=0) * log_beta.unsqueeze(-2)).exp(), 0.0).sum(-1)


class _Retained(torch.autograd.Function):
    """Row sums of the decays in blocks; the backward pass makes the blocks again instead of storing them."""

    @staticmethod
    def forward(ctx: Any, log_beta: Tensor, block: int) -> Tensor:
        """Row sums; see `retained`."""
        ctx.save_for_backward(log_beta)
        ctx.block = block
        return torch.cat([_decays(log_beta, a, block)[0].sum(-1) for a in range(0, log_beta.shape[-1], block)], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """`d/d log_beta_i = sum over t of g_t (t - i) beta_i ** (t - i)`."""
        (log_beta,) = ctx.saved_tensors
        (grad,) = grads
        out = torch.zeros_like(log_beta)
        for start in range(0, log_beta.shape[-1], ctx.block):
            decays, ages = _decays(log_beta, start, ctx.block)
            g = grad[..., start : start + ctx.block].unsqueeze(-2)
            out[..., : decays.shape[-1]] += torch.matmul(g, decays * ages).squeeze(-2)
        return out, None


def _decays(log_beta: Tensor, start: int, block: int) -> tuple[Tensor, Tensor]:
    """`beta_i ** (t - i)` `[..., n, m]` of a block of t, zero for the future; and the ages `[n, m]`."""
    stop = min(start + block, log_beta.shape[-1])
    i = torch.arange(stop, device=log_beta.device)
    ages = (i[start:].unsqueeze(-1) - i).to(log_beta.dtype)
    past = ages.clamp(min=0)
    return (past * log_beta[..., None, :stop]).exp() * (ages >= 0), past


def retained(log_beta: Tensor, block: int = _BLOCK) -> Tensor:
    """How many tokens' worth of cache the gates hold at each moment.

    Args:
        log_beta: `[B, H, S]`, at most 0; -inf is not allowed.
        block: moments handled at once.

    Returns:
        `[B, H, S]`: sum over i <= t of `beta_i ** (t - i)`.
    """
    return _Retained.apply(log_beta, block)  # pyright: ignore[reportReturnType, reportUnknownMemberType, reportUnknownVariableType]


def capacity_loss(
    log_beta: Tensor,
    budgets: Sequence[int],
    share: Share = "head",
    block: int = _BLOCK,
    real: Tensor | None = None,
) -> Tensor:
    """How far the gates hold more than the cache can: mean over t of `relu(retained_t - M) / t`.

    Args:
        log_beta: `[B, H, S]`, at most 0.
        budgets: cache sizes M in tokens per head; the mean over them serves all of them with one gate.
        share: `head` holds every head to M; `layer` only their mean, so that one head may lend to another.
        block: moments handled at once.
        real: `[B, S]` bool, False for padding, which stands at the end of a row and is not counted.

    Returns:
        A scalar between 0 and 1.

    Source: TRIM-KV, capacity loss. Differs: several budgets at once.
    """
    held = retained(log_beta, block)
    held = held.mean(1, keepdim=True) if share == "layer" else held
    t = torch.arange(1, held.shape[-1] + 1, device=held.device, dtype=held.dtype)
    counted = torch.ones_like(held) if real is None else real.to(held).unsqueeze(1).expand_as(held)
    over = torch.stack([F.relu(held - m) for m in budgets]).mean(0) / t
    return (over * counted).sum() / counted.sum().clamp(min=1)


def choice(log_beta: Tensor, cut: int, tokens: int, share: Share = "head", width: float = 0.5) -> Tensor:
    """What a compaction after `cut` tokens would do to each key, made smooth.

    Args:
        log_beta: `[B, H, S]`, at most 0.
        cut: tokens seen when the cache is compacted.
        tokens: budget per head.
        share: `head` gives every head its budget; `layer` lets the heads of a layer compete for all of it.
        width: softness of the edge, as a fraction of the distance between the scores at half and at twice the budget.

    Returns:
        `[B, H, S]` for `selected_attention`: the log of the share of each key that stays, 0 from `cut` on. The shares
        of what competes add up to the budget, and so do their gradients: one key can win only what others lose.

    Source: none for TRIM-KV, whose gates learn from fading alone. At inference the top of the faded scores stays and
    all else goes, which is another question; a gate that learned both answers it better.
    """
    b, h, s = log_beta.shape
    if tokens >= cut:
        return log_beta * 0.0
    ages = cut + 1 - torch.arange(cut, device=log_beta.device)
    scores = (log_beta[..., :cut] * ages).reshape((b, 1, h * cut) if share == "layer" else (b, h, cut))
    total = h * tokens if share == "layer" else tokens
    ranked = scores.detach().sort(-1, descending=True).values
    near, far = ranked[..., total // 2], ranked[..., min(2 * total, ranked.shape[-1] - 1)]
    soft = ((near - far) * width).clamp(min=1e-3).unsqueeze(-1)
    kept = F.logsigmoid((scores - _edge(scores, total, soft)) / soft)
    return F.pad(kept.view(b, h, cut).clamp(min=_LOWEST), (0, s - cut))


def _edge(scores: Tensor, total: int, soft: Tensor) -> Tensor:
    """The threshold `[..., 1]` at which the sigmoids of the scores add up to `total`; its gradient keeps them there."""
    fixed = scores.detach()
    low, high = (fixed.amin(-1, keepdim=True) - 20 * soft, fixed.amax(-1, keepdim=True) + 20 * soft)
    for _ in range(40):
        middle = (low + high) / 2
        many = ((fixed - middle) / soft).sigmoid().sum(-1, keepdim=True) > total
        low, high = torch.where(many, middle, low), torch.where(many, high, middle)
    edge = (low + high) / 2
    p = ((fixed - edge) / soft).sigmoid()
    slope = p * (1 - p)
    moved = (scores * slope).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True).clamp(min=1e-12)
    return edge + moved - moved.detach()


def distillation(student: Tensor, teacher: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) and cross-entropy, each a weighted mean over positions.

    Args:
        student: `[N, V]` logits under gated attention.
        teacher: `[N, V]` logits of the untouched model.
        labels: `[N]` int64 next tokens; negative where there is none.
        weights: `[N]`, at least 0; what a position counts.

    Returns:
        (kl, cross_entropy), scalars in nats.
    """
    guess = student.to(weights.dtype).log_softmax(-1)
    truth = teacher.to(weights.dtype).log_softmax(-1)
    total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    kl = ((truth.exp() * (truth - guess)).sum(-1) * weights).sum() / total
    named = labels >= 0
    picked = guess.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    shares = weights * named
    return kl, -(picked * shares).sum() / shares.sum().clamp(min=torch.finfo(weights.dtype).tiny)
