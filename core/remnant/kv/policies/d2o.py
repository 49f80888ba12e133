"""D2O: budgets by how dense a layer attends, and evicted tokens folded into the kept ones they resemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from remnant.kv.merge import Weights, evicted, make_merge, nearest
from remnant.kv.policy import Need, Policy, Side, Trigger, check, register_policy
from remnant.kv.score import Reduce, group_columns
from remnant.kv.select import protect, select
from remnant.kv.view import Keep, KVView

UNBOUNDED = 2**31 - 1
"""Budget of a layer that the compat option `skip` leaves uncompressed, in tokens."""


def apportion(shares: Sequence[float], low: int, high: int, total: int) -> list[int]:
    """Integers between two bounds, as proportional to the shares as the bounds allow, with exactly the given sum.

    Args:
        shares: positive weights, one per layer.
        low: least per layer, in tokens; lowered to `total // n` when n of them would not fit.
        high: most per layer, in tokens.
        total: tokens; what exceeds `n * high` is not given out.
    """
    n = len(shares)
    low, total = min(low, total // n, high), min(total, n * high)

    def clipped(factor: float) -> list[float]:
        return [min(max(factor * share, low), high) for share in shares]

    below, above = 0.0, high / max(min(shares), 1e-9)
    for _ in range(200):
        middle = (below + above) / 2
        below, above = (middle, above) if sum(clipped(middle)) <= total else (below, middle)
    exact = clipped(below)
    out = [int(x) for x in exact]
    order = sorted(range(n), key=lambda i: (out[i] - exact[i], i))
    while sum(out) < total:
        for i in order:
            if sum(out) < total and out[i] < high:
                out[i] += 1
    return out


@register_policy("d2o")
@dataclass(frozen=True)
class D2O(Policy):
    """Accumulated attention decides who goes; who goes is folded into the nearest kept key's value.

    A budget of M tokens keeps `sinks` first tokens, the newest `recent_share * M`, and the rest by accumulated
    attention. An evicted token is compared with every kept key; when its largest cosine similarity m reaches the head's
    threshold tau, its value is folded into that token's with convex weights, otherwise it is dropped for good.

    Args:
        recent_share: fraction of the budget for the newest tokens, 0..1.
        allocation: tokens per layer. `variance` is softmax(-F) with F the variance over slots of accumulated attention,
            mean over heads, z-scored across layers; `code` is the original's, where the variance is min-max normalised
            over the heads of a layer first, which leaves the layers almost equal; `uniform`, the default, gives every
            layer the same: budgets by variance cost perplexity on the testbed, and make a row depend on its batch.
        alpha: share of the old threshold in the new one.
        beta: share of the newly evicted tokens' mean similarity in the new threshold.
        weights: `paper`, own = e / (e + sum exp(m)) and exp(m) / (e + sum exp(m)) for each that arrives; or `code`, the
            plain mean of the kept value and `m` times the others, which shrinks values.
        merge_keys: fold keys too, as the original does, with rotations undone by the host.
        skip: compat. Layers that are never compressed, `(0, 1, -1)` in the original. THEIR CACHE IS UNBOUNDED and the
            budget of the model is exceeded; the default holds it.
        sinks: first tokens that are always kept.

    Source: Wan et al. 2024, arXiv 2406.13035. Differs: threshold, similarity and merge are per KV head and row (the
    original averages m over heads whose e-th evicted tokens differ), budgets keep their sum, a layer whose budget is
    its whole prompt stays bounded while decoding, keys are not merged by default, since they are rotated.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"all_queries", "attn", "layers"})
    attn_reduce: ClassVar[Reduce] = "mean"
    sides: ClassVar[tuple[Side, ...]] = (Side("mass", torch.float32),)
    source: ClassVar[str] = "Wan et al. 2024, arXiv 2406.13035"
    claim: ClassVar[str] = "evicted values live on in the kept tokens they resemble"
    protects: ClassVar[str] = "4 sinks, newest half of the budget"

    sinks: int = 4
    recent_share: float = 0.5
    allocation: Literal["variance", "code", "uniform"] = "uniform"
    alpha: float = 0.5
    beta: float = 0.5
    weights: Weights = "paper"
    merge_keys: bool = False
    skip: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Validate options."""
        super().__post_init__()
        check(self, "recent_share", 0 <= self.recent_share <= 1, "a fraction, 0..1")
        check(self, "allocation", self.allocation in ("variance", "code", "uniform"), "variance, code, uniform")
        for option in ("alpha", "beta"):
            check(self, option, 0 <= getattr(self, option) <= 1, "a fraction, 0..1")
        check(self, "weights", self.weights in ("paper", "code"), "paper, code")

    @property
    def when(self) -> tuple[Trigger, ...]:
        """At the end of a prompt and at every decoded token."""
        return (Trigger("prefill_end"), Trigger("step"))

    def observe(self, view: KVView) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Add what every slot just received to its accumulated attention, mean over the group."""
        if view.queries is not None:
            return {"mass": view.side["mass"] + group_columns(view, "mean")}, {}
        return ({}, {}) if view.attn is None else ({"mass": view.side["mass"] + view.attn.float()}, {})

    def layer_stat(self, view: KVView) -> Tensor:
        """`[B]` F of a layer: unbiased variance over real slots of accumulated attention, mean over heads."""
        mass = view.side["mass"]
        real = torch.ones_like(mass) if view.valid is None else view.valid.float()
        n = real.sum(-1)
        centred = (mass - ((mass * real).sum(-1) / n.clamp(min=1)).unsqueeze(-1)) * real
        var = centred.square().sum(-1) / (n - 1).clamp(min=1)
        if self.allocation == "code":
            low, high = var.amin(-1, keepdim=True), var.amax(-1, keepdim=True)
            var = (var - low) / (high - low + 1e-6)
        return var.mean(-1)

    def layer_budgets(self, stats: Tensor, stored: int, tokens: int) -> list[int]:
        """Tokens per head of every layer; they sum to `L * tokens`, and none is above `stored`."""
        n = stats.shape[0]
        if stored <= tokens or self.allocation == "uniform":
            out = [tokens] * n
        else:
            f = stats.double()
            if self.allocation == "variance":
                spread = f.std(0, unbiased=False, keepdim=True)
                f = (f - f.mean(0, keepdim=True)) / (spread + 1e-12)
            shares = [float(x) for x in (-f).softmax(0).mean(1)]
            out = apportion(shares, self.minimum, stored, n * tokens)
        for layer in self.skip:
            if -n <= layer < n:
                out[layer] = UNBOUNDED
        return out

    def score(self, view: KVView) -> Tensor:
        """Accumulated attention."""
        return view.side["mass"]

    def plan(self, view: KVView, tokens: int) -> Keep:
        """Evict by accumulated attention, then fold what is near enough."""
        if tokens >= view.shape[2]:
            return Keep.everything(view)
        recent = max(self.recent, min(int(tokens * self.recent_share + 1e-9), tokens - self.sinks))
        keep = select(protect(self.score(view), view, self.sinks, recent), tokens, view)
        src = evicted(keep, view)
        if src.shape[-1] == 0:
            return keep
        m, dst = nearest(view.k, src, keep.indices, view.valid)
        tau = self.threshold(m, view.state.get("tau"))
        chosen = (m >= tau.unsqueeze(-1)) & (m > float("-inf"))
        merge = make_merge(src, dst, m, chosen, keep.indices.shape[-1], self.weights, self.merge_keys)
        return Keep(keep.indices, keep.lengths, merge=merge, state={"tau": tau})

    def threshold(self, similarity: Tensor, old: Tensor | None) -> Tensor:
        """`[B, H]` tau from the similarities `[B, H, E]` of what goes; NaN until a head has evicted something."""
        there = similarity > float("-inf")
        mean = similarity.masked_fill(~there, 0.0).sum(-1) / there.sum(-1)  # NaN where nothing goes
        if old is None:
            return mean
        new = torch.where(old.isnan(), mean, self.alpha * old + self.beta * mean)
        return torch.where(mean.isnan(), old, new)
