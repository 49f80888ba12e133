"""`tree`: a smaller causal language model guesses several ways on at once, where it is most certain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.speculative._follow import Follower
from remnant.speculative._lists import ints
from remnant.speculative.drafter import Draft, Sampler
from remnant.speculative.growth import Growth
from remnant.speculative.target import Target

__all__ = ["TreeDrafter"]


class TreeDrafter:
    """Drafts trees with any model that can be stepped: one pass of the drafter per level, all rows together.

    Its children are listed, not drawn, so that greedy and sampled output are both exact. The drafter's own logits
    order the nodes; the sampler's temperature and processors do not.

    Args:
        model: the stepper; a host wraps its model as a `Target` that takes masks.
        depth: levels below the last emitted token; a plan's `depth`.
        top_k: nodes expanded per level, and children of each; a plan's `top_k`.
        n: nodes of a tree, the last emitted token among them; a plan's `n`.

    Raises:
        ConfigError: a number below its bound.

    Source: Li et al. 2024 (EAGLE-2), arXiv 2406.16858. Differs: the drafter is a model of its own, and expanded nodes
        are run again with each level, so that no cache holds a guess.
    """

    name: ClassVar[str] = "tree"

    def __init__(self, model: Target, depth: int = 4, top_k: int = 3, n: int = 12) -> None:
        """See the class."""
        if depth < 1 or top_k < 1 or n < 1:
            raise ConfigError(f"depth {depth}, top_k {top_k}, n {n}", accepted="1 or more of each")
        self.vocab_size: int | None = model.vocab_size
        self.weight_bytes = model.weight_bytes
        self._follow, self._depth, self._top_k, self._n = Follower(model), depth, top_k, n

    def reset(self, prompts: Sequence[Tensor]) -> None:
        """Read the prompts."""
        self._follow.reset(prompts)

    def propose(self, limits: Sequence[int], sampler: Sampler | None = None) -> list[Draft]:
        """Draft a tree of at most `limits[row]` nodes below the last token per row; see `Drafter.propose`."""
        if not self._follow.catch_up(limits):
            return [Draft(torch.zeros(0, dtype=torch.int64)) for _ in limits]
        rows = [_Row(self._grow(row, limit), limit) for row, limit in enumerate(limits)]
        for row, logits in zip(rows, self._follow.after, strict=True):
            row.feed(logits.unsqueeze(0))
        while any(row.going for row in rows):
            parts = [row.columns() for row in rows]
            raw = self._follow.look(*(list(part) for part in zip(*parts, strict=True)))
            for row, logits, (columns, _, _) in zip(rows, raw, parts, strict=True):
                row.feed(logits[: len(columns)])
        return [row.draft() for row in rows]

    def observe(self, emitted: Sequence[Tensor]) -> None:
        """Learn what was emitted."""
        self._follow.observe(emitted)

    def rollback(self, counts: Sequence[int]) -> None:
        """Take back emitted tokens, per row."""
        self._follow.rollback(counts)

    def nbytes(self) -> int:
        """Bytes of the cache."""
        return self._follow.model.nbytes()

    def _grow(self, row: int, limit: int) -> Growth:
        return Growth(self._follow.texts[row][-1], min(self._depth, limit), self._top_k, min(self._n, limit + 1))


class _Row:
    """One row's tree while it grows, and the nodes that were expanded, which the model runs again with each level."""

    def __init__(self, growth: Growth, limit: int) -> None:
        self._growth, self._limit = growth, limit
        self._tokens: list[int] = []
        self._depths: list[int] = []
        self._mask = torch.zeros(0, 0, dtype=torch.bool)
        self._newest = 0

    @property
    def going(self) -> bool:
        return not self._growth.done

    def feed(self, logits: Tensor) -> None:
        """Take logits of the newest columns, and list the nodes that are to be expanded next."""
        if not self.going:
            return
        level = self._growth.paths.shape[0]
        self._growth.feed(logits[-level:])
        if self.going:
            self._widen()

    def columns(self) -> tuple[list[int], list[int], Tensor]:
        """Tokens, depths and mask of every column to run; none once the tree is grown."""
        return (self._tokens, self._depths, self._mask) if self.going else ([], [], self._mask[:0, :0])

    def draft(self) -> Draft:
        if not self._limit:
            return Draft(torch.zeros(0, dtype=torch.int64))
        tree = self._growth.tree()
        return Draft(tree.ids[1:], tree=tree)

    def _widen(self) -> None:
        old, paths = len(self._tokens), self._growth.paths
        new = paths.shape[0]
        self._tokens = self._tokens + ints(paths[:, -1])
        self._depths = self._depths + [paths.shape[1] - 1] * new
        mask = torch.eye(old + new, dtype=torch.bool)
        mask[:old, :old] = self._mask
        if old:  # a node sees what its parent sees, and itself
            mask[old:, :old] = self._mask[self._newest + self._growth.above]
        self._mask, self._newest = mask, old
