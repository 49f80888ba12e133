"""What speculation brought: counts of a run, and the figures that are derived from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from remnant.errors import ConfigError

__all__ = ["SpecStats", "block_efficiency", "mbsu", "speedup"]

_FORGET = 0.05
"""Weight of the newest block in `SpecStats.recent`, once twenty were seen."""


@dataclass
class SpecStats:
    """Counts of one run, all rows together.

    Args:
        passes: passes of the target that verified a block (the prompt's own pass is not one), times the rows in them.
        proposed: drafted tokens that were verified.
        accepted: drafted tokens that were accepted.
        emitted: tokens that those passes gave, corrections and bonus tokens included. The first token of a run, which
            the prompt's own pass gives, is not among them.
        by_position: accepted tokens per place in the draft, place 0 first.
        proposed_by_position: verified tokens per place in the draft.
        reached: blocks per place in which every place before was accepted and a token stood at this one.
        recent: per place, how often such a token was accepted: the mean at first, then an average that forgets.
        target_bytes: bytes that one step of the target reads; 0 when not known.
        draft_bytes: bytes that one step of the drafter reads; 0 for a drafter without weights.
        draft_seconds: time spent in the drafter.
        target_seconds: time spent in the target's passes.
        peak_bytes: most bytes held by caches and scratch at once; 0 when not counted.
    """

    passes: int = 0
    proposed: int = 0
    accepted: int = 0
    emitted: int = 0
    by_position: list[int] = field(default_factory=list[int])
    proposed_by_position: list[int] = field(default_factory=list[int])
    reached: list[int] = field(default_factory=list[int])
    recent: list[float] = field(default_factory=list[float])
    target_bytes: int = 0
    draft_bytes: int = 0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    peak_bytes: int = 0

    def block(self, proposed: int, accepted: int, emitted: int, depth: int | None = None) -> None:
        """Count one row of one verifying pass.

        Args:
            proposed: drafted tokens of the row; of a tree its nodes without the root.
            accepted: how many of them were accepted.
            emitted: tokens appended to the row.
            depth: places in the draft: of a tree its depth; None is a chain, with as many places as tokens.
        """
        places = proposed if depth is None else depth
        if not 0 <= accepted <= places <= proposed or emitted < 0:
            raise ConfigError(f"{accepted} of {proposed} accepted, {emitted} emitted", accepted="counts that fit")
        self.passes += 1
        self.proposed += proposed
        self.accepted += accepted
        self.emitted += emitted
        short = places - len(self.by_position)
        for counts in (self.by_position, self.proposed_by_position, self.reached):
            counts += [0] * short
        self.recent += [0.0] * short
        for place in range(places):
            self.proposed_by_position[place] += 1
            self.by_position[place] += place < accepted
        for place in range(min(accepted + 1, places)):
            self.reached[place] += 1
            self.recent[place] += max(_FORGET, 1 / self.reached[place]) * ((place < accepted) - self.recent[place])

    @property
    def acceptance(self) -> float:
        """Accepted over proposed tokens, a fraction of 1; 0 when nothing was proposed."""
        return self.accepted / self.proposed if self.proposed else 0.0

    @property
    def block_efficiency(self) -> float:
        """Tokens emitted per pass of the target; 1 is what plain decoding gives."""
        return self.emitted / self.passes if self.passes else 0.0

    def mbsu(self, num_draft: int) -> float:
        """Memory-bound speed-up at `num_draft` tokens per block; see `mbsu`.

        Raises:
            ConfigError: the bytes of the target are not known.
        """
        if not self.target_bytes:
            raise ConfigError("the bytes of the target's step are not known", do="set target_bytes")
        return mbsu(self.block_efficiency, self.draft_bytes / self.target_bytes, num_draft)

    def to_dict(self) -> dict[str, Any]:
        """The counts and the derived figures as data."""
        return {**asdict(self), "acceptance": self.acceptance, "block_efficiency": self.block_efficiency}


def block_efficiency(acceptance: float, num_draft: int) -> float:
    """Expected tokens per pass when each drafted token is accepted independently.

    Args:
        acceptance: probability that one drafted token is accepted, 0 to 1.
        num_draft: tokens per draft.

    Source: Leviathan et al. 2023, arXiv 2211.17192, eq. 1.
    Example: round(block_efficiency(0.7, 5), 3) -> 2.941
    """
    if not 0 <= acceptance <= 1 or num_draft < 0:
        raise ConfigError(f"acceptance {acceptance}, {num_draft} drafted", accepted="0 to 1, and 0 or more")
    return sum(acceptance**place for place in range(num_draft + 1))


def mbsu(block_efficiency: float, cost: float, num_draft: int) -> float:
    """Memory-bound speed-up over plain decoding: time goes with the bytes read.

    Args:
        block_efficiency: tokens per pass of the target.
        cost: bytes of a draft step over bytes of a target step.
        num_draft: draft steps per block.

    Source: Goel et al. 2025 (VocabTrim), arXiv 2506.22694, in the form `tau / (c * gamma + 1)`. Differs: a form with
        another factor `c` above the bar circulates; it gives values below 1 for any drafter and is not used.
    """
    if cost < 0 or num_draft < 0:
        raise ConfigError(f"cost {cost}, {num_draft} drafted", accepted="0 or more")
    return block_efficiency / (cost * num_draft + 1)


def speedup(
    block_efficiency: float, target: float, draft: float, verify: float, overhead: float, num_draft: int
) -> float:
    """Wall-clock speed-up from measured times, all in one unit.

    Args:
        block_efficiency: tokens per pass of the target.
        target: time of one plain step of the target.
        draft: time of one draft step.
        verify: time of one verifying pass over `num_draft + 1` tokens.
        overhead: everything else in a block.
        num_draft: draft steps per block.
    """
    whole = num_draft * draft + verify + overhead
    if whole <= 0 or target <= 0:
        raise ConfigError(f"a block of {whole}, a step of {target}", accepted="times above 0")
    return block_efficiency * target / whole
