"""How likely a drafted token is accepted, by its place: what is assumed, what is measured, which is believed."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from remnant.errors import ConfigError

__all__ = ["Acceptance", "Calibration", "Node", "best_nodes", "common_acceptance", "select_nodes"]

Node = tuple[int, ...]
"""A node by the ranks on the way to it: `(0,)` is the best first token, `(0, 1)` the second best after that."""


@dataclass(frozen=True)
class Acceptance:
    """Probability that a candidate is the token that comes, given that its parent was.

    Args:
        table: per depth, per rank of the candidate among its siblings; a row sums to 1 at most.

    Raises:
        ConfigError: the table is empty or ragged, or a row is no part of a distribution.
    """

    table: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        """Check the table."""
        if not self.table or not self.table[0] or len({len(row) for row in self.table}) != 1:
            raise ConfigError("an acceptance table that is empty or ragged", accepted="[depth][rank], all rows as long")
        for depth, row in enumerate(self.table):
            if not all(0 <= value <= 1 for value in row) or sum(row) > 1 + 1e-9:
                raise ConfigError(f"acceptance {row} at depth {depth}", accepted="0 to 1, summing to 1 at most")

    @staticmethod
    def constant(first: float, depth: int = 16, ranks: int = 1, decay: float = 0.35) -> Acceptance:
        """The same at every depth; rank r has `decay ** r` of the first one's, cut so that a row sums to 1 at most.

        Args:
            first: of the best candidate, 0 to 1.
            depth: levels.
            ranks: candidates per node; 1 makes chains.
            decay: of the ranks, 0 to 1.
        """
        row: list[float] = []
        for rank in range(ranks):
            row.append(max(0.0, min(first * decay**rank, 1 - math.fsum(row))))
        return Acceptance((tuple(row),) * depth)

    @property
    def depth(self) -> int:
        """Levels."""
        return len(self.table)

    @property
    def ranks(self) -> int:
        """Candidates per node."""
        return len(self.table[0])

    def path(self, node: Node) -> float:
        """Probability that a node and all above it are accepted."""
        return math.prod(self.table[depth][rank] for depth, rank in enumerate(node))


def best_nodes(acceptance: Acceptance, n: int) -> list[Node]:
    """The n - 1 nodes below the root that are accepted most often, best first; always closed under parents.

    Fewer come back when the table has no more. Of equal ones the shallower comes first, then that of lower rank, so
    the nodes for n are the first of those for n + 1.

    Example: best_nodes(Acceptance(((0.6, 0.2), (0.5, 0.1))), 4) -> [(0,), (0, 0), (1,)]
    """
    order = [sorted(range(len(row)), key=lambda rank, row=row: (-row[rank], rank)) for row in acceptance.table]
    found: list[Node] = []
    heap: list[tuple[float, int, Node, int]] = []

    def push(parent: Node, above: float, place: int) -> None:
        depth = len(parent)
        if depth < len(order) and place < len(order[depth]):
            rank = order[depth][place]
            heapq.heappush(heap, (-above * acceptance.table[depth][rank], depth, (*parent, rank), place))

    push((), 1.0, 0)
    while heap and len(found) < n - 1:
        negative, depth, node, place = heapq.heappop(heap)
        found.append(node)
        push(node, -negative, 0)
        push(node[:-1], acceptance.path(node[:depth]), place + 1)
    return found


def select_nodes(parents: Sequence[int], scores: Sequence[float], n: int) -> list[int]:
    """Cut a drafted tree to n nodes, its root included: those with the highest cumulative score.

    Args:
        parents: per node, the index of its parent, -1 for the root; parents come before their children.
        scores: per node, its probability given its parent, 0 to 1 (the root's is ignored).
        n: nodes to keep, at least 1.

    Returns:
        Indices, ascending, closed under parents; ties favour the node that comes first.

    Raises:
        ConfigError: a node before its parent, or lists that do not fit.
    """
    if n < 1 or len(parents) != len(scores) or not parents:
        raise ConfigError(
            f"{len(parents)} parents, {len(scores)} scores, n={n}", accepted="as many, and n of 1 or more"
        )
    whole: list[float] = []
    for index, (parent, score) in enumerate(zip(parents, scores, strict=True)):
        if (parent < 0) != (index == 0) or parent >= index:
            raise ConfigError(f"node {index} with parent {parent}", accepted="the root first, parents before children")
        whole.append(1.0 if index == 0 else whole[parent] * min(1.0, score))
    ranked = sorted(range(len(whole)), key=lambda index: (-whole[index], index))
    return sorted(ranked[:n])


def common_acceptance(tables: Sequence[Acceptance], left: Sequence[int]) -> Acceptance:
    """One table for a batch, whose rows share one n: their mean, weighted by the tokens each still has to write.

    Args:
        tables: per row, all of one shape.
        left: per row, tokens; a finished row (0) has no say, unless all are finished.
    """
    shapes = {(table.depth, table.ranks) for table in tables}
    if len(shapes) != 1 or len(tables) != len(left) or min(left) < 0:
        raise ConfigError(f"tables of {sorted(shapes)} for {len(left)} rows", accepted="one per row, of one shape")
    weights = list(left) if any(left) else [1] * len(left)
    whole = sum(weights)
    depth, ranks = shapes.pop()
    return Acceptance(
        tuple(
            tuple(
                math.fsum(w * t.table[d][r] for w, t in zip(weights, tables, strict=True)) / whole for r in range(ranks)
            )
            for d in range(depth)
        )
    )


class Calibration:
    """Learns the acceptance of a drafter while it runs, and notices when it has moved.

    A new observation weighs `1 / (prior + count)` until that falls to `rate`: first a plain mean that starts from the
    assumed table, then an exponential moving average.

    Args:
        start: what is assumed before anything was seen.
        rate: weight of a new observation in the long run, 0 to 1.
        prior: observations that the assumption is worth.

    Source: the counts per depth and rank follow Cai et al. 2024 (Medusa), arXiv 2401.10774, section 3.3.
    """

    def __init__(self, start: Acceptance, rate: float = 0.02, prior: int = 8) -> None:
        """See the class."""
        if not 0 < rate <= 1 or prior < 1:
            raise ConfigError(f"rate={rate}, prior={prior}", accepted="0 < rate <= 1, prior of 1 or more")
        self.rate, self.prior = rate, prior
        self._values = [list(row) for row in start.table]
        self._counts = [0] * start.depth
        self._marked = self._levels()
        self._brier = [0.0, 0.0]
        self._judged = 0

    def table(self) -> Acceptance:
        """What is believed now."""
        return Acceptance(tuple(tuple(row) for row in self._values))

    def observe(self, depth: int, accepted: int | None, candidates: int = 1, probs: Sequence[float] = ()) -> None:
        """One walk came to a node at `depth - 1` and looked at its children.

        Args:
            depth: of the children, 0 for the root's; deeper ones than the table are ignored.
            accepted: rank of the child that was taken, None when none was.
            candidates: how many children there were; of further ranks nothing was learned.
            probs: the drafter's own probabilities of the children, if it reports them.
        """
        if accepted is not None and not 0 <= accepted < candidates:
            raise ConfigError(f"rank {accepted} of {candidates} candidates", accepted="a rank among them, or None")
        if depth >= len(self._values):
            return
        row = self._values[depth]
        for rank, prob in zip(range(candidates), probs, strict=False):
            self._judge(prob, row[rank] if rank < len(row) else 0.0, rank == accepted)
        self._counts[depth] += 1
        weight = max(self.rate, 1 / (self.prior + self._counts[depth]))
        for rank in range(min(candidates, len(row))):
            row[rank] += weight * ((rank == accepted) - row[rank])
        excess = math.fsum(row)  # ranks that were not looked at stay, and may be too much now
        if excess > 1:
            self._values[depth] = [value / excess for value in row]

    def observe_block(self, proposed: int, accepted: int) -> None:
        """One row of one verified chain: the places up to the first rejection were tested, the others were not."""
        if not 0 <= accepted <= proposed:
            raise ConfigError(f"{accepted} of {proposed} accepted", accepted="0 or more, and no more than proposed")
        for depth in range(min(accepted + 1, proposed)):
            self.observe(depth, 0 if depth < accepted else None)

    def drift(self) -> float:
        """Largest relative change of a level's acceptance since `mark`, a fraction of what it was then."""
        pairs = zip(self._levels(), self._marked, strict=True)
        return max(abs(now - before) / max(before, 1e-3) for now, before in pairs)

    def mark(self) -> None:
        """Take what is believed now as what a plan was made from."""
        self._marked = self._levels()

    @property
    def brier(self) -> tuple[float, float]:
        """Mean squared errors of (the drafter's own probabilities, the table), over the recent past."""
        return self._brier[0], self._brier[1]

    def probability(self, depth: int, rank: int, own: float | None = None) -> float:
        """Probability of a candidate given its parent: the drafter's own where that was the better guess so far."""
        row = self._values[min(depth, len(self._values) - 1)]
        known = row[rank] if rank < len(row) else 0.0
        trusted = own is not None and (not self._judged or self._brier[0] < self._brier[1])
        return own if trusted and own is not None else known

    def _judge(self, own: float, known: float, hit: bool) -> None:
        self._judged += 1
        weight = max(self.rate, 1 / self._judged)
        for place, guess in enumerate((own, known)):
            self._brier[place] += weight * ((guess - hit) ** 2 - self._brier[place])

    def _levels(self) -> list[float]:
        return [math.fsum(row) for row in self._values]
