"""ExpectedAttention: score keys by the attention that future queries are expected to pay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from remnant.errors import ShapeError
from remnant.kv.policy import Need, Policy, Trigger, check, register_policy
from remnant.kv.positions import unrotate
from remnant.kv.select import KEPT, PADDING, first_positions
from remnant.kv.view import KVView, Rope


def average_rotation(rope: Rope, start: int, count: int, size: int, device: torch.device) -> Tensor:
    """`[size, size]` float32 mean of the rotation matrices of positions `start .. start + count - 1`."""
    freq = rope.inv_freq.to(device).float()
    angle = torch.arange(start, start + count, device=device).float().unsqueeze(-1) * freq
    cos, sin = angle.cos().mean(0), angle.sin().mean(0)
    half = freq.shape[-1]
    out = torch.eye(size, device=device)
    a = torch.arange(half, device=device)
    out[a, a] = out[a + half, a + half] = cos
    out[a + half, a] = sin
    out[a, a + half] = -sin
    return out


@register_policy("expected")
@dataclass(frozen=True)
class ExpectedAttention(Policy):
    """Future queries are taken for Gaussian, with the mean and covariance of the queries seen, turned ahead.

    The expected weight of a key is then `exp(mean.k + k'Ck / 2)`, normalised, times the length of its value.

    Args:
        future: positions ahead over which the rotation is averaged.
        covariance: use the second term; without it only the mean query counts.
        vnorm: weigh by the norm of the value.
        epsilon: added to the expected attention before it is weighed by the value.
        sinks: first tokens that are always kept; their queries and keys take no part in the statistics.
        recent: newest tokens that are always kept.

    Source: Devoto et al. 2025, arXiv 2510.00636, as in kvpress. Differs: queries come from the attention instead of a
    second projection, padding takes no part, and sinks are protected outright rather than by the batch's best score.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"all_queries", "rope"})
    source: ClassVar[str] = "Devoto et al. 2025, arXiv 2510.00636"
    claim: ClassVar[str] = "keeps what future queries are likely to read"
    protects: ClassVar[str] = "first tokens"

    sinks: int = 4
    future: int = 512
    covariance: bool = True
    vnorm: bool = True
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        """Validate options."""
        super().__post_init__()
        check(self, "future", 1 <= self.future <= 2**20, "an integer from 1 to 1048576")
        check(self, "epsilon", self.epsilon >= 0, "a number of at least 0")

    @property
    def when(self) -> tuple[Trigger, ...]:
        """At the end of a prompt, and after every block where the prompt comes in blocks."""
        return (Trigger("prefill_end"), Trigger("block"))

    def statistics(self, view: KVView) -> tuple[Tensor, Tensor | None]:
        """Mean `[B, G*H, D]` and covariance `[B, G*H, D, D]` of the queries, turned to the average future position."""
        if view.queries is None or view.rope is None:
            raise ShapeError("the view shows no queries or no rope", accepted="a host that supplies both")
        q, (w, d) = view.queries.float(), view.queries.shape[2:]
        at = torch.arange(view.seen - w, view.seen, device=q.device)
        # Rows of a padded batch start later: what stands before the first token, and the sinks, do not count.
        counted = (at >= first_positions(view)[:, 0] + self.sinks).view(-1, 1, w, 1)
        if view.real_queries is not None:
            counted = counted & view.real_queries[:, -w:].view(-1, 1, w, 1)
        n = counted.sum(2).clamp(min=1)
        q = unrotate(q, at, view.rope)
        mean = (q * counted).sum(2) / n
        turn = average_rotation(view.rope, view.seen, self.future, d, q.device)
        if not self.covariance:
            return mean @ turn.T, None
        q = (q - mean.unsqueeze(2)) * counted
        return mean @ turn.T, turn @ (q.transpose(2, 3) @ q / n.unsqueeze(-1)) @ turn.T

    def score(self, view: KVView) -> Tensor:
        """Expected attention over the keys behind the sinks, averaged over the group, times the value's norm."""
        mean, spread = self.statistics(view)
        b, h, s = view.shape
        k = view.k.float()
        hidden = view.positions < first_positions(view) + self.sinks
        if view.valid is not None:
            hidden = hidden | ~view.valid
        total = torch.zeros(b, h, s, device=k.device)
        group = mean.shape[1] // h
        for g in range(group):  # one query head of every group at a time, so that memory stays at [B, H, S, D]
            x = (k @ mean[:, g::group].unsqueeze(-1)).squeeze(-1) * view.scale
            if spread is not None:
                x = x + ((k @ spread[:, g::group]) * k).sum(-1) * (view.scale**2 / 2)
            total = total + torch.nan_to_num(x.masked_fill(hidden, PADDING).softmax(-1))
        score = total / group + self.epsilon
        if self.vnorm:
            score = score * view.v.float().square().sum(-1).sqrt()
        return score.masked_fill(hidden, KEPT)
