"""A tree of drafted tokens: the root is the last emitted token, every path from it is one guess."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from remnant.errors import ConfigError, ShapeError
from remnant.speculative._lists import ints

__all__ = ["Tree"]


@dataclass(frozen=True, eq=False)
class Tree:
    """n nodes, parents before children.

    Args:
        ids: `[n]` int64, token of each node; `ids[0]` is the last emitted token.
        parent: `[n]` int32, index of each node's parent; -1 for the root, which comes first.
        depth: `[n]` integers, steps from the root.
        q_node: `[n]`, the drafter's probability of each node given its parent, if known.
        q_full: `[n, V]`, the distribution from which each node's children were drawn; None if they were listed.

    Raises:
        ShapeError: shapes or dtypes do not fit each other.
        ConfigError: several roots, a child before its parent, or depths that do not follow from the parents.
    """

    ids: Tensor
    parent: Tensor
    depth: Tensor
    q_node: Tensor | None = None
    q_full: Tensor | None = None

    def __post_init__(self) -> None:
        """Check what every walk relies on."""
        n = self.ids.shape[0] if self.ids.dim() == 1 else 0
        if n == 0 or self.ids.dtype != torch.int64:
            raise ShapeError(
                f"tree ids of {self.ids.dtype} {tuple(self.ids.shape)}", accepted="int64 [n], n of 1 or more"
            )
        for name in ("parent", "depth"):
            x: Tensor = getattr(self, name)
            if x.shape != (n,) or x.is_floating_point() or x.dtype == torch.bool:
                raise ShapeError(f"tree {name} of {x.dtype} {tuple(x.shape)}", accepted=f"int32 [{n}]")
            object.__setattr__(self, name, x.to(torch.int32))
        if self.q_node is not None and self.q_node.shape != (n,):
            raise ShapeError(f"q_node of {tuple(self.q_node.shape)}", accepted=f"[{n}]")
        if self.q_full is not None and (self.q_full.dim() != 2 or self.q_full.shape[0] != n):
            raise ShapeError(f"q_full of {tuple(self.q_full.shape)}", accepted=f"[{n}, V]")
        self._check_order(ints(self.parent), ints(self.depth))

    @staticmethod
    def _check_order(parent: list[int], depth: list[int]) -> None:
        if parent[0] != -1 or depth[0] != 0:
            raise ConfigError(
                f"first node with parent {parent[0]} at depth {depth[0]}", accepted="the root: -1 at depth 0"
            )
        for node, above in enumerate(parent[1:], 1):
            if not 0 <= above < node:
                raise ConfigError(f"node {node} with parent {above}", accepted="one root, and parents before children")
            if depth[node] != depth[above] + 1:
                raise ConfigError(
                    f"node {node} at depth {depth[node]}", accepted=f"{depth[above] + 1}, its parent's plus 1"
                )

    @classmethod
    def of(cls, ids: Tensor, parent: Tensor, q_node: Tensor | None = None, q_full: Tensor | None = None) -> Tree:
        """A tree whose depths follow from its parents; arguments as in the class."""
        depth = list[int]()
        for node, above in enumerate(ints(parent)):
            depth.append(depth[above] + 1 if 0 <= above < node else 0)
        return cls(ids, parent, torch.tensor(depth, dtype=torch.int32, device=ids.device), q_node, q_full)

    @classmethod
    def chain(cls, ids: Tensor, q_full: Tensor | None = None) -> Tree:
        """A tree without branches: `ids` `[n]` with the last emitted token first."""
        steps = torch.arange(ids.shape[0], dtype=torch.int32, device=ids.device)
        return cls(ids, steps - 1, steps, None, q_full)

    @classmethod
    def from_topk(
        cls, logits_fn: Callable[[Tensor], Tensor], depth: int, top_k: int, n: int, *, root: int | Tensor = 0
    ) -> Tree:
        """Grow a tree where the drafter is most certain; `Growth` says how.

        Args:
            logits_fn: `[m, 1 + d]` int64 paths of d tokens, each beginning with the root -> `[m, V]` logits of what
                follows. Called once per level, with the level's nodes in order of likelihood.
            depth: levels below the root, at most.
            top_k: nodes expanded per level, and children of each.
            n: nodes that stay, the root among them.
            root: the last emitted token.

        Returns:
            A tree with `q_node`, level by level, siblings by falling probability; of equally likely nodes the parent,
            then the earlier one, then the smaller id stays.

        Raises:
            ConfigError: a number below its bound.
            ShapeError: logits for another number of paths, or NaN.

        Source: Li et al. 2024 (EAGLE-2), arXiv 2406.16858, sections 4.1 and 4.2.
        """
        from remnant.speculative.growth import Growth

        growth = Growth(root, depth, top_k, n)
        while not growth.done:
            growth.feed(logits_fn(growth.paths))
        return growth.tree()

    def __len__(self) -> int:
        """Nodes, the root among them."""
        return self.ids.shape[0]

    def mask(self) -> Tensor:
        """Which nodes each node sees: its ancestors and itself, `[n, n]` bool."""
        n = len(self)
        seen = torch.eye(n, dtype=torch.bool, device=self.ids.device)
        above, rows = self.parent.long(), torch.arange(n, device=self.ids.device)
        parents = above
        for _ in range(int(self.depth.max())):
            has = above >= 0
            seen[rows[has], above[has]] = True
            above = torch.where(has, parents[above.clamp(min=0)], above)
        return seen

    def positions(self, L: int | Tensor) -> Tensor:
        """Position of each node, `[n]` int64, in a text where `L` tokens precede the root."""
        return self.depth.long() + L

    def family(self) -> list[list[int]]:
        """The children of every node, in the order in which they are tried."""
        kin: list[list[int]] = [[] for _ in range(len(self))]
        for node, above in enumerate(ints(self.parent)):
            if above >= 0:
                kin[above].append(node)
        return kin

    def children(self, i: int) -> Tensor:
        """Nodes below node i, `[c]` int64, in the order in which they are tried.

        Raises:
            ConfigError: there is no node i.
        """
        self._check_nodes([i])
        return (self.parent == i).nonzero().flatten()

    def path(self, i: int) -> list[int]:
        """Nodes from the root to node i, both among them.

        Raises:
            ConfigError: there is no node i.
        """
        self._check_nodes([i])
        parent = ints(self.parent)
        nodes = [i]
        while parent[nodes[-1]] >= 0:
            nodes.append(parent[nodes[-1]])
        return nodes[::-1]

    def prune(self, keep: Tensor) -> Tree:
        """The tree of the kept nodes, in their order.

        Args:
            keep: `[n]` bool, or int64 indices.

        Raises:
            ConfigError: a node is kept whose parent is not, or the root is not; or there is no such node.
            ShapeError: neither a mask over the nodes nor indices.
        """
        mask = keep
        if keep.is_floating_point() or keep.dim() != 1:
            raise ShapeError(f"keep of {keep.dtype} {tuple(keep.shape)}", accepted=f"bool [{len(self)}], or indices")
        if keep.dtype != torch.bool:
            self._check_nodes(ints(keep))
            keep = keep.long()
            mask = torch.zeros(len(self), dtype=torch.bool, device=self.ids.device).index_fill(0, keep, True)
        if mask.shape != (len(self),):
            raise ShapeError(f"keep of {tuple(keep.shape)}", accepted=f"bool [{len(self)}], or indices")
        above = self.parent.long()
        if not bool(mask[0]) or bool((mask[1:] & ~mask[above[1:]]).any()):
            raise ConfigError("a node without its parent, or no root", accepted="nodes that include every ancestor")
        moved = torch.cat([mask.long().cumsum(0) - 1, above.new_tensor([-1])])  # the last entry serves the root's -1
        q_node = None if self.q_node is None else self.q_node[mask]
        q_full = None if self.q_full is None else self.q_full[mask]
        return Tree(self.ids[mask], moved[above[mask]].int(), self.depth[mask], q_node, q_full)

    def _check_nodes(self, nodes: list[int]) -> None:
        outside = [node for node in nodes if not 0 <= node < len(self)]
        if outside:
            raise ConfigError(f"node {outside[0]}", accepted=f"0 to {len(self) - 1}")

    def retrieve(self) -> Tensor:
        """The path to every leaf, `[leaves, depth + 1]` int64 node indices, root first, padded with -1."""
        kin = self.family()
        paths = [self.path(node) for node in range(len(self)) if not kin[node]]
        width = max(map(len, paths))
        return self.ids.new_tensor([path + [-1] * (width - len(path)) for path in paths])
