"""Knorm: keys of small norm draw attention, so they stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from remnant.kv.policy import register_policy
from remnant.kv.score import lengths
from remnant.kv.slack import SlackPolicy
from remnant.kv.view import KVView


@register_policy("knorm")
@dataclass(frozen=True)
class Knorm(SlackPolicy):
    """Keep the keys with the lowest Euclidean norm; needs no attention at all.

    Args:
        slack: tokens that may gather above the budget while decoding before it acts; 0 acts at every token.
        sinks: first tokens that are always kept.
        recent: newest tokens that are always kept.

    Source: Devoto et al. 2024, arXiv 2406.11430. Differs: norms that are equal to 1 in 4,000 are ties, which go to the
    later position; it also acts while decoding, every `slack` tokens; the
    authors leave the first two layers of Llama uncompressed, which is the host's choice of governed layers here.
    """

    source: ClassVar[str] = "Devoto et al. 2024, arXiv 2406.11430"
    claim: ClassVar[str] = "a cheap guess at attention from the keys alone"

    def score(self, view: KVView) -> Tensor:
        """The norm of the key, negative, at 13 bits.

        A rotation leaves a norm as it is but for rounding, so that the same token twice has the same norm but for the
        last bits: those would choose between the two, and not alike in a batch and alone.
        """
        norm = lengths(view.k)
        return -((norm.view(torch.int32) + 1024) & -2048).view(torch.float32)
