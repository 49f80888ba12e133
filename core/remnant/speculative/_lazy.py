"""Checking drafts with the head computed only where the walk comes by, level by level for all rows that still walk."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.speculative._draws import draw, uniforms
from remnant.speculative._lists import ints
from remnant.speculative._verify import NONE, Tilt, Verdict, Verifier, pad, path_to
from remnant.speculative._walk import best_steps, chain_steps, tree_steps
from remnant.speculative.drafter import Draft
from remnant.speculative.target import Head, LazyTarget

__all__ = ["LazyVerifier", "wanted"]

Steps = Generator[int, Any, tuple[list[int], Any]]


def wanted(plan: Any, asked: bool | None, tilt: Tilt | None) -> bool:
    """Whether the head is to be left to the walk.

    Args:
        plan: of the run; one with `lazy_logits` counts on it.
        asked: what the caller said; None is what the plan says.
        tilt: of the run.

    Raises:
        ConfigError: the caller and the plan contradict each other, or a tilt needs the logits of every place.
    """
    counted = bool(getattr(plan, "lazy_logits", False))
    if asked is False and counted:
        raise ConfigError(
            "lazy_logits=False under a plan that counts on lazy logits",
            accepted="True, or leave it to the plan",
            do="plan with lazy_logits=False to hold the logits of every node",
        )
    lazy = counted if asked is None else asked
    if lazy and tilt is not None:
        raise ConfigError(
            "lazy logits with a tilt, which mixes the logits of every drafted token with the drafter's",
            accepted="one of the two",
        )
    return lazy


@dataclass
class LazyVerifier(Verifier):
    """A `Verifier` that never holds more logits than one column per row; `target` is a `LazyTarget`.

    It uses the same uniforms in the same places as `Verifier`: with logits of equal bits and one seed, rows get the
    same tokens.
    """

    def first(self, logits: Tensor, drafts: list[Draft] | None) -> list[int]:
        """The token after each prompt, from `[B, V]` logits; row by row."""
        assert drafts is None, "tilts are refused"
        count = len(self.text)
        self.scratch = logits.nbytes
        if self._best is not None:
            return ints(self._best(self._histories(list(range(count)), [NONE] * count), logits))
        us = uniforms((count,), logits, self.sampler.generator)
        return [int(draw(self._probs_at(row, NONE, logits[row : row + 1]), us[row])) for row in range(count)]

    def chains(self, rows: list[int], drafts: list[Draft]) -> list[Verdict]:
        """Check one chain per row, all rows at once."""
        last = self.text.last(rows)
        ids, lengths = pad([draft.ids.to(last.device) for draft in drafts], last)
        tokens, steps = torch.cat([last, ids], 1), torch.arange(ids.shape[1] + 1, device=ids.device)
        step = tokens, self._base(rows, ids) + steps, lengths + 1, None
        listed = [ints(row[: len(draft) + 1]) for row, draft in zip(tokens, drafts, strict=True)]
        if self._best is not None:
            walks: list[Steps] = [best_steps(each, [*([i] for i in range(1, len(each))), []]) for each in listed]
            ends = list[Tensor]()
        else:
            us = uniforms(tuple(tokens.shape), last, self.sampler.generator)
            walks = [chain_steps(draft.ids, draft.q, u) for draft, u in zip(drafts, us, strict=True)]
            ends = list(us[:, -1])
        paths = [partial(_beginning, draft.ids) for draft in drafts]
        found = self._walk_all(rows, walks, ends, paths, step)
        return [
            Verdict([*(listed[i][column] for column in columns), after], columns, len(drafts[i]))
            for i, (columns, after) in enumerate(found)
        ]

    def trees(self, rows: list[int], drafts: list[Draft]) -> list[Verdict]:
        """Check one tree per row; a chain is a tree without branches."""
        pairs, step = self._grown(rows, drafts)
        listed = [ints(tree.ids) for tree, _ in pairs]
        if self._best is not None:
            families = [tree.family() for tree, _ in pairs]
            walks: list[Steps] = [best_steps(each, kin) for each, kin in zip(listed, families, strict=True)]
            ends = list[Tensor]()
        else:
            us = [uniforms((len(tree),), tree.ids, self.sampler.generator) for tree, _ in pairs]
            walks = [tree_steps(tree, mode, u) for (tree, mode), u in zip(pairs, us, strict=True)]
            ends = [u[0] for u in us]
        found = self._walk_all(rows, walks, ends, [partial(path_to, tree) for tree, _ in pairs], step)
        return [
            Verdict([*(each[node] for node in nodes), after], nodes, int(tree.depth.max()))
            for (tree, _), each, (nodes, after) in zip(pairs, listed, found, strict=True)
        ]

    def _walk_all(
        self,
        rows: list[int],
        walks: list[Steps],
        ends: list[Tensor],
        paths: list[Callable[[int], Tensor]],
        step: tuple[Tensor, Tensor, Tensor, Tensor | None],
    ) -> list[tuple[list[int], int]]:
        """Take all walks to their ends together; per row the accepted columns and the token behind them.

        Args:
            rows: of the text.
            walks: one per row.
            ends: uniforms `[]` that draw the last token of each row; none where the best is taken.
            paths: node -> `[d]`, the drafted tokens on the way to it.
            step: of the target, as `step_lazy` takes it; its logits are held here alone.
        """
        logits, head = self._open(*step)
        at = [next(walk) for walk in walks]
        found: dict[int, tuple[list[int], int]] = {}
        going = list(range(len(walks)))
        while True:
            sent = self._answers([(rows[i], paths[i](at[i])) for i in going], logits)
            for i in going:
                try:
                    at[i] = walks[i].send(next(sent))
                except StopIteration as end:
                    nodes, left = cast("tuple[list[int], Any]", end.value)
                    found[i] = nodes, int(draw(left, ends[i].to(left.device)) if ends else left)
                    del left
            going = [i for i in going if i not in found]
            del sent, logits  # before the next level's logits are made
            if not going:
                return [found[i] for i in range(len(walks))]
            begin = perf_counter()
            logits = head(torch.tensor(going), torch.tensor([at[i] for i in going]))
            self.seconds += perf_counter() - begin

    def _answers(self, places: list[tuple[int, Tensor]], logits: Tensor) -> Iterator[Any]:
        """What each walk wants to know: its best token, or its probabilities, of which one row is made at a time."""
        if self._best is None:
            return (self._probs_at(row, path, logits[i : i + 1]) for i, (row, path) in enumerate(places))
        return iter(ints(self._best([each for place in places for each in self._history(*place)], logits)))

    @property
    def _best(self) -> Callable[[list[Tensor], Tensor], Tensor] | None:
        """How the best tokens are found, where they are taken and the sampler can say them."""
        return getattr(self.sampler, "best", None) if self.sampler.greedy else None

    def _open(self, tokens: Tensor, positions: Tensor, widths: Tensor, mask: Tensor | None) -> tuple[Tensor, Head]:
        """Run the block; logits of its first column."""
        assert isinstance(self.target, LazyTarget)
        begin = perf_counter()
        logits, head = self.target.step_lazy(tokens, positions, widths, mask)
        self.seconds += perf_counter() - begin
        self.scratch = logits.nbytes
        return logits, head

    def _probs_at(self, row: int, path: Tensor, logits: Tensor) -> Tensor:
        return self.sampler.probs(self._history(row, path), logits)[0]


def _beginning(ids: Tensor, n: int) -> Tensor:
    return ids[:n]
