"""The mathematics of training retention gates: gated attention, capacity and distillation, for any host.

Nothing here holds an S x S matrix: attention and capacity run over blocks of queries, forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import checkpoint as _checkpoint

from remnant.errors import ConfigError

__all__ = [
    "Form",
    "Share",
    "capacity_loss",
    "distillation",
    "gated_attention",
    "naive_gated_attention",
    "naive_retained",
    "retained",
]

Form = Literal["additive", "multiplicative"]
Share = Literal["head", "layer"]
_BLOCK = 128
_NEVER = float("-inf")


def _grouped(x: Tensor, heads: int) -> Tensor:
    """`[B, H, ...]` repeated to query heads."""
    return x.repeat_interleave(heads // x.shape[1], 1)


def _visible(start: int, stop: int, mask: Tensor | None, device: torch.device) -> Tensor:
    """Bool or additive mask of queries `start..stop` over keys `0..stop`; always causal."""
    past = torch.arange(stop, device=device) <= torch.arange(start, stop, device=device).unsqueeze(-1)
    if mask is None:
        return past
    part = mask[..., start:stop, :stop]
    return part & past if part.dtype == torch.bool else part.masked_fill(~past, _NEVER)


def _weights(
    q: Tensor,
    k: Tensor,
    log_beta: Tensor,
    start: int,
    scale: float,
    form: Form,
    mask: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention probabilities `[B, N, n, m]` of queries that stand at `start`, over keys `0..m`."""
    n, m = q.shape[2], k.shape[2]
    x = torch.matmul(q, k.transpose(2, 3)) * scale
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    ages = torch.arange(start, start + n, device=q.device).unsqueeze(-1) - torch.arange(m, device=q.device)
    decay = ages.clamp(min=0).to(q.dtype) * log_beta.unsqueeze(2)
    x = x + decay if form == "additive" else x * decay.exp()
    seen = _visible(start, start + n, mask, q.device)
    x = x.masked_fill(~seen, _NEVER) if seen.dtype == torch.bool else x + seen
    if sinks is None:
        return x.softmax(-1)
    extra = sinks.to(x.dtype).view(1, -1, 1, 1).expand(x.shape[0], -1, n, 1)
    return torch.cat([x, extra], -1).softmax(-1)[..., :-1]


def naive_gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_beta: Tensor,
    scale: float | None = None,
    form: Form = "additive",
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The same as `gated_attention` with the whole matrix at once: the truth for tests."""
    n = q.shape[1]
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    p = _weights(q, _grouped(k, n), _grouped(log_beta, n), 0, factor, form, mask, softcap, sinks)
    return torch.matmul(p, _grouped(v, n))


def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_beta: Tensor,
    scale: float | None = None,
    form: Form = "additive",
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    block: int = _BLOCK,
) -> Tensor:
    """Causal attention in which every key fades with its age, at the rate of its own gate.

    Args:
        q: `[B, G*H, S, D]` queries after RoPE.
        k: `[B, H, S, D]` keys after RoPE.
        v: `[B, H, S, Dv]` values.
        log_beta: `[B, H, S]`, at most 0.
        scale: factor on q.k; None means `D ** -0.5`.
        form: `additive` adds `(t - i) log beta_i` to the logit, which tends to removal; `multiplicative` scales the
            logit by `beta_i ** (t - i)`, which tends to weight `exp(0)`, as in the original code.
        mask: `[B or 1, 1 or G*H, S, S]` bool or additive, on top of causality.
        softcap: logits are `softcap * tanh(logits / softcap)` before the gate, when given.
        sinks: `[G*H]` extra logit of each query head.
        block: queries handled at once.

    Returns:
        `[B, G*H, S, Dv]` in the dtype of the gate.

    Raises:
        ConfigError: `form` is neither.

    Source: TRIM-KV, retention-gated attention. Differs: additive by default; the original's form is an option.
    """
    if form not in ("additive", "multiplicative"):
        raise ConfigError(f"form {form!r}", accepted="additive, multiplicative")
    n, s, dtype = q.shape[1], q.shape[2], log_beta.dtype
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v, log_beta = q.to(dtype), _grouped(k, n).to(dtype), _grouped(v, n).to(dtype), _grouped(log_beta, n)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)
    out: list[Tensor] = []
    for start in range(0, s, block):
        stop = min(start + block, s)
        part, keys, values, gate = q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], log_beta[:, :, :stop]
        if form == "additive" and softcap is None and sinks is None:
            out.append(_fused(part, keys, values, gate, start, factor, mask))
            continue

        def body(part: Tensor, keys: Tensor, values: Tensor, gate: Tensor, start: int = start) -> Tensor:
            return torch.matmul(_weights(part, keys, gate, start, factor, form, mask, softcap, sinks), values)

        out.append(_checkpointed(body, part, keys, values, gate))
    return torch.cat(out, 2)


def _checkpointed(body: Any, *tensors: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return body(*tensors)
    run: Any = cast("Any", _checkpoint).checkpoint
    return run(body, *tensors, use_reentrant=False, preserve_rng_state=False)


def _fused(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, start: int, scale: float, mask: Tensor | None) -> Tensor:
    """A block through torch's fused attention: the decay is two more channels of queries and keys.

    `(t - i) log beta_i = (t - start) * log beta_i + 1 * (start - i) log beta_i`, counted from the block's first query,
    so that nothing large cancels for the young keys that matter.
    """
    n, m, width = q.shape[2], k.shape[2], q.shape[-1]
    step = torch.arange(n, device=q.device, dtype=q.dtype).view(1, 1, n, 1).expand(*q.shape[:2], n, 1)
    back = (start - torch.arange(m, device=q.device)).to(q.dtype)
    # A multiple of 8 channels, the same for values: the fused kernels ask for it.
    wide = -(-max(width + 2, v.shape[-1]) // 8) * 8
    more = q.new_zeros(1, 1, 1, 1)
    queries = torch.cat([q * scale, step, torch.ones_like(step), more.expand(*q.shape[:3], wide - width - 2)], -1)
    ages = torch.stack([gate, gate * back], -1)
    keys = torch.cat([k, ages, more.expand(*k.shape[:3], wide - width - 2)], -1)
    seen = _visible(start, start + n, mask, q.device)
    out = F.scaled_dot_product_attention(queries, keys, F.pad(v, (0, wide - v.shape[-1])), attn_mask=seen, scale=1.0)
    return out[..., : v.shape[-1]]


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


def capacity_loss(log_beta: Tensor, budgets: Sequence[int], share: Share = "head", block: int = _BLOCK) -> Tensor:
    """How far the gates hold more than the cache can: mean over t of `relu(retained_t - M) / t`.

    Args:
        log_beta: `[B, H, S]`, at most 0.
        budgets: cache sizes M in tokens per head; the mean over them serves all of them with one gate.
        share: `head` holds every head to M; `layer` only their mean, so that one head may lend to another.
        block: moments handled at once.

    Returns:
        A scalar between 0 and 1.

    Source: TRIM-KV, capacity loss. Differs: several budgets at once.
    """
    held = retained(log_beta, block)
    held = held.mean(1) if share == "layer" else held
    t = torch.arange(1, held.shape[-1] + 1, device=held.device, dtype=held.dtype)
    return torch.stack([(F.relu(held - m) / t).mean() for m in budgets]).mean()


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
