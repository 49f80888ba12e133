"""Several kinds of text at once: one kept set that serves them all, with a floor for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.speculative.vocab_map import VocabMap

__all__ = ["Domain", "keep_for", "mixed"]


@dataclass(frozen=True)
class Domain:
    """One kind of text.

    Args:
        name: for reports.
        scores: `[V]`, counts or expected acceptance; only the shares matter.
        floor: the share of `scores` that the kept set has to hold, 0 to 1.
    """

    name: str
    scores: Tensor
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a floor that is no share, and a text that says nothing."""
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"floor {self.floor} of {self.name!r}", accepted="0 to 1")
        if not float(self.scores.sum()) > 0:
            raise ConfigError(f"{self.name!r} holds no token that counts", do="give a text, or a mask that marks some")

    @property
    def shares(self) -> Tensor:
        """The scores, summing to 1: `[V]` float64."""
        scores = self.scores.double()
        return scores / scores.sum()


def mixed(domains: Sequence[Domain]) -> Tensor:
    """The scores of all domains together, each with the same weight: `[V]` float64; of a single one, as given."""
    if not domains:
        raise ConfigError("no text to choose tokens by", accepted="at least one")
    if len(domains) == 1:
        return domains[0].scores.double()
    return torch.stack([domain.shares for domain in domains]).mean(0)


def keep_for(domains: Sequence[Domain], k: int, always: Sequence[int] = ()) -> VocabMap:
    """The k tokens that serve a mixture best, with every floor held.

    Where the best tokens of the mixture leave a domain below its floor, the fewest tokens that lift it there are kept
    first, and the rest is filled by the mixture.

    Args:
        domains: kinds of text; each weighs the same.
        k: tokens to keep.
        always: ids that are kept whatever their score.

    Raises:
        ConfigError: the floors need more than k tokens; says how many.
    """
    scores = mixed(domains)
    chosen = VocabMap.from_counts(scores, k, always)
    if all(_held(domain, chosen) for domain in domains):
        return chosen
    needed = set(always)
    for domain in domains:
        needed |= _fewest(domain, always)
    if len(needed) > k:
        floors = ", ".join(f"{domain.name} {domain.floor:g}" for domain in domains if domain.floor)
        raise ConfigError(f"k {k} for the floors {floors}", accepted=f"at least {len(needed)}", do="lower a floor")
    return VocabMap.from_counts(scores, k, sorted(needed))


def _held(domain: Domain, kept: VocabMap) -> bool:
    return float(kept.coverage(domain.shares)) >= domain.floor - 1e-12


def _fewest(domain: Domain, always: Sequence[int]) -> set[int]:
    """The fewest ids that, with those that are kept anyway, hold the domain's floor."""
    shares = domain.shares.clone()
    held = float(shares[list(always)].sum())
    shares[list(always)] = 0
    sums, order = torch.sort(shares, descending=True, stable=True)
    short = held + sums.cumsum(0) < domain.floor - 1e-12
    count = 0 if held >= domain.floor - 1e-12 else int(short.sum()) + 1
    return {int(i) for i in order[:count]}
