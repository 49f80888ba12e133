"""TRIM-KV: a learned gate says, when a token is written, how long it will matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from remnant.errors import ConfigError, ShapeError
from remnant.kv.gates import Gates
from remnant.kv.policy import Layout, Policy, Side, Trigger, check, register_policy
from remnant.kv.select import KEPT, PADDING, protect, select_flat, top_mask
from remnant.kv.view import Keep, KVView

_TESTBED = Path(__file__).parents[2] / "testbed" / "gates.safetensors"
_SIDE = "log_beta"
_EPS = 1e-24


@lru_cache(maxsize=8)
def _load(path: str, changed: int) -> Gates:
    return Gates.load(path)


def _resolve(gates: str | Gates | None) -> Gates | None:
    """The gates that an option names; None for `uniform`."""
    if isinstance(gates, Gates) or gates == "uniform":
        return None if isinstance(gates, str) else gates
    do = "train them: remnant train-gates MODEL --out FILE, then gates=FILE"
    if gates is None:
        raise ConfigError("trimkv has no gates", accepted="a file, 'testbed', 'uniform' or a Gates object", do=do)
    path = _TESTBED if gates == "testbed" else Path(gates).expanduser()
    if not path.is_file():
        raise ConfigError(f"gates file {str(path)!r} does not exist", do=do)
    return _load(str(path), path.stat().st_mtime_ns)


@register_policy("trimkv")
@dataclass(frozen=True)
class TrimKV(Policy):
    """Keep the tokens whose learned retention, decayed by age, is highest; no attention is read.

    Args:
        gates: a file written by `remnant train-gates`, a `Gates` object, `testbed` for the gates shipped with the
            testbed, or `uniform`: one beta for every token, which is a sliding window and needs no training. Left out,
            the policy can be described but refuses the first token.
        buffer: tokens per head stored above the budget before the next compaction. With a few only, set `recent` too:
            a new token may fade fast and yet be what the next one reads (recall at 10 % with buffer 1: 0.79, with 4
            recent ones 0.98).
        share: `layer` lets the heads of a layer compete for `H * budget` slots; `head` gives each its own budget. Use
            the one that the gates were trained for.
        floor: with `layer`, the fraction of its own budget that every head gets in any case, from 0 to 1.
        with_norm: add the log of the key's norm to the score.
        sinks: first tokens that are always kept.
        recent: newest tokens that are always kept.

    Source: TRIM-KV, scores `(t - i) log beta_i` with `t = seen + 1`, strategies alpha and knorm_alpha, budgets per
    head, flat over a layer, or with a floor. Differs: the floor counts per head (the original credits a boundary slot
    to the head before), ties go to the later position, and a buffer is full at `budget + buffer` per head
    in all variants.
    """

    layout: ClassVar[Layout] = "ragged"
    source: ClassVar[str] = "TRIM-KV (Bui et al. 2025), rg2 gates"
    claim: ClassVar[str] = "keeps what training found worth keeping, before any question is seen"
    sides: ClassVar[tuple[Side, ...]] = (Side(_SIDE, torch.float32, -1.0),)

    gates: str | Gates | None = None
    buffer: int = 16
    share: Literal["layer", "head"] = "layer"
    floor: float = 0.0
    with_norm: bool = False

    def __post_init__(self) -> None:
        """Validate options; gates are looked up when the first token arrives."""
        super().__post_init__()
        given = self.gates is None or isinstance(self.gates, str | Gates)  # pyright: ignore[reportUnnecessaryIsInstance]
        check(self, "gates", given and self.gates != "", "a file, 'testbed', 'uniform' or a Gates object")
        check(self, "buffer", self.buffer >= 0, "an integer of at least 0")
        check(self, "share", self.share in ("layer", "head"), "layer, head")
        check(self, "floor", 0 <= self.floor <= 1, "a fraction between 0 and 1")

    @property
    def when(self) -> tuple[Trigger, ...]:
        """After the prompt, after every block of a blocked prefill, and whenever the buffer is full."""
        return Trigger("prefill_end"), Trigger("block"), Trigger("overflow", self.buffer)

    @property
    def even(self) -> bool:
        """With budgets per head."""
        return self.share == "head"

    @property
    def in_place(self) -> bool:
        """With budgets per head a compaction only drops slots."""
        return self.share == "head"

    def append(self, view: KVView) -> Mapping[str, Tensor]:
        """Log beta of the new tokens.

        Raises:
            ConfigError: no gates were given, or they were trained for a model of another shape.
        """
        gates = _resolve(self.gates)
        b, h, s = view.shape
        if gates is None:
            return {_SIDE: torch.full((b, h, s), -1.0, device=view.k.device)}
        gates.check(view.layers, h, view.k.shape[-1], view.v.shape[-1])
        return {_SIDE: gates.log_beta(view.layer, view.k, view.v)}

    def score(self, view: KVView) -> Tensor:
        """Log of what the gate lets survive until the next token."""
        if _SIDE not in view.side:
            raise ShapeError(f"the view has no side state {_SIDE!r}", accepted="a host that calls append()")
        scores = (view.seen + 1 - view.positions).float() * view.side[_SIDE].float()
        if self.with_norm:
            scores = scores + view.k.float().square().sum(-1).clamp(min=_EPS).log() / 2
        return scores

    def plan(self, view: KVView, tokens: int) -> Keep:
        """Per head, or flat over the heads of the layer."""
        if self.share == "head":
            return super().plan(view, tokens)
        _, h, s = view.shape
        scores = protect(self.score(view), view, self.sinks, self.recent)
        total: Tensor | int = h * tokens
        if view.valid is not None:
            # A slot that holds nothing takes no share from the heads that have something to keep.
            total = view.valid.flatten(1).sum(-1).clamp(max=total)
        elif tokens >= s:
            return Keep.everything(view)
        own = min(s, int(Fraction(str(self.floor)) * tokens))
        if own:
            first = top_mask(scores, own, view.positions) & (scores > PADDING)
            scores = scores.masked_fill(first, KEPT)
        return select_flat(scores, total, view)
