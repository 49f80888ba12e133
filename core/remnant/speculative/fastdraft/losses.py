"""What a drafter is trained on: the next token, or the target's whole distribution, in full or its top alone.

Distributions are probabilities whose last dimension sums to 1. Every loss is a mean over positions, in nats or, for
`tvd`, as a fraction of 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from remnant.errors import ConfigError, ShapeError, unknown

__all__ = ["LOSSES", "buckets", "distillation_loss", "kl", "mask_padding", "tvd"]

LOSSES = ("ce", "kl", "tvd", "ce+kl", "ce+tvd")
"""By name: cross-entropy, a divergence from the target, or half of each."""


def mask_padding(logits: Tensor, real: int) -> Tensor:
    """Give the ids that no tokenizer makes (vocabularies are padded to round sizes) no probability.

    Args:
        logits: `[..., V]`.
        real: ids below it exist.
    """
    if real >= logits.shape[-1]:
        return logits
    return torch.cat([logits[..., :real], torch.full_like(logits[..., real:], float("-inf"))], -1)


def buckets(p: Tensor, ids: Tensor) -> Tensor:
    """Keep s tokens of a distribution and pour the others into one bucket, so that it still sums to 1.

    Args:
        p: `[N, V]`.
        ids: `[N, s]` int64, distinct per row.

    Returns:
        `[N, s + 1]`, the rest last and never below the smallest normal number: its logarithm stays finite.

    Raises:
        ShapeError: the rows do not match.
    """
    if p.dim() != 2 or ids.dim() != 2 or p.shape[0] != ids.shape[0]:
        raise ShapeError(f"p {tuple(p.shape)}, ids {tuple(ids.shape)}", accepted="[N, V] and [N, s]")
    top = p.gather(-1, ids)
    rest = (1 - top.sum(-1, keepdim=True)).clamp(min=torch.finfo(p.dtype).tiny)
    return torch.cat([top, rest], -1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) `[N]` in nats: what the drafter q lacks of the target p. Where p is 0, nothing is asked of q.

    Args:
        p: `[N, V]`, the target; no gradient is needed.
        q: `[N, V]`, the drafter.
    """
    tiny = torch.finfo(q.dtype).tiny
    return (torch.xlogy(p, p) - p * q.clamp(min=tiny).log()).sum(-1)


def tvd(p: Tensor, q: Tensor) -> Tensor:
    """Total variation `[N]` between target and drafter: the probability that a drafted token is rejected.

    Args:
        p: `[N, V]`, the target.
        q: `[N, V]`, the drafter.

    Source: Leviathan et al. 2023, arXiv 2211.17192, section 3.2: acceptance is `sum min(p, q) = 1 - tvd`.
        Written as `1 - sum min(p, q)`, equal to `sum |p - q| / 2` when both sum to 1, and so is its gradient in logits.
    """
    return 1 - torch.minimum(p, q).sum(-1)


_DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": kl, "tvd": tvd}


def distillation_loss(
    name: str,
    logits: Tensor,
    labels: Tensor,
    target_logits: Tensor | None = None,
    top: int = 0,
    real: int | None = None,
) -> Tensor:
    """The loss of a drafter at N positions.

    Args:
        name: one of `LOSSES`.
        logits: `[N, V]` of the drafter, unmasked: mass that it gives to padding counts as lost, so that it also learns
            to avoid padding where a host does not mask it.
        labels: `[N]` int64, the tokens that follow.
        target_logits: `[N, V]` of the target, for all losses but `ce`; padding is masked here.
        top: tokens of the target that count one by one, all others together; 0 is all of them.
        real: number of ids that exist; None is V.

    Returns:
        A scalar.

    Raises:
        ConfigError: the name is unknown, or the target's logits are missing.

    Source: FastDraft (Zafrir et al. 2024, arXiv 2411.11055): CE, KL, TVD and their halves, on sparse targets.
        Differs: sparse targets have a bucket for the rest, without which KL is not a divergence.
    """
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    ce = F.cross_entropy(logits.float(), labels)
    if name == "ce":
        return ce
    if target_logits is None:
        raise ConfigError(f"loss {name!r} without the target's logits", do="give target_logits")
    p = mask_padding(target_logits.float(), real or logits.shape[-1]).softmax(-1)
    q = logits.float().softmax(-1)
    if 0 < top < p.shape[-1]:
        ids = p.topk(top, -1).indices
        p, q = buckets(p, ids), buckets(q, ids)
    divergence = _DIVERGENCES[name.removeprefix("ce+")](p, q).mean()
    return (ce + divergence) / 2 if name.startswith("ce+") else divergence
