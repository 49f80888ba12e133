"""Random: keep a uniform sample of all tokens. A control that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from remnant.kv.policy import Policy, Trigger, check, register_policy
from remnant.kv.select import first_positions
from remnant.kv.view import KVView

_WORD = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """Scatter 32-bit words held in int64; products stay below 2**59."""
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & _WORD
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & _WORD
    return x ^ (x >> 16)


@register_policy("random")
@dataclass(frozen=True)
class Random(Policy):
    """Every token draws one fixed lot; the highest lots stay, which is a uniform sample at any moment.

    The lot is a hash of (seed, layer, head, distance from the row's first token). So a sequence keeps the same tokens
    alone and in a padded batch, after a restart, and however its prompt was cut into blocks.

    Args:
        seed: names the sample, 0 to 2**32 - 1.
        sinks: first tokens that are always kept.
        recent: newest tokens that are always kept.

    Source: none needed. Differs: kvpress draws anew at every compression, so its sample depends on when it compresses.
    """

    source: ClassVar[str] = "baseline"
    claim: ClassVar[str] = "a control: what any method must beat"

    seed: int = 0

    def __post_init__(self) -> None:
        """Validate options."""
        super().__post_init__()
        check(self, "seed", 0 <= self.seed <= _WORD, "an integer from 0 to 2**32 - 1")

    @property
    def when(self) -> tuple[Trigger, ...]:
        """After every block, at the end of a prompt and at every decoded token."""
        return (Trigger("prefill_end"), Trigger("block"), Trigger("step"))

    def score(self, view: KVView) -> Tensor:
        """24 bits of the lot, in [0, 1)."""
        device = view.positions.device
        lot = _mix(torch.tensor(self.seed, device=device))
        lot = _mix((lot + view.layer) & _WORD)
        lot = _mix((lot + torch.arange(view.shape[1], device=device)) & _WORD).view(1, -1, 1)
        lot = _mix((lot + view.positions - first_positions(view)) & _WORD)
        return (lot >> 8).float() / 2**24
