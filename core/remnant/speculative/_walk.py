"""Walks over drafts that ask for a distribution only where they come by, so that a host may make it only there.

A walk is a generator: it yields the node whose distribution it wants, the root first, is sent that distribution, and
returns the accepted nodes and what the next token is to be drawn from. Nothing of a distribution is kept while the next
one is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from remnant.speculative._checks import Mode, check_kids, check_values, check_walk, whole, wide
from remnant.speculative._draws import normalised, reject, residual, residual_det
from remnant.speculative._lists import floats, ints

if TYPE_CHECKING:
    from remnant.speculative.tree import Tree

__all__ = ["best_steps", "chain_steps", "follow", "tree_steps"]

_S = TypeVar("_S")
_R = TypeVar("_R")


def follow(steps: Generator[int, _S, _R], answer: Callable[[int], _S]) -> _R:
    """Take a walk to its end, with a function of the node for what it asks."""
    node = next(steps)
    while True:
        try:
            node = steps.send(answer(node))
        except StopIteration as end:
            return end.value


def tree_steps(tree: Tree, mode: Mode, u: Tensor) -> Generator[int, Tensor, tuple[list[int], Tensor]]:
    """A walk from the root of a tree through accepted children; wants probabilities `[V]`, leaves `[V]` float64.

    Args:
        tree: n nodes.
        mode: as of `accept_tree`.
        u: `[n]` uniforms; entry i decides node i.
    """
    check_walk(tree, mode, u)
    ids, chances, kin = ints(tree.ids), floats(u), tree.family()
    node, path = 0, list[int]()
    while True:
        left = whole((yield node))
        kids = kin[node]
        taken = None
        if kids:
            tokens, bars = [ids[kid] for kid in kids], [chances[kid] for kid in kids]
            q = None if mode == "det" or tree.q_full is None else whole(tree.q_full[node], "draft")
            check_kids(tokens, left, q)
            taken, left = _listed(left, tokens, bars) if q is None else _drawn(left, tokens, bars, q, mode)
        if taken is None:
            return path, left
        node = kids[taken]
        path.append(node)
        del left


def chain_steps(ids: Tensor, q: Tensor | None, u: Tensor) -> Generator[int, Tensor, tuple[list[int], Tensor]]:
    """A walk along a chain, by the rule and the uniforms of `accept_chain`; node i stands behind i drafted tokens.

    Args:
        ids: `[g]` int64, drafted tokens.
        q: `[g, Vq]`, what they were drawn from, over the first `Vq` of the target's tokens; None: they were named.
        u: `[g]` or more uniforms; entry i decides drafted token i.
    """
    tokens, chances, none = ints(ids), floats(u), ids.new_zeros(1)
    for place, token in enumerate(tokens):
        p = wide((yield place))
        check_values(ids[None, place : place + 1].to(p.device), p[None, None], none.to(p.device))
        drawn = None if q is None else wide(q[place])
        bar = chances[place] * (1.0 if drawn is None else float(drawn[token]))
        if not bar < float(p[token]):
            return list(range(1, place + 1)), _rest(p, token, drawn)
        del p
    p = wide((yield len(tokens)))
    check_values(ids[None, :0].to(p.device), p[None, None], none.to(p.device))
    return list(range(1, len(tokens) + 1)), p


def best_steps(tokens: list[int], kin: list[list[int]]) -> Generator[int, int, tuple[list[int], int]]:
    """A walk for a target that always takes its best token; wants that token, leaves the one that was not drafted.

    Args:
        tokens: per node, the root first.
        kin: children of each node.
    """
    node, path = 0, list[int]()
    while True:
        best = yield node
        below = next((kid for kid in kin[node] if tokens[kid] == best), None)
        if below is None:
            return path, best
        node = below
        path.append(node)


def _rest(p: Tensor, token: int, q: Tensor | None) -> Tensor:
    """What is left after a token of a chain was rejected."""
    if q is None:
        return residual_det(p, torch.tensor(token, device=p.device))
    padded = torch.zeros_like(p)
    padded[: q.shape[0]] = q
    return residual(p, padded)


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
    return None, normalised(p.index_fill(0, at, 0.0), p)


def _drawn(p: Tensor, tokens: list[int], bars: list[float], q: Tensor, mode: Mode) -> tuple[int | None, Tensor]:
    """Try drawn children: each rejection leaves another distribution."""
    rest: Tensor | None = q.to(p)
    for place, (token, bar) in enumerate(zip(tokens, bars, strict=True)):
        assert rest is not None
        if bar * float(rest[token]) < float(p[token]):
            return place, p
        p, rest = reject(p, torch.tensor(token, device=p.device), rest, mode)
    return None, p
