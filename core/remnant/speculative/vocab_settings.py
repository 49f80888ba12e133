"""What a trimming is given: texts, and how to trim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from remnant.errors import ConfigError
from remnant.speculative.vocab_counts import Tokens

__all__ = ["ASSUMED", "HELD_OUT_EVERY", "WINDOW", "Source", "Trim"]

ASSUMED = 0.7
"""Acceptance of the untrimmed drafter where it is neither measured nor given; reports say so."""

WINDOW = 256  # tokens that models read at once, and the unit of what is held out
HELD_OUT_EVERY = 10  # one window in so many is held out


@dataclass(frozen=True)
class Source:
    """Texts of one kind.

    Args:
        name: for reports.
        texts: the tokens.
        floor: the share of their tokens that the kept set has to hold, 0 to 1.
    """

    name: str
    texts: Sequence[Tokens]
    floor: float = 0.0


@dataclass(frozen=True)
class Trim:
    """How to trim.

    Args:
        k: tokens to keep; None chooses by the cost model.
        objective: `counts` keeps what occurs most, `acceptance` what brings most acceptance, halfway
            between its lower and its upper bound (see `vocab_measure.expected_overlap`; needs both models).
        num_draft: draft steps per block, for the speed-up.
        acceptance: of the untrimmed drafter, where it is known; measured when both models are at hand.
        temperature: at which acceptance is measured; 0 is greedy.
        always: ids that are kept besides the special tokens.
        learn: tokens that both models read for the objective `acceptance`.
        held_out: tokens that both models read to measure acceptance; 0 measures none.
        chart: draw the report as well.
        force: replace a checkpoint that is in the way.
    """

    k: int | None = None
    objective: Literal["counts", "acceptance"] = "counts"
    num_draft: int = 3
    acceptance: float | None = None
    temperature: float = 1.0
    always: Sequence[int] = ()
    learn: int = 32768
    held_out: int = 4096
    chart: bool = True
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.objective not in ("counts", "acceptance"):
            raise ConfigError(f"objective {self.objective!r}", accepted="counts, acceptance")
        if self.num_draft < 1 or not 0 <= self.temperature < math.inf or self.held_out < 0 or self.learn < 1:
            given = f"num_draft {self.num_draft}, temperature {self.temperature}, held_out {self.held_out}"
            raise ConfigError(given, accepted="num_draft of at least 1, the others 0 or more")
        if self.acceptance is not None and not 0 <= self.acceptance <= 1:
            raise ConfigError(f"acceptance {self.acceptance}", accepted="0 to 1")
