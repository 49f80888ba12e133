"""KeyDiff: keep the keys that differ most from the average key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from remnant.kv.policy import register_policy
from remnant.kv.score import lengths
from remnant.kv.slack import SlackPolicy
from remnant.kv.view import KVView

_EPS = 1e-12


@register_policy("keydiff")
@dataclass(frozen=True)
class KeyDiff(SlackPolicy):
    """Drop keys that point where most keys point; independent of queries, so a late question finds its answer.

    Args:
        slack: tokens that may gather above the budget while decoding before it acts; 0 acts at every token.
        sinks: first tokens that are always kept.
        recent: newest tokens that are always kept.

    Source: Park et al. 2025, arXiv 2504.15364. Differs: padding takes no part in the average; it also acts while
    decoding, every `slack` tokens.
    """

    source: ClassVar[str] = "Park et al. 2025, arXiv 2504.15364"
    claim: ClassVar[str] = "remembers what stands out, whatever will be asked"

    def score(self, view: KVView) -> Tensor:
        """The cosine to the mean of the normalised keys, negative; its length does not matter, so a sum will do."""
        k = view.k.float()
        length = lengths(k).clamp(min=_EPS).unsqueeze(-1)
        weight = 1 / length
        if view.valid is not None:
            weight = weight.masked_fill(~view.valid.unsqueeze(-1), 0.0)
        # Two products with the keys as they lie: normalised copies of them would be most of the work.
        mean = F.normalize(torch.matmul(weight.transpose(2, 3), k), dim=-1)
        return -(torch.matmul(k, mean.transpose(2, 3)) / length).squeeze(-1)
