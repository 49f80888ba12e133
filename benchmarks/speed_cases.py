"""Inputs and targets of the speed benchmark, as data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

__all__ = ["FULL", "KVPRESS", "KV_HEADS", "QUICK", "Sizes", "options_of"]

KV_HEADS = "SPEED_KV_HEADS"
"""Environment variable by which the workers of a comparison learn of `--kv-heads`."""
MODEL = {
    "layers": 2,
    "heads": 8,
    "kv_heads": int(os.environ.get(KV_HEADS, "2")),
    "head_dim": 64,
    "hidden": 128,
    "vocab": 128,
}

SKIPPED = {
    "full": "keeps everything; it is what the others are compared with",
    "tim": "prunes on events of the text only, not by a budget",
}
OPTIONS: dict[str, dict[str, Any]] = {"trimkv": {"gates": "uniform"}}


def options_of(policy: str) -> dict[str, Any]:
    """Options without which a policy cannot run here."""
    return OPTIONS.get(policy, {})


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        pairs: pairs of measurements behind each ratio, at least 7.
        passthrough: contexts of the pass-through cost, in tokens.
        passthrough_steps: decoded tokens per pair there.
        prefill: prompt of the prefill comparison, in tokens.
        context: stored tokens of the full cache that decoding is compared with.
        share: the budget is `context // share`.
        steps: least decoded tokens per pair; more where a policy acts less often than that.
        kvpress: (context, budget) of the comparison with kvpress, in tokens.
        peak: (prompt, budget, block) of the memory bound, in tokens.
    """

    pairs: int
    passthrough: tuple[int, ...]
    passthrough_steps: int
    prefill: int
    context: int
    share: int
    steps: int
    kvpress: tuple[int, int]
    peak: tuple[int, int, int]


FULL = Sizes(9, (512, 4096, 16384), 16, 4096, 16384, 8, 8, (16384, 2048), (8192, 1024, 512))
QUICK = Sizes(7, (512,), 8, 1024, 2048, 8, 4, (2048, 256), (2048, 512, 256))


@dataclass(frozen=True)
class Duel:
    """One comparison with kvpress: the same method, acting equally often, on the same context with the same budget."""

    interval: int
    policy: str
    options: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        """As `knorm every 16`."""
        return f"{self.policy} every {self.interval}"


KVPRESS = (
    *(Duel(1, policy, (("slack", 0),)) for policy in ("knorm", "keydiff")),
    *(Duel(1, policy) for policy in ("tova", "streaming", "random")),
    *(Duel(n, policy, (("slack", n),)) for n in (16, 512) for policy in ("knorm", "keydiff")),
    *(Duel(n, "snapkv", (("window", 8), ("refresh", n))) for n in (1, 16, 512)),
)
"""512 is the interval that kvpress takes by default."""

TARGETS = {"passthrough": 1.02, "prefill": 1.05, "decode": 0.5, "kvpress": 1 / 3, "peak": 1.10}
"""Largest ratio that meets the target, ours over the other's."""
