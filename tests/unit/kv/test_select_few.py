"""Dropping few of many takes another way to the threshold; both ways must mark the same slots."""

import pytest
import torch

from remnant.kv.select import top_mask


@pytest.mark.parametrize("s", [1, 2, 7, 64, 65])
@pytest.mark.parametrize("values", ["distinct", "ties", "infinite"])
def test_the_threshold_from_below_equals_the_one_from_above(s: int, values: str):
    g = torch.Generator().manual_seed(s)
    scores = torch.randn(2, 3, s, generator=g)
    if values == "ties":
        scores = torch.randint(0, 3, (2, 3, s), generator=g).float()
    elif values == "infinite":
        scores[..., : s // 2], scores[..., s - s // 4 :] = float("-inf"), float("inf")
    positions = torch.stack([torch.randperm(s, generator=g) for _ in range(6)]).view(2, 3, s)
    for k in range(s + 1):
        got = top_mask(scores, k, positions)
        assert torch.equal(got, top_mask(scores, torch.full((2, 3), k), positions))
        for row, score, pos in zip(got.view(6, s), scores.view(6, s), positions.view(6, s), strict=True):
            best = sorted(range(s), key=lambda i: (float(score[i]), int(pos[i])), reverse=True)[:k]
            assert row.nonzero().flatten().tolist() == sorted(best)
