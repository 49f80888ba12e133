"""Both products, the activation and the logarithm in one kernel: the hidden layer never leaves the chip."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from remnant_kernels._jit import next_power
from remnant_kernels.retention_gate.naive import EPSILON

__all__ = ["retention_gate"]

_TOKENS, _HIDDEN = 64, 32


@triton.jit
def _scaled(p_x, at, m_s, d, sxs, W: tl.constexpr, EPS: tl.constexpr):
    """Rows of a tile at unit root mean square, float32."""
    x = tl.load(p_x + at[:, None] * sxs + d[None, :], mask=m_s[:, None] & (d[None, :] < W), other=0.0).to(tl.float32)
    return x / tl.sqrt(tl.sum(x * x, 1) / W + EPS)[:, None]


@triton.jit(do_not_specialize=["S"])
def _gate_kernel(
    p_k, p_v, p_w1, p_b1, p_w2, p_bias, p_out, S, skb, skh, sks, svb, svh, svs,
    H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, F: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    BS: tl.constexpr, BF: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """One tile of tokens of one head."""
    row = tl.program_id(0).to(tl.int64)
    b, h = row // H, row % H
    at = tl.program_id(1).to(tl.int64) * BS + tl.arange(0, BS)
    m_s = at < S
    d, dv = tl.arange(0, BD), tl.arange(0, BDV)
    x_k = _scaled(p_k + b * skb + h * skh, at, m_s, d, sks, D, EPS)
    x_v = _scaled(p_v + b * svb + h * svh, at, m_s, dv, svs, DV, EPS)
    total = tl.zeros((BS,), tl.float32)
    for start in range(0, F, BF):
        f = start + tl.arange(0, BF)
        m_f = f < F
        p_row = p_w1 + (h * F + f[:, None]) * (D + DV)
        w_k = tl.load(p_row + d[None, :], mask=m_f[:, None] & (d[None, :] < D), other=0.0)
        w_v = tl.load(p_row + D + dv[None, :], mask=m_f[:, None] & (dv[None, :] < DV), other=0.0)
        hidden = tl.dot(x_k, tl.trans(w_k), input_precision="ieee")
        hidden += tl.dot(x_v, tl.trans(w_v), input_precision="ieee")
        hidden += tl.load(p_b1 + h * F + f, mask=m_f, other=0.0)[None, :]
        hidden = hidden * tl.sigmoid(hidden)
        total += tl.sum(hidden * tl.load(p_w2 + h * F + f, mask=m_f, other=0.0)[None, :], 1)
    total += tl.load(p_bias + h)
    # log(1 + small): by the series where float32 would lose it
    e = tl.exp(-tl.abs(total))
    log1p = tl.where(e < 1e-3, e * (1.0 - e * (0.5 - e / 3.0)), tl.log(1.0 + e))
    tl.store(p_out + row * S + at, tl.minimum(total, 0.0) - log1p, mask=m_s)


def retention_gate(k: Tensor, v: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, bias: Tensor) -> Tensor:
    """See `naive_retention_gate`."""
    b, h, s, d = k.shape
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    out = torch.empty(b, h, s, dtype=torch.float32, device=k.device)
    weights = [x.float().contiguous() for x in (w1, b1, w2, bias)]
    if s:
        _gate_kernel[b * h, triton.cdiv(s, _TOKENS)](
            k, v, *weights, out, s, *k.stride()[:3], *v.stride()[:3],
            h, d, v.shape[3], w1.shape[1], next_power(d), next_power(v.shape[3]), _TOKENS, _HIDDEN, EPSILON,
            num_warps=4,
        )  # fmt: skip
    return out
