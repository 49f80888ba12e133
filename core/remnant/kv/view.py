"""What a policy sees and what it answers: plain frozen data, so that one policy file serves every host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from remnant.errors import ConfigError, ShapeError

__all__ = ["Budget", "KVView", "Keep", "Merge", "Rope"]


def _empty() -> dict[str, Tensor]:
    return {}  # torch.compile cannot trace a call of dict[str, Tensor]


@dataclass(frozen=True)
class Rope:
    """How a layer's keys were rotated; enough to undo it or to rotate further.

    Attributes:
        inv_freq: `[D_rot / 2]` float32, radians per position.
        scale: factor on cos and sin (attention temperature of yarn-like variants), 1.0 for plain RoPE.
    """

    inv_freq: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class KVView:
    """One layer's stored keys and values at the moment of a decision. Nothing here may be written to.

    Attributes:
        k: `[B, H, S, D]` keys after RoPE, in slot order. H counts KV heads.
        v: `[B, H, S, Dv]` values.
        positions: `[B, H, S]` int64, true token position of each slot; ascending unless `ordered` is False.
        seen: tokens seen by this layer, so the newest position is `seen - 1`.
        layer: index of this layer among the layers that the policy governs, from 0.
        layers: number of such layers.
        valid: `[B, H, S]` bool, False where a slot holds padding or nothing; None when all are valid.
        queries: `[B, G*H, W, D]` queries after RoPE of the W newest tokens, when the policy needs `queries`
            (W = its window) or `all_queries` (W = every token of the forward pass).
        attn: `[B, H, S]` float32, attention probability of the newest query, reduced over the G query heads of each
            KV head as the policy's `attn_reduce` says.
        side: per-slot tensors `[B, H, S, ...]` that the policy registered, permuted together with the keys.
        state: per-sequence tensors `[B, ...]` that the policy registered; reset with the cache, never shared.
        step: decode steps since the last multi-token pass, 1-based; 0 during prefill.
        scaling: factor on q.k; None means `D ** -0.5`.
        softcap: logits are `softcap * tanh(logits / softcap)` when given.
        sinks: `[G*H]` float32 extra logit per query head that takes part in the softmax only (gpt-oss), or None.
        rope: how the keys were rotated, when the policy needs `rope`.
        tokens: `[B, S]` int64 token ids by slot, when the policy needs `tokens`.
        ordered: slots are in chronological order.
        real_queries: `[B, W]` bool, False where a query belongs to padding; None when only those before
            `state["start"]` do. Real ones come last.
    """

    k: Tensor
    v: Tensor
    positions: Tensor
    seen: int
    layer: int = 0
    layers: int = 1
    valid: Tensor | None = None
    queries: Tensor | None = None
    attn: Tensor | None = None
    side: Mapping[str, Tensor] = field(default_factory=_empty)
    state: Mapping[str, Tensor] = field(default_factory=_empty)
    step: int = 0
    scaling: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    rope: Rope | None = None
    tokens: Tensor | None = None
    ordered: bool = True
    real_queries: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the shapes that every policy relies on."""
        if self.k.dim() != 4 or self.v.dim() != 4 or self.k.shape[:3] != self.v.shape[:3]:
            raise ShapeError(
                f"k {list(self.k.shape)} and v {list(self.v.shape)}",
                accepted="[B, H, S, D] and [B, H, S, Dv] with equal B, H, S",
            )
        if self.positions.shape != self.k.shape[:3]:
            raise ShapeError(f"positions {list(self.positions.shape)}", accepted=f"{list(self.k.shape[:3])}")
        if self.queries is not None and self.queries.shape[1] % self.k.shape[1]:
            raise ShapeError(
                f"{self.queries.shape[1]} query heads over {self.k.shape[1]} KV heads", accepted="a whole multiple"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, H, S)."""
        b, h, s = self.k.shape[:3]
        return b, h, s

    @property
    def group(self) -> int:
        """G, query heads per KV head; 1 when no queries are shown."""
        return 1 if self.queries is None else self.queries.shape[1] // self.k.shape[1]

    @property
    def scale(self) -> float:
        """The factor on q.k that the layer itself uses."""
        return self.k.shape[-1] ** -0.5 if self.scaling is None else self.scaling


@dataclass(frozen=True)
class Budget:
    """A number of tokens kept per KV head, protected ones included. Always an integer: ratios are resolved once.

    Raises:
        ConfigError: tokens is not an integer of at least 1.
    """

    tokens: int

    def __post_init__(self) -> None:
        """Refuse ratios and empty budgets."""
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int) or self.tokens < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"budget {self.tokens!r}", accepted="an integer of at least 1, in tokens per KV head")


@dataclass(frozen=True)
class Merge:
    """Evicted slots folded into kept ones: `v[dst] <- own * v[dst] + sum(weight * v[src])`.

    Attributes:
        src: `[B, H, E]` int64 slots that are dropped; -1 where a row has fewer.
        dst: `[B, H, E]` int64, place in `Keep.indices` that receives `src`.
        weight: `[B, H, E]` float32 share of the source value.
        own: `[B, H, K]` float32 share that a kept slot keeps of itself.
        keys: merge keys too. A host must un-rotate first and rotate back, or refuse.
    """

    src: Tensor
    dst: Tensor
    weight: Tensor
    own: Tensor
    keys: bool = False


@dataclass(frozen=True)
class Keep:
    """A plan: which slots stay. Data only, so it can be logged, replayed and carried out by any host.

    Attributes:
        indices: `[B, H, K]` int64 slots, ascending by position; -1 behind a ragged row's end.
        lengths: `[B, H]` int64 slots kept per head when they differ, else None.
        merge: what to fold into kept slots, or None.
        channels: `[B, H, D]` bool, key channels that stay in all but the newest `recent` slots, or None.
        recent: with `channels`, newest slots whose keys stay whole.
        side: side-state tensors to store instead of the gathered ones, already `[B, H, K, ...]`.
        state: per-sequence state to store.
    """

    indices: Tensor
    lengths: Tensor | None = None
    merge: Merge | None = None
    channels: Tensor | None = None
    recent: int = 0
    side: Mapping[str, Tensor] = field(default_factory=_empty)
    state: Mapping[str, Tensor] = field(default_factory=_empty)

    @property
    def ragged(self) -> bool:
        """Whether heads keep different numbers of slots."""
        return self.lengths is not None

    def describe(self) -> dict[str, Any]:
        """Plain data for logs: shape, counts, and what else the plan asks for."""
        lengths: list[list[int]] | int = self.indices.shape[-1]
        if self.lengths is not None:
            lengths = [[int(n) for n in row] for row in self.lengths]
        return {"kept": lengths, "merge": self.merge is not None, "channels": self.channels is not None}

    @staticmethod
    def everything(view: KVView) -> Keep:
        """The plan that evicts nothing."""
        b, h, s = view.shape
        return Keep(torch.arange(s, device=view.k.device).expand(b, h, s))
