"""Exact acceptance of drafted tokens: what is emitted is distributed as the target alone would have it.

Pure tensors, no model. Uniforms lie in `[0, 1)`; a draw by inverse CDF takes the first token whose cumulative mass
exceeds its uniform, so that a token without mass is never drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from remnant.errors import ShapeError
from remnant.speculative._checks import Mode, check_chain, check_values, check_walk, whole, wide
from remnant.speculative._lists import floats, ints
from remnant.speculative._rows import at_place, choose

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


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What is left of the target's distribution after a token drawn from `q` was rejected.

    Args:
        p: `[..., V]`, the target's probabilities.
        q: `[..., V]`, the drafter's.

    Returns:
        `max(p - q, 0)` normalised, `[..., V]` float32 or float64; `p` where nothing is left, which only rounding
        can reach.

    Source: Leviathan et al. 2023, arXiv 2211.17192, algorithm 1.
    Example: residual(torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])) -> [0., 1.]
    """
    p, q = wide(p), wide(q)
    return _normalised((p - q).clamp(min=0), p)


def residual_det(p: Tensor, token: Tensor) -> Tensor:
    """What is left after a token that was not drawn, but named, was rejected.

    Args:
        p: `[..., V]`, the target's probabilities.
        token: `[...]` int64.

    Returns:
        `p` without the token, normalised; `p` itself where the token held all the mass.
    """
    p = wide(p)
    return _normalised(p.scatter(-1, token.unsqueeze(-1), 0.0), p)


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
        ShapeError: shapes do not fit, a token is outside the vocabulary, or `p` is no distribution.

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
    n = accepted_prefix(ids, p, q, u[:, :g], lengths)

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
    """How many drafted tokens of each row are accepted, `[B]` int64; arguments as in `accept_chain`."""
    g = ids.shape[1]
    inside = torch.arange(g, device=ids.device) < lengths.unsqueeze(1)
    drafted = ids.masked_fill(~inside, 0)
    check_values(drafted, p, lengths)
    drafted = drafted.unsqueeze(-1)
    px = p[:, :g].gather(-1, drafted).squeeze(-1)
    # u < p / q without the division, so that q = 0 needs no case of its own.
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
        ShapeError: `p` or `u` does not fit the tree, a token is outside the vocabulary, or `p` is no distribution.
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
    check_walk(tree, mode, u)
    ids, chances = ints(tree.ids), floats(u)
    kin = tree.family()
    node, path = 0, list[int]()
    left = whole(p_at(0))
    while kids := kin[node]:
        if max(ids[kid] for kid in kids) >= left.shape[-1]:
            raise ShapeError(f"a token id among {[ids[kid] for kid in kids]}", accepted=f"below {left.shape[-1]}")
        tokens, bars = [ids[kid] for kid in kids], [chances[kid] for kid in kids]
        q = None if mode == "det" or tree.q_full is None else tree.q_full[node]
        taken, left = _listed(left, tokens, bars) if q is None else _drawn(left, tokens, bars, q, mode)
        if taken is None:
            break
        node = kids[taken]
        path.append(node)
        left = whole(p_at(node))
    return Walk(tree.ids.new_tensor(path), draw(left, u[0].to(left.device)))


def reject(p: Tensor, token: Tensor, q: Tensor | None, mode: Mode) -> tuple[Tensor, Tensor | None]:
    """The distributions of the target and of the drafter for the next child, after one child was rejected.

    Args:
        p: `[..., V]`, what was left of the target's distribution before the child.
        token: `[...]` int64, the rejected child.
        q: `[..., V]`, what the child was drawn from; None for "det".
        mode: see `accept_tree`.
    """
    if mode == "det" or q is None:
        return residual_det(p, token), None
    left = residual(p, q)
    return left, residual_det(q, token) if mode == "without_replacement" else q


def draw(p: Tensor, u: Tensor) -> Tensor:
    """Draw one token per row by inverse CDF.

    Args:
        p: `[..., V]`, weights that need not sum to 1.
        u: `[...]` uniforms in `[0, 1)`.

    Returns:
        `[...]` int64, never a token without mass.
    """
    # A float32 sum over a large vocabulary is too coarse to find rare tokens by.
    cdf = p.cumsum(-1, dtype=p.dtype if p.device.type == "mps" else torch.float64)
    at = torch.searchsorted(cdf, (u.to(cdf.dtype) * cdf[..., -1]).unsqueeze(-1), right=True)
    at = at.clamp(max=p.shape[-1] - 1)
    # At the upper end rounding, and on devices a parallel sum, may point at a token beside the mass.
    return torch.where(p.gather(-1, at) > 0, at, p.argmax(-1, keepdim=True)).squeeze(-1)


def uniforms(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniforms in `[0, 1)` for a tensor's device, drawn where the generator lives."""
    device = like.device if generator is None else generator.device
    kind = torch.float32 if device.type == "mps" else torch.float64
    return torch.rand(shape, generator=generator, device=device, dtype=kind).to(like.device)


def _normalised(rest: Tensor, fallback: Tensor) -> Tensor:
    mass = rest.sum(-1, keepdim=True)
    none = mass <= 0
    return torch.addcmul(rest / (mass + none), fallback, none.to(rest.dtype))


def _listed(p: Tensor, tokens: list[int], bars: list[float]) -> tuple[int | None, Tensor]:
    """Try listed children: only their own mass is needed, so the vocabulary is touched once."""
    at = torch.tensor(tokens, device=p.device)
    *masses, rest = floats(torch.cat([p[at], p.sum(-1, keepdim=True)]))
    seen = set[int]()
    for place, (token, mass, bar) in enumerate(zip(tokens, masses, bars, strict=True)):
        mass = 0.0 if token in seen else mass
        if mass > 0 and bar * rest < mass:
            return place, p
        seen.add(token)
        rest -= mass
    return None, _normalised(p.index_fill(0, at, 0.0), p)


def _drawn(p: Tensor, tokens: list[int], bars: list[float], q: Tensor, mode: Mode) -> tuple[int | None, Tensor]:
    """Try drawn children: each rejection leaves another distribution."""
    rest: Tensor | None = q.to(p)
    for place, (token, bar) in enumerate(zip(tokens, bars, strict=True)):
        assert rest is not None
        if bar * float(rest[token]) < float(p[token]):
            return place, p
        p, rest = reject(p, torch.tensor(token, device=p.device), rest, mode)
    return None, p
