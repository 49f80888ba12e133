"""ThinK: drop key channels that the queries do not read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from remnant.errors import ShapeError
from remnant.kv.merge import take
from remnant.kv.policies.snapkv import SnapKV
from remnant.kv.policy import Layout, Need, Phase, Policy, Trigger, check, register_policy
from remnant.kv.select import top_mask
from remnant.kv.view import Keep, KVView


@register_policy("think")
@dataclass(frozen=True)
class ThinK(Policy):
    """Query-driven channel pruning of the old keys, after an eviction of tokens. Values stay whole.

    Args:
        ratio: fraction of the D key channels dropped, rounded down to a whole number of channels (of pairs).
        recent: newest kept tokens whose keys stay whole; decoded tokens are appended whole too.
        window: newest queries that judge the channels (and the tokens, with `evictor`).
        evictor: `snapkv` evicts tokens down to the budget first; `none` keeps every token and ignores the budget.
        pairs: judge the two channels i and i + D/2 that RoPE turns together as one, so that the choice does not depend
            on the position of the keys. For models that rotate all D channels.
        sinks: first tokens that are always kept.

    A prompt that fits the budget, or `recent`, stays whole. The channels of a sequence are chosen once; a later prompt
    of the same sequence uses the same ones, so that old keys have one layout.

    Source: Xu et al. 2024, arXiv 2407.21018. Differs: one choice per KV head from the mean query energy of its group
    (the original repeats keys to query heads), per row of a batch, padding excluded, optional pairs.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"queries"})
    layout: ClassVar[Layout] = "channels"
    source: ClassVar[str] = "Xu et al. 2024, arXiv 2407.21018"
    claim: ClassVar[str] = "more tokens in the same bytes: key channels that queries do not read go"
    protects: ClassVar[str] = "last window"

    ratio: float = 0.4
    recent: int = 32
    window: int = 32  # pyright: ignore[reportIncompatibleMethodOverride]
    evictor: Literal["snapkv", "none"] = "snapkv"
    pairs: bool = False

    def __post_init__(self) -> None:
        """Validate options."""
        super().__post_init__()
        check(self, "ratio", 0 <= self.ratio < 1, "a fraction of at least 0 and below 1")
        check(self, "window", self.window >= 1, "an integer of at least 1")
        check(self, "evictor", self.evictor in ("snapkv", "none"), "snapkv, none")

    @property
    def when(self) -> tuple[Trigger, ...]:
        """At the end of a prompt."""
        return (Trigger("prefill_end"),)

    @property
    def minimum(self) -> int:
        """That of the evictor; 1 without one."""
        return self._snapkv.minimum if self.evictor == "snapkv" else 1

    @property
    def _snapkv(self) -> SnapKV:
        return SnapKV(window=self.window, sinks=self.sinks)

    def due(self, phase: Phase, step: int, stored: int, budget: int) -> bool:
        """Without an evictor, at the end of every prompt that is longer than `recent`."""
        if self.evictor == "none":
            return phase == "prefill" and stored > self.recent
        return super().due(phase, step, stored, budget)

    def score(self, view: KVView) -> Tensor:
        """The evictor's score of the slots; without one, newer is better."""
        return self._snapkv.score(view) if self.evictor == "snapkv" else view.positions.float()

    def energy(self, view: KVView, old: Tensor) -> Tensor:
        """Squared norm of every channel's share of the logits: mean of q^2 times mean of k^2.

        Args:
            view: with the queries of the window.
            old: `[B, H, N]` int64 slots whose keys are to be pruned.

        Returns:
            `[B, H, D]` float32.
        """
        if view.queries is None:
            raise ShapeError(
                "the view shows no queries", accepted="a host that supplies what the policy's `needs` name"
            )
        b, h, _ = view.shape
        width = view.queries.shape[2]
        begin = view.state.get("start")
        if begin is None:
            first = view.positions if view.valid is None else view.positions.where(view.valid, view.seen)
            begin = first.flatten(1).amin(-1)
        q_pos = torch.arange(width, device=view.k.device) + (view.seen - width)
        real = q_pos >= begin.view(-1, 1)
        if view.real_queries is not None:
            real = real & view.real_queries[:, -width:]
        real = real.view(b, 1, 1, width, 1)
        q = view.queries.reshape(b, h, -1, width, view.k.shape[-1]).float().masked_fill(~real, 0.0)
        q_energy = q.square().mean(2).sum(2) / real.sum(3).clamp(min=1).view(b, 1, 1)
        k = take(view.k, old).float()
        if view.valid is None:
            return q_energy * k.square().mean(2)
        real = view.valid.gather(-1, old).unsqueeze(-1)
        return q_energy * k.masked_fill(~real, 0.0).square().sum(2) / real.sum(2).clamp(min=1)

    def channels(self, energy: Tensor) -> Tensor:
        """`[B, H, D]` bool, the channels that stay, from their energy; of equal ones the higher channel stays."""
        d = energy.shape[-1]
        dropped = int(d * self.ratio + 1e-9)  # 0.29 of 100 is 29, though the product is 28.999...
        if self.pairs:
            if d % 2:
                raise ShapeError(f"{d} key channels", accepted="an even number, with pairs=True")
            energy, dropped = energy[..., : d // 2] + energy[..., d // 2 :], dropped // 2
        order = torch.arange(energy.shape[-1], device=energy.device).expand_as(energy)
        kept = top_mask(energy, energy.shape[-1] - dropped, order)
        return torch.cat([kept, kept], -1) if self.pairs else kept

    def plan(self, view: KVView, tokens: int) -> Keep:
        """Evict tokens, then choose channels on the keys that stay and are not recent."""
        if self.evictor == "snapkv":
            if tokens >= view.shape[2]:
                return Keep.everything(view)
            keep = self._snapkv.plan(view, tokens)
        else:
            keep = Keep.everything(view)
        old = keep.indices.shape[-1] - self.recent
        if old <= 0 or int(view.k.shape[-1] * self.ratio + 1e-9) == 0:
            return keep
        channels = self.channels(self.energy(view, keep.indices[..., :old]))
        known = view.state.get("channels")
        if known is not None:
            channels = torch.where(known.any(-1, keepdim=True), known, channels)
        return replace(keep, channels=channels, recent=self.recent, state={"channels": channels})
