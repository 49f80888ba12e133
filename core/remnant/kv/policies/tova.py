"""TOVA: drop what the newest token attends to least."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from remnant.kv.policy import Need, Policy, Trigger, register_policy
from remnant.kv.score import group_columns
from remnant.kv.view import KVView


@register_policy("tova")
@dataclass(frozen=True)
class TOVA(Policy):
    """Keep the top of the newest query's attention, averaged over all heads: every head of a layer keeps the same set.

    Args:
        sinks: first tokens that are always kept; the paper protects none.
        recent: newest tokens that are always kept; the paper protects none, kvpress the last one.

    Source: Oren et al. 2024, arXiv 2401.06104. Differs: nothing.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"queries", "attn"})
    source: ClassVar[str] = "Oren et al. 2024, arXiv 2401.06104"
    claim: ClassVar[str] = "the newest token decides what stays"

    @property
    def when(self) -> tuple[Trigger, ...]:
        """After every block, at the end of a prompt and at every decoded token."""
        return (Trigger("prefill_end"), Trigger("block"), Trigger("step"))

    @property
    def window(self) -> int:
        """The newest query alone."""
        return 1

    def score(self, view: KVView) -> Tensor:
        """The newest attention row, averaged over the query heads of each KV head and then over the KV heads."""
        row = view.attn if view.step > 0 else None
        if row is None:
            newest = None if view.queries is None else view.queries[:, :, -1:]
            row = group_columns(replace(view, queries=newest), self.attn_reduce)
        return row.float().mean(1, keepdim=True).expand(view.shape)
