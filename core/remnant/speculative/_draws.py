"""Drawing a token, and what is left of a distribution once a token was rejected. Pure tensors.

Uniforms lie in `[0, 1)`; a draw by inverse CDF takes the first token whose cumulative mass exceeds its uniform, so that
a token without mass is never drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from remnant.speculative._checks import Mode, wide

__all__ = ["draw", "normalised", "reject", "residual", "residual_det", "uniforms"]


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What is left of the target's distribution after a token drawn from `q` was rejected.

    Args:
        p: `[..., V]`, the target's probabilities.
        q: `[..., V]`, the drafter's.

    Returns:
        `max(p - q, 0)` normalised, `[..., V]` float32 or float64; `p` where nothing is left, which only rounding
        can reach.

    Source: Leviathan et al. 2023, arXiv 2211.17192, algorithm 1.
    Example: residual(torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])) -> [0., 1.]
    """
    p, q = wide(p), wide(q)
    return normalised((p - q).clamp(min=0), p)


def residual_det(p: Tensor, token: Tensor) -> Tensor:
    """What is left after a token that was not drawn, but named, was rejected.

    Args:
        p: `[..., V]`, the target's probabilities.
        token: `[...]` int64.

    Returns:
        `p` without the token, normalised; `p` itself where the token held all the mass.
    """
    p = wide(p)
    return normalised(p.scatter(-1, token.unsqueeze(-1), 0.0), p)


def reject(p: Tensor, token: Tensor, q: Tensor | None, mode: Mode) -> tuple[Tensor, Tensor | None]:
    """The distributions of the target and of the drafter for the next child, after one child was rejected.

    Args:
        p: `[..., V]`, what was left of the target's distribution before the child.
        token: `[...]` int64, the rejected child.
        q: `[..., V]`, what the child was drawn from; None for "det".
        mode: see `accept_tree`.
    """
    if mode == "det" or q is None:
        return residual_det(p, token), None
    left = residual(p, q)
    return left, residual_det(q, token) if mode == "without_replacement" else q


def draw(p: Tensor, u: Tensor) -> Tensor:
    """Draw one token per row by inverse CDF.

    Args:
        p: `[..., V]`, weights that need not sum to 1.
        u: `[...]` uniforms in `[0, 1)`.

    Returns:
        `[...]` int64, never a token without mass.
    """
    # A float32 sum over a large vocabulary is too coarse to find rare tokens by.
    cdf = p.cumsum(-1, dtype=p.dtype if p.device.type == "mps" else torch.float64)
    at = torch.searchsorted(cdf, (u.to(cdf.dtype) * cdf[..., -1]).unsqueeze(-1), right=True)
    at = at.clamp(max=p.shape[-1] - 1)
    # At the upper end rounding, and on devices a parallel sum, may point at a token beside the mass.
    return torch.where(p.gather(-1, at) > 0, at, p.argmax(-1, keepdim=True)).squeeze(-1)


def uniforms(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniforms in `[0, 1)` for a tensor's device, drawn where the generator lives."""
    device = like.device if generator is None else generator.device
    kind = torch.float32 if device.type == "mps" else torch.float64
    return torch.rand(shape, generator=generator, device=device, dtype=kind).to(like.device)


def normalised(rest: Tensor, fallback: Tensor) -> Tensor:
    """`rest` `[..., V]` divided by its mass; the fallback where it has none."""
    mass = rest.sum(-1, keepdim=True)
    none = mass <= 0
    return torch.addcmul(rest / (mass + none), fallback, none.to(rest.dtype))
