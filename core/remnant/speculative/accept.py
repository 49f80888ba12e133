"""Exact acceptance of drafted tokens: what is emitted is distributed as the target alone would have it.

Pure tensors, no model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from remnant.errors import ShapeError
from remnant.speculative._checks import Mode, check_chain, check_values, wide
from remnant.speculative._draws import draw, reject, residual, residual_det, uniforms
from remnant.speculative._rows import at_place, choose
from remnant.speculative._walk import follow, tree_steps

if TYPE_CHECKING:
    from remnant.speculative.tree import Tree

__all__ = [
    "Accepted",
    "Mode",
    "Walk",
    "accept_chain",
    "accept_greedy",
    "accept_tree",
    "accepted_prefix",
    "draw",
    "reject",
    "residual",
    "residual_det",
    "uniforms",
    "walk_tree",
]


class Accepted(NamedTuple):
    """What became of one chain per row.

    Args:
        n: `[B]` int64, drafted tokens accepted.
        next: `[B]` int64, the token after them: a correction, or the bonus when all were accepted.
        path_len: `[B]` int64, tokens emitted, `n + 1`.
    """

    n: Tensor
    next: Tensor
    path_len: Tensor


class Walk(NamedTuple):
    """What became of one tree.

    Args:
        path: `[a]` int64, accepted nodes in order, without the root.
        next: `[]` int64, the token after them: a correction, or the bonus at a leaf.
    """

    path: Tensor
    next: Tensor


def accept_chain(
    ids: Tensor,
    p: Tensor,
    q: Tensor | None = None,
    u: Tensor | None = None,
    *,
    len: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Accepted:
    """Accept a prefix of each row's draft and draw the token after it.

    Args:
        ids: `[B, g]` int64, drafted tokens.
        p: `[B, g + 1, V]`, the target's probabilities after each prefix of the draft; float32 or wider is kept.
        q: `[B, g, V]`, the distributions that the tokens were drawn from; None: they were named, not drawn.
        u: `[B, g]` uniforms that decide acceptance, or `[B, g + 1]`, whose last column draws the next token; what is
            missing comes from the generator.
        len: `[B]` int64, drafted tokens per row where rows differ; what lies behind is never read.
        generator: source of uniforms.

    Raises:
        ShapeError: shapes do not fit, a token is outside the vocabulary, a uniform outside 0 to 1, or `p` or `q` is
            no distribution.

    Source: Leviathan et al. 2023, arXiv 2211.17192, algorithm 1; Chen et al. 2023, arXiv 2302.01318. Differs: a token
        that the target gives no mass is never accepted, not even at `u = 0`.
    Example: accept_chain(torch.tensor([[1]]), torch.tensor([[[0., 1.], [1., 0.]]])) -> n [1], next [0], path_len [2]
    """
    b, g = check_chain(ids, p, q, u, len)
    p = wide(p)
    lengths = ids.new_full((b,), g) if len is None else len
    if u is None:
        u = uniforms((b, g + 1), p, generator)
    ids = ids.masked_fill(torch.arange(g, device=ids.device) >= lengths.unsqueeze(1), 0)
    n = accepted_prefix(ids, p, q, u, lengths)

    left = at_place(p, n)
    if g:
        at = n.clamp(max=g - 1)
        token = ids.gather(1, at.unsqueeze(1)).squeeze(1)
        rejected = residual_det(left, token) if q is None else residual(left, at_place(q, at))
        left = choose(n < lengths, rejected, left)
    last = u[:, g] if u.shape[1] > g else uniforms((b,), p, generator)
    return Accepted(n, draw(left, last), n + 1)


def accept_greedy(ids: Tensor, best: Tensor, lengths: Tensor) -> Accepted:
    """`accept_chain` for a target that always takes its best token.

    Args:
        ids: `[B, g]` int64, drafted tokens.
        best: `[B, g + 1]` int64, the target's token after each prefix of the draft.
        lengths: `[B]` int64, drafted tokens per row; what lies behind is never accepted.
    """
    inside = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
    n = ((ids == best[:, :-1]) & inside).long().cumprod(1).sum(1)
    return Accepted(n, best.gather(1, n.unsqueeze(1)).squeeze(1), n + 1)


def accepted_prefix(ids: Tensor, p: Tensor, q: Tensor | None, u: Tensor, lengths: Tensor) -> Tensor:
    """How many drafted tokens of each row are accepted, `[B]` int64; arguments as in `accept_chain`, all given."""
    g = ids.shape[1]
    inside = torch.arange(g, device=ids.device) < lengths.unsqueeze(1)
    drafted = ids.masked_fill(~inside, 0)
    check_values(drafted, p, lengths, q, u)
    drafted = drafted.unsqueeze(-1)
    px = p[:, :g].gather(-1, drafted).squeeze(-1)
    # u < p / q without the division, so that q = 0 needs no case of its own.
    u = u[:, :g]
    bar = u if q is None else u * wide(q).gather(-1, drafted).squeeze(-1)
    return ((bar < px) & inside).long().cumprod(1).sum(1)


def accept_tree(
    tree: Tree,
    p: Tensor,
    mode: Mode = "det",
    u: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Walk:
    """Walk from the root through accepted children and draw the token after the last.

    Args:
        tree: n nodes; children are tried in the order of their index.
        p: `[n, V]`, the target's probabilities after each node.
        mode: how children were found: "det" (listed), "iid" (drawn independently from the parent's `q_full`), or
            "without_replacement".
        u: `[n]` uniforms: entry i decides node i, entry 0 draws the next token; None draws from the generator.
        generator: source of uniforms.

    Raises:
        ShapeError: `p` or `u` does not fit the tree, a token is outside the vocabulary, a uniform outside 0 to 1, or
            a distribution that the walk reads is none.
        ConfigError: an unknown mode, or a drawn one for a tree without `q_full`.

    Source: Li et al. 2024 (EAGLE-2), arXiv 2406.16858; Miao et al. 2023 (SpecInfer), arXiv 2305.09781, algorithm 2;
        Jeon et al. 2024 (RSD), arXiv 2402.14160, for draws without replacement.
    """
    if p.dim() != 2 or p.shape[0] != len(tree):
        raise ShapeError(f"target distributions of {tuple(p.shape)}", accepted=f"[{len(tree)}, V]")
    p = wide(p)
    return walk_tree(tree, p.__getitem__, mode, uniforms((len(tree),), p, generator) if u is None else u)


def walk_tree(tree: Tree, p_at: Callable[[int], Tensor], mode: Mode, u: Tensor) -> Walk:
    """`accept_tree` for a target whose distributions are made only at the nodes that the walk reaches.

    Args:
        tree: n nodes.
        p_at: node -> `[V]`, the target's probabilities after it.
        mode: see `accept_tree`.
        u: `[n]` uniforms; see `accept_tree`.
    """
    path, left = follow(tree_steps(tree, mode, u), p_at)
    return Walk(tree.ids.new_tensor(path), draw(left, u[0].to(left.device)))
