"""Attention for training gates: keys that fade with age, or that a compaction would drop; for any host.

Both are terms that are added to the logits, and both are products of a few channels of queries and keys. Nothing here
holds an S x S matrix: attention runs over blocks of queries, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import checkpoint as _checkpoint

from remnant.errors import ConfigError

__all__ = [
    "Form",
    "gated_attention",
    "naive_gated_attention",
    "naive_selected_attention",
    "selected_attention",
]

Form = Literal["additive", "multiplicative"]
_BLOCK = 128
_NEVER = float("-inf")
_Channels = Callable[[int, int], "tuple[Tensor, Tensor]"]
"""(start, stop) -> of queries `start..stop` `[n, E]`, of keys `0..stop` `[B, N, m, E]`; their product is the term."""


def _grouped(x: Tensor, heads: int) -> Tensor:
    """`[B, H, ...]` repeated to query heads."""
    return x.repeat_interleave(heads // x.shape[1], 1)


def _fading(log_beta: Tensor) -> _Channels:
    """`(t - i) log beta_i = (t - start) * log beta_i + 1 * (start - i) log beta_i`.

    Counted from the block's first query, so that nothing large cancels for the young keys that matter.
    """

    def channels(start: int, stop: int) -> tuple[Tensor, Tensor]:
        step = torch.arange(stop - start, device=log_beta.device, dtype=log_beta.dtype)
        back = (start - torch.arange(stop, device=log_beta.device)).to(log_beta.dtype)
        gate = log_beta[..., :stop]
        return torch.stack([step, torch.ones_like(step)], -1), torch.stack([gate, gate * back], -1)

    return channels


def _choosing(bias: Tensor, cut: int) -> _Channels:
    """`bias_i` for queries from `cut` on."""

    def channels(start: int, stop: int) -> tuple[Tensor, Tensor]:
        late = torch.arange(start, stop, device=bias.device) >= cut
        return late.to(bias.dtype).unsqueeze(-1), bias[..., :stop].unsqueeze(-1)

    return channels


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
    term: Tensor,
    seen: Tensor,
    scale: float,
    form: Form,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention probabilities `[B, N, n, m]`."""
    x = torch.matmul(q, k.transpose(2, 3)) * scale
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    # Above 0 stand only keys of the future, which are masked below.
    term = term.clamp(max=0)
    x = x + term if form == "additive" else x * term.exp()
    x = x.masked_fill(~seen, _NEVER) if seen.dtype == torch.bool else x + seen
    if sinks is None:
        return x.softmax(-1)
    extra = sinks.to(x.dtype).view(1, -1, 1, 1).expand(x.shape[0], -1, x.shape[2], 1)
    return torch.cat([x, extra], -1).softmax(-1)[..., :-1]


def _checkpointed(body: Any, *tensors: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return body(*tensors)
    run: Any = cast("Any", _checkpoint).checkpoint
    return run(body, *tensors, use_reentrant=False, preserve_rng_state=False)


def _fused(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float, seen: Tensor | None) -> Tensor:
    """Through torch's fused attention, with the term as further channels; `seen` None means causal from key 0."""
    width, more = q.shape[-1], rows.shape[-1]
    # A multiple of 8 channels, the same for values: the fused kernels ask for it.
    wide = -(-max(width + more, v.shape[-1]) // 8) * 8
    fill = wide - width - more
    queries = F.pad(torch.cat([q * scale, rows.expand(*q.shape[:2], *rows.shape)], -1), (0, fill))
    keys = F.pad(torch.cat([k, columns], -1), (0, fill))
    values = F.pad(v, (0, wide - v.shape[-1]))
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, is_causal=seen is None, scale=1.0)
    return out[..., : v.shape[-1]]


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    channels: _Channels,
    scale: float | None,
    form: Form,
    mask: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
    block: int,
) -> Tensor:
    n, s = q.shape[1], q.shape[2]
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    k, v = _grouped(k, n), _grouped(v, n)
    fused = form == "additive" and softcap is None and sinks is None
    out: list[Tensor] = []
    for start in range(0, s, block):
        stop = min(start + block, s)
        part, keys, values = q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop]
        rows, columns = channels(start, stop)
        seen = _visible(start, stop, mask, q.device)
        if fused:
            out.append(_fused(part, keys, values, rows, columns, factor, seen))
            continue

        def body(q: Tensor, k: Tensor, v: Tensor, columns: Tensor, rows: Tensor = rows, seen: Tensor = seen) -> Tensor:
            term = torch.matmul(rows, columns.transpose(2, 3))
            return torch.matmul(_weights(q, k, term, seen, factor, form, softcap, sinks), v)

        out.append(_checkpointed(body, part, keys, values, columns))
    return torch.cat(out, 2)


def _typed(
    q: Tensor, k: Tensor, v: Tensor, term: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Everything in the dtype of the term, which is repeated to query heads."""
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(term.dtype)
    return q.to(term.dtype), k.to(term.dtype), v.to(term.dtype), _grouped(term, q.shape[1]), mask


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
        log_beta: `[B, H, S]`, at most 0; fewer heads than `k` where heads share what is stored (MLA).
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
    q, k, v, gate, mask = _typed(q, k, v, log_beta, mask)
    return _attention(q, k, v, _fading(gate), scale, form, mask, softcap, sinks, block)


def selected_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    cut: int,
    scale: float | None = None,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    block: int = _BLOCK,
) -> Tensor:
    """Causal attention as after a compaction: queries from `cut` on see each key with a bias.

    Args:
        q: `[B, G*H, S, D]` queries after RoPE.
        k: `[B, H, S, D]` keys after RoPE.
        v: `[B, H, S, Dv]` values.
        bias: `[B, H, S]`, at most 0, added to the logits of late queries: 0 keeps a key, -30 has dropped it.
        cut: first position whose query is late.
        scale: factor on q.k; None means `D ** -0.5`.
        mask: `[B or 1, 1 or G*H, S, S]` bool or additive, on top of causality.
        softcap: logits are `softcap * tanh(logits / softcap)` before the bias, when given.
        sinks: `[G*H]` extra logit of each query head.
        block: queries handled at once, where they cannot be handled all at once.

    Returns:
        `[B, G*H, S, Dv]` in the dtype of the bias.
    """
    q, k, v, bias, mask = _typed(q, k, v, bias, mask)
    if mask is not None or softcap is not None or sinks is not None:
        return _attention(q, k, v, _choosing(bias, cut), scale, "additive", mask, softcap, sinks, block)
    n, factor = q.shape[1], q.shape[-1] ** -0.5 if scale is None else scale
    rows, columns = _choosing(bias, cut)(0, q.shape[2])
    return _fused(q, _grouped(k, n), _grouped(v, n), rows, columns, factor, None)


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
    t = torch.arange(q.shape[2], device=q.device)
    ages = (t.unsqueeze(-1) - t).to(log_beta.dtype)
    term = ages * _grouped(log_beta, q.shape[1]).unsqueeze(2)
    return _naive(q, k, v, term, scale, form, mask, softcap, sinks)


def naive_selected_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    cut: int,
    scale: float | None = None,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The same as `selected_attention` with the whole matrix at once: the truth for tests."""
    late = torch.arange(q.shape[2], device=q.device).unsqueeze(-1) >= cut
    term = late * _grouped(bias, q.shape[1]).unsqueeze(2)
    return _naive(q, k, v, term, scale, "additive", mask, softcap, sinks)


def _naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    term: Tensor,
    scale: float | None,
    form: Form,
    mask: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    n, s = q.shape[1], q.shape[2]
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    seen = _visible(0, s, mask, q.device)
    return torch.matmul(_weights(q, _grouped(k, n), term, seen, factor, form, softcap, sinks), _grouped(v, n))
