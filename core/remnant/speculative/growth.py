"""A tree while it grows, level by level, so that many rows can share each pass of a drafter."""

from __future__ import annotations

import torch
from torch import Tensor

from remnant.errors import ConfigError, ShapeError
from remnant.kv.select import top_mask
from remnant.speculative.tree import Tree

__all__ = ["Growth"]

_NEVER = float("-inf")


class Growth:
    """Grows a tree where the drafter is most certain: while not `done`, feed the logits of `paths`; then take `tree`.

    Each level expands the `top_k` likeliest nodes of the level before by `top_k` children; the `n - 1` likeliest nodes
    of all levels stay. Likely means by the product of probabilities along the path.

    Args:
        root: the last emitted token.
        depth: levels below the root, at most.
        top_k: nodes expanded per level, and children of each.
        n: nodes that stay, the root among them.

    Raises:
        ConfigError: a number below its bound.

    Source: Li et al. 2024 (EAGLE-2), arXiv 2406.16858, sections 4.1 and 4.2.
    """

    def __init__(self, root: int | Tensor, depth: int, top_k: int, n: int) -> None:
        """See the class."""
        if depth < 0 or top_k < 1 or n < 1:
            raise ConfigError(f"depth {depth}, top_k {top_k}, n {n}", accepted="depth of 0, top_k and n of 1 or more")
        self._depth, self._top_k, self._n = depth if n > 1 else 0, top_k, n
        self.paths = torch.as_tensor(root, dtype=torch.int64).reshape(1, 1)
        """`[m, 1 + d]` int64, the nodes that are expanded next, likeliest first, each with its path from the root."""
        self.above = torch.zeros(1, dtype=torch.int64)
        """`[m]` int64, for each of them its parent's row in the `paths` before; 0 for the root."""
        self._nodes = torch.zeros(1, dtype=torch.int64)  # where each of them stands among all nodes
        self._likely = torch.zeros(1, dtype=torch.float64)
        nodes = self._nodes
        self._levels = [(self.paths[0].cpu(), nodes - 1, nodes, self._likely, self._likely.exp())]
        self._size = 1

    @property
    def done(self) -> bool:
        """Whether nothing is left to expand."""
        return len(self._levels) > self._depth or not self.paths.shape[0]

    def feed(self, logits: Tensor) -> None:
        """Add a level.

        Args:
            logits: `[m, V]`, what follows each of `paths`; -inf bars a token.

        Raises:
            ShapeError: logits for another number of paths, or NaN.
        """
        m = self.paths.shape[0]
        if logits.dim() != 2 or logits.shape[0] != m:
            raise ShapeError(f"logits of {tuple(logits.shape)}", accepted=f"[{m}, V]")
        logp, ids = _best(logits, self._top_k)
        total = self._likely.unsqueeze(1) + logp
        real = total > _NEVER
        above = torch.arange(m).unsqueeze(1).expand_as(real)[real]
        ids, total, own = ids[real], total[real], logp[real].exp()
        level = torch.full_like(ids, len(self._levels))
        self._levels.append((ids, self._nodes[above], level, total, own))
        best = total.argsort(descending=True, stable=True)[: self._top_k]
        self.above, self._likely = above[best], total[best]
        device = self.paths.device
        self.paths = torch.cat([self.paths[self.above.to(device)], ids[best].unsqueeze(1).to(device)], 1)
        self._nodes, self._size = best + self._size, self._size + ids.shape[0]

    def tree(self) -> Tree:
        """The likeliest nodes so far: level by level, siblings by falling probability, with `q_node`.

        Of equally likely nodes the parent stays, then the earlier one, then the smaller id.
        """
        ids, parent, depth, likely, own = (torch.cat(part) for part in zip(*self._levels, strict=True))
        # A child is never likelier than its parent, which stands before it: the nodes that stay hold every ancestor.
        kept = likely.argsort(descending=True, stable=True)[: self._n].sort().values
        place = torch.zeros_like(parent)
        place[kept] = torch.arange(kept.shape[0])
        above = torch.where(parent[kept] < 0, -1, place[parent[kept]])
        parts = ids[kept], above.int(), depth[kept].int(), own[kept]
        return Tree(*(part.to(self.paths.device) for part in parts))


def _best(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The likeliest tokens of each row: log probabilities `[m, k]` float64 falling, and ids; ties by smaller id."""
    k = min(top_k, logits.shape[-1])
    logits = logits if logits.dtype == torch.float64 else logits.float()
    top = logits.topk(min(k + 1, logits.shape[-1]), dim=-1)
    if bool(top.values.isnan().any()):
        raise ShapeError("a logit is NaN", accepted="numbers, or -inf for what is barred")
    values, ids = top.values[:, :k], top.indices[:, :k]
    if top.values.shape[-1] > k and bool((top.values[:, k] == top.values[:, k - 1]).any()):
        order = -torch.arange(logits.shape[-1], device=logits.device).expand_as(logits)
        ids = top_mask(logits, k, order).nonzero()[:, -1].view(-1, k)
    ids = ids.sort(-1).values
    values, at = logits.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    whole = logits.logsumexp(-1, keepdim=True)
    # Rounding must not make a child likelier than its parent.
    return (values - whole).cpu().double().clamp(max=0), ids.gather(-1, at).cpu()
