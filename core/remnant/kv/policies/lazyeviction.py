"""LazyEviction: tokens go quiet and come back, so judge a token by how long it was ever away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from remnant.kv.policy import Need, Policy, Side, Trigger, check, register_policy
from remnant.kv.score import Reduce
from remnant.kv.view import KVView


@register_policy("lazyeviction")
@dataclass(frozen=True)
class LazyEviction(Policy):
    """Maximum recurrence interval of every slot, evicting only every `window` decoded tokens.

    The prompt is not compressed when it ends; the first decision brings the cache down to the budget.

    Args:
        window: decoded tokens between two decisions, and newest tokens that are always kept. The original takes about
            the 80th percentile of the recurrence intervals: 27 to 95 tokens for one model, 101 to 363 for another.
        activity: a slot is active when some query head of its group gives it at least `activity / n`, n being the
            number of real slots, or half of its attention. The original's thresholds are 0.67 / n and 0.15 / n at its
            own budgets; on the testbed that counts noise as activity: of premises that come back rarely, at a budget of
            10 %, 10 / n loses six in ten, 20 / n three in ten, 40 / n one in thirty.
        alpha: when given, the absolute threshold of the original in place of `activity`, a probability.
        formula: `corrected` or `paper`, see below.
        sinks: first tokens that are always kept.

    With d the tokens since a slot was last active and m the longest it was ever away, both in tokens:
    `paper` is `2 sigmoid(-1 - d/m) + [m > 0] 2 sigmoid(1 - m)`, where a slot that was once active twice in a row
    scores at least 1.0 for ever, above every slot that really recurs. `corrected` is the product
    `sigmoid(-1 - d/m) * sigmoid(1 - max(m, d))`: a silence that goes on counts as an interval. It is returned as its
    logarithm, because the product itself is 0.0 in float32 for every m above 104.

    Source: Zhang et al. 2025, arXiv 2506.15969. Differs: stamps are integers on the clock of tokens seen and belong to
    one sequence, activity is per KV head and relative to the number of slots, formula as above.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"attn"})
    attn_reduce: ClassVar[Reduce] = "max"
    sides: ClassVar[tuple[Side, ...]] = (Side("last", torch.int32, -1), Side("interval", torch.int32, 0))
    source: ClassVar[str] = "Zhang et al. 2025, arXiv 2506.15969"
    claim: ClassVar[str] = "long reasoning: keeps what was quiet before and came back"
    protects: ClassVar[str] = "last window"

    window: int = 52  # pyright: ignore[reportIncompatibleMethodOverride]
    activity: float = 40.0
    alpha: float | None = None
    formula: Literal["corrected", "paper"] = "corrected"

    def __post_init__(self) -> None:
        """Validate options."""
        super().__post_init__()
        check(self, "window", self.window >= 1, "an integer of at least 1")
        check(self, "activity", self.activity >= 0, "a number of at least 0")
        check(self, "alpha", self.alpha is None or 0 <= self.alpha <= 1, "a probability, or None")
        check(self, "formula", self.formula in ("corrected", "paper"), "corrected, paper")

    @property
    def when(self) -> tuple[Trigger, ...]:
        """Every `window` decoded tokens."""
        return (Trigger("every", self.window),)

    @property
    def minimum(self) -> int:
        """The window, the sinks and one token more; at least the recent ones as well."""
        return max(self.window, self.recent) + self.sinks + 1

    def stamps(self, view: KVView) -> tuple[Tensor, Tensor]:
        """(last, interval) `[B, H, S]` int32; a slot that no row has reached counts as active just before now."""
        last, interval = view.side["last"], view.side["interval"]
        return torch.where(last < 0, self.clock(view) - 1, last), interval

    def clock(self, view: KVView) -> Tensor | int:
        """Real tokens of each row so far, `[B, 1, 1]`: padding, wherever it stands, is not time that passed."""
        start = view.state.get("start")
        return view.seen if start is None else view.seen - start.view(-1, 1, 1)

    def observe(self, view: KVView) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Stamp the slots that the newest query found active."""
        if view.attn is None:
            return {}, {}
        last, interval = self.stamps(view)
        now = self.clock(view)
        if self.alpha is not None:
            active = view.attn >= self.alpha
        else:
            real = view.shape[2] if view.valid is None else view.valid.sum(-1, keepdim=True)
            # In a short cache the threshold would pass 1; half of all attention is activity at any length.
            active = (view.attn * real >= self.activity) | (view.attn >= 0.5)
        if view.valid is not None:
            active = active & view.valid
        longest = torch.maximum(interval, now - last)
        return {
            "last": torch.where(active, now, last).to(torch.int32),
            "interval": torch.where(active, longest, interval).to(torch.int32),
        }, {}

    def recurrence(self, away: Tensor, interval: Tensor) -> Tensor:
        """The score from tokens since last active and longest interval, integers of one shape; float32."""
        d, m = away.float(), interval.float()
        quiet = -1 - d / (m + 1e-5)
        if self.formula == "paper":
            return 2 * torch.sigmoid(quiet) + 2 * torch.sigmoid(1 - m).masked_fill(m == 0, 0.0)
        return F.logsigmoid(quiet) + F.logsigmoid(1 - torch.maximum(m, d))

    def score(self, view: KVView) -> Tensor:
        """Recurrence; the last `window` tokens are above everything."""
        last, interval = self.stamps(view)
        newest = view.positions >= view.seen - self.window
        return torch.where(newest, torch.inf, self.recurrence(self.clock(view) - last, interval))
