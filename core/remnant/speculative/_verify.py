"""One pass of the target over every row's draft, and what of it is accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.speculative._lists import ints
from remnant.speculative._rows import at_place, choose
from remnant.speculative._text import Text
from remnant.speculative.accept import (
    Accepted,
    accept_chain,
    accept_greedy,
    accepted_prefix,
    draw,
    uniforms,
    walk_tree,
)
from remnant.speculative.drafter import Draft, Sampler
from remnant.speculative.target import Target
from remnant.speculative.tree import Tree

__all__ = ["NONE", "Tilt", "Verdict", "Verifier", "as_tree", "pad", "path_to", "reads_history"]

Tilt = Callable[[Tensor, Tensor], Tensor]
"""Logits of the target `[B, T, V]` and of the drafter, to the logits that are sampled from."""

NONE = torch.zeros(0, dtype=torch.int64)


class Verdict(NamedTuple):
    """What became of one row's draft.

    Args:
        tokens: accepted tokens and the one after them.
        columns: columns of the pass that hold the accepted tokens.
        depth: places that the draft had.
    """

    tokens: list[int]
    columns: list[int]
    depth: int


@dataclass
class Verifier:
    """Runs a target over drafts.

    Args:
        target: the model.
        text: the rows.
        sampler: how p is made from logits.
        tilt: how the drafter's logits are mixed in; None is not at all.
        generated: histories leave the prompt out.
    """

    target: Target
    text: Text
    sampler: Sampler
    tilt: Tilt | None
    generated: bool
    seconds: float = 0.0
    scratch: int = 0
    """Bytes of the newest pass's logits."""

    def first(self, logits: Tensor, drafts: list[Draft] | None) -> list[int]:
        """The token after each prompt, from `[B, V]` logits; drafts carry the drafter's logits for a tilt."""
        rows, z = list(range(len(self.text))), logits
        if drafts is not None and self.tilt is not None:
            zq, none = _logits(drafts, 1, logits), torch.zeros(len(rows), dtype=torch.int64)
            if not getattr(self.tilt, "tilted_bonus", True):
                return self._drafted_first(rows, logits.unsqueeze(1), zq, drafts)
            z = self.tilt(logits.unsqueeze(1), zq).squeeze(1)
            self._record(rows, logits.unsqueeze(1), zq, none, none, True)
        p = self.sampler.probs(self._histories(rows, [NONE] * len(rows)), z)
        return ints(draw(p, uniforms((len(rows),), p, self.sampler.generator)))

    def _drafted_first(self, rows: list[int], z: Tensor, zq: Tensor, drafts: list[Draft]) -> list[int]:
        """The first token where a tilt leaves bonus tokens alone: drafted and checked like every later one."""
        ids, lengths = pad([draft.ids.to(z.device) for draft in drafts], self.text.last(rows))
        columns = ids.shape[1] + 1
        histories = [view for view in self._histories(rows, [NONE] * len(rows)) for _ in range(columns)]
        real = torch.ones(len(rows), columns, dtype=torch.bool, device=z.device)
        wide = (z.expand(-1, columns, -1), zq.expand(-1, columns, -1))
        done = self._tilted(*wide, drafts, ids, lengths, histories, real)
        self._record(rows, z, zq, torch.zeros_like(lengths), lengths, True)
        taken, heads = ints(done.n), ints(done.next)
        return [int(ids[row, 0]) if taken[row] else heads[row] for row in rows]

    def chains(self, rows: list[int], drafts: list[Draft]) -> list[Verdict]:
        """Check one chain per row, all rows at once."""
        last = self.text.last(rows)
        ids, lengths = pad([draft.ids.to(last.device) for draft in drafts], last)
        steps = torch.arange(ids.shape[1] + 1, device=ids.device)
        z = self._step(torch.cat([last, ids], 1), self._base(rows, ids) + steps, lengths + 1, None)
        real = steps <= lengths.unsqueeze(1)
        histories = self._histories(rows, [draft.ids for draft in drafts])
        if self.tilt is not None:
            zq = _logits(drafts, ids.shape[1] + 1, z)
            done = self._tilted(z, zq, drafts, ids, lengths, histories, real)
            self._record(rows, z, zq, done.n, lengths, False)
        elif self.sampler.greedy and (best := getattr(self.sampler, "best", None)) is not None:
            flat: Tensor = best(histories, _columns(z, real))
            done = accept_greedy(ids, flat.new_zeros(real.shape).masked_scatter_(real, flat), lengths)
        else:
            p = self._probs(histories, z, real)
            done = accept_chain(ids, p, _distributions(drafts, ids, p), len=lengths, generator=self.sampler.generator)
        counts, after, heads = ints(done.n), ints(done.next), [ints(row) for row in ids]
        return [
            Verdict([*heads[i][:count], after[i]], list(range(1, count + 1)), len(drafts[i]))
            for i, count in enumerate(counts)
        ]

    def trees(self, rows: list[int], drafts: list[Draft]) -> list[Verdict]:
        """Check one tree per row; a chain is a tree without branches."""
        if self.tilt is not None:
            raise ConfigError("a tilt over a drafted tree", accepted="chains", do="use a drafter of chains")
        pairs, step = self._grown(rows, drafts)
        z = self._step(*step)
        return [self._walk(row, *pair, z[i]) for i, (row, pair) in enumerate(zip(rows, pairs, strict=True))]

    def _grown(
        self, rows: list[int], drafts: list[Draft]
    ) -> tuple[list[tuple[Tree, Any]], tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Every row's tree with how its children were found, and the arguments of a step over all of them."""
        last = self.text.last(rows)
        pairs = [as_tree(draft, root) for draft, root in zip(drafts, last, strict=True)]
        tokens, widths = pad([tree.ids for tree, _ in pairs], last)
        depths, _ = pad([tree.depth.long() for tree, _ in pairs], last)
        mask = torch.eye(tokens.shape[1], dtype=torch.bool, device=last.device).repeat(len(rows), 1, 1)
        for row, (tree, _) in zip(mask, pairs, strict=True):
            row[: len(tree), : len(tree)] = tree.mask()
        return pairs, (tokens, self._base(rows, tokens) + depths, widths, mask)

    def _walk(self, row: int, tree: Tree, mode: Any, z: Tensor) -> Verdict:
        def p_at(node: int) -> Tensor:
            return self.sampler.probs(self._history(row, path_to(tree, node)), z[node : node + 1])[0]

        path, following = walk_tree(tree, p_at, mode, uniforms((len(tree),), z, self.sampler.generator))
        return Verdict([*ints(tree.ids[path]), int(following)], ints(path), int(tree.depth.max()))

    def _step(self, tokens: Tensor, positions: Tensor, widths: Tensor, mask: Tensor | None) -> Tensor:
        begin = perf_counter()
        logits = self.target.step(tokens, positions, widths, mask)
        self.seconds += perf_counter() - begin
        self.scratch = logits.numel() * logits.element_size()
        return logits

    def _base(self, rows: list[int], like: Tensor) -> Tensor:
        """Position of each row's newest token, `[R, 1]`."""
        return like.new_tensor([[self.text.length[row] - 1] for row in rows])

    def _histories(self, rows: list[int], drafts: list[Tensor]) -> list[Tensor]:
        if not reads_history(self.sampler):
            return []
        pairs = zip(rows, drafts, strict=True)
        return [view for row, ids in pairs for view in self.text.histories(row, ids, self.generated)]

    def _history(self, row: int, path: Tensor) -> list[Tensor]:
        """What precedes the token behind a path of drafted tokens; nothing where nobody looks."""
        return self.text.histories(row, path, self.generated)[-1:] if reads_history(self.sampler) else []

    def _probs(self, histories: list[Tensor], z: Tensor, real: Tensor) -> Tensor:
        """Target probabilities `[R, T, V]`; zero where a row has no column."""
        flat = self.sampler.probs(histories, _columns(z, real))
        return flat.view(z.shape) if len(flat) == real.numel() else flat.new_zeros(z.shape).index_put_((real,), flat)

    def _record(self, rows: list[int], z: Tensor, zq: Tensor, n: Tensor, lengths: Tensor, first: bool) -> None:
        """Let a tilt that wants it write down how much of the drafter each emitted token holds."""
        record = getattr(self.tilt, "record", None)
        if record is not None:
            record(rows, z, zq, n, lengths, first)

    def _tilted(
        self,
        z: Tensor,
        zq: Tensor,
        drafts: list[Draft],
        ids: Tensor,
        lengths: Tensor,
        histories: list[Tensor],
        real: Tensor,
    ) -> Accepted:
        """Accept by the tilted distribution; a tilt may have its own residual and leave the bonus alone."""
        assert self.tilt is not None
        generator, g = self.sampler.generator, ids.shape[1]
        tilted = self._probs(histories, self.tilt(z, zq), real)
        q = _distributions(drafts, ids, tilted)
        own = getattr(self.tilt, "residual", None)
        if own is None or getattr(self.tilt, "tilted_bonus", True):
            return accept_chain(ids, tilted, q, len=lengths, generator=generator)
        p = self._probs(histories, z, real)
        n = accepted_prefix(ids, tilted, q, uniforms(tuple(ids.shape), p, generator), lengths)
        left = at_place(p, n)
        if g:
            q = torch.zeros_like(p[:, :-1]).scatter_(-1, ids.unsqueeze(-1), 1.0) if q is None else q
            rejected = own(left, at_place(q, n.clamp(max=g - 1)), at_place(tilted, n))
            left = choose(n < lengths, rejected, left)
        return Accepted(n, draw(left, uniforms((ids.shape[0],), p, generator)), n + 1)


def _columns(z: Tensor, real: Tensor) -> Tensor:
    """The real columns of all rows, `[C, V]`; without a copy where all are."""
    return z.flatten(0, 1) if bool(real.all()) else z[real]


def reads_history(sampler: Sampler) -> bool:
    """Whether a sampler looks at histories; one that does not say so does."""
    return getattr(sampler, "reads_history", True)


def path_to(tree: Tree, node: int) -> Tensor:
    """The drafted tokens on the way to a node, its own among them, `[d]` int64."""
    return tree.ids[torch.tensor(tree.path(node)[1:], dtype=torch.int64, device=tree.ids.device)]


def pad(rows: list[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of unequal length as one tensor, zeros behind, and their lengths."""
    lengths = [row.shape[0] for row in rows]
    out = like.new_zeros(len(rows), max(lengths))
    for i, row in enumerate(rows):
        out[i, : lengths[i]] = row
    return out, like.new_tensor(lengths)


def _distributions(drafts: list[Draft], ids: Tensor, p: Tensor) -> Tensor | None:
    """What the drafts were drawn from, `[R, g, V]`; None when all were named, one-hot where only some were."""
    if all(draft.q is None for draft in drafts):
        return None
    q = torch.zeros_like(p[:, :-1])
    for i, draft in enumerate(drafts):
        if draft.q is None:
            q[i].scatter_(-1, ids[i].unsqueeze(-1), 1.0)
        else:
            q[i, : len(draft), : draft.q.shape[-1]] = draft.q.to(q)
    return q


def _logits(drafts: list[Draft], width: int, z: Tensor) -> Tensor:
    """The drafts' logits as `[R, width, V]`; -inf for tokens that the drafter does not know, 0 where a row has none."""
    out = z.new_zeros(len(drafts), width, z.shape[-1])
    for i, draft in enumerate(drafts):
        if draft.logits is None:
            raise ConfigError("a tilt over drafts without logits", do="use a drafter that keeps them, or no tilt")
        known = draft.logits[:width].to(out)
        out[i, : known.shape[0]] = float("-inf")
        out[i, : known.shape[0], : known.shape[1]] = known
    return out


def as_tree(draft: Draft, root: Tensor) -> tuple[Tree, Any]:
    """A draft as a tree below the last token `[1]`, and how its children were found."""
    if draft.tree is not None:
        if int(draft.tree.ids[0]) != int(root):
            raise ConfigError(f"a drafted tree whose root is {int(draft.tree.ids[0])}", accepted=f"{int(root)}")
        return draft.tree, draft.mode
    q = None if draft.q is None else torch.cat([draft.q, draft.q.new_zeros(1, draft.q.shape[1])])
    return Tree.chain(torch.cat([root, draft.ids.to(root.device)]), q), "det" if q is None else "iid"
