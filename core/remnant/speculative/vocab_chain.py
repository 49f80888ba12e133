"""How far the drafts get of a drafter that is fed by itself, such as an EAGLE-3 head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from remnant.progress import Progress, silent
from remnant.speculative.vocab_counts import Tokens
from remnant.speculative.vocab_map import VocabMap
from remnant.speculative.vocab_measure import Forward, drafted, overlaps

__all__ = ["Chain", "measure_chain"]

Chain = Callable[[Tensor, int], Sequence[Tensor]]
"""Token ids and a number of steps -> what `Forward` gives, for each draft of a chain that was right so far."""


def measure_chain(
    target: Forward,
    chain: Chain,
    texts: Iterable[Tokens],
    maps: Sequence[VocabMap],
    steps: int,
    temperature: float = 1.0,
    progress: Progress = silent,
) -> list[list[float]]:
    """How far drafts get that are fed by the drafter itself, over the blocks that a text falls into.

    A block begins where the one before ended, so that hard places begin more blocks than easy ones; a mean over all
    places would promise too much. Exact for greedy decoding and text that the target wrote greedily. Elsewhere an
    estimate: a draft that is accepted is taken to be the text's next token.

    Args:
        target: as in `measure`.
        chain: the untrimmed drafter.
        texts: those with `steps` tokens that count, one after the other.
        maps: kept sets.
        steps: drafts of a chain.
        temperature: of both; 0 is greedy.
        progress: called with tokens read.

    Returns:
        A row per map: how often the first draft is accepted, the first two, and so on; 1 and their sum is the block
        efficiency. Nothing where no text is long enough.
    """
    texts, done = list(texts), 0
    total, sums, places = (
        sum(len(tokens.ids) for tokens in texts),
        torch.zeros(len(maps), steps).double(),
        torch.zeros(len(maps), 1).double(),
    )
    for tokens in texts:
        ids, done = tokens.ids[None], done + len(tokens.ids)
        with torch.no_grad():
            z, drafts = target(ids)[0, :-1], [zq[0, :-1] for zq in chain(ids, steps)]
        counts = torch.ones(len(z), dtype=torch.bool) if tokens.counted is None else tokens.counted[1:].cpu()
        starts = drafted(drafts[0]).cpu()[: max(0, len(z) - steps + 1)]
        for i in range(steps):
            starts = starts & counts[i : i + len(starts)]
        if bool(starts.any()):
            found = torch.stack([overlaps(z, zq, maps, temperature) for zq in drafts], 1)  # [maps, steps, T]
            reach = torch.stack([found[:, i, i : i + len(starts)] for i in range(steps)], 1).cumprod(1)
            begun = _begun(reach, starts)
            sums, places = sums + (begun[:, None] * reach).sum(-1), places + begun.sum(-1, keepdim=True)
        progress(done, total, "following the drafts")
    return [[float(x) for x in row] for row in sums / places] if bool(places.all()) else []


def _begun(reach: Tensor, starts: Tensor) -> Tensor:
    """How often a block begins at each place, `[maps, T]`, of how far drafts get from there, `[maps, steps, T]`."""
    maps, steps, length = reach.shape
    ones, none = reach.new_ones(maps, 1, length), reach.new_zeros(maps, 1, length)
    right = torch.cat([ones, reach], 1) - torch.cat([reach, none], 1)  # so many drafts are right, and no more
    begun = reach.new_zeros(maps, length + steps + 1)
    begun[:, 0] = 1
    for i in range(length):
        if bool(starts[i]):
            begun[:, i + 1 : i + steps + 2] += begun[:, i : i + 1] * right[:, :, i]
        else:
            begun[:, i + 1] += begun[:, i]
    return begun[:, :length] * starts
