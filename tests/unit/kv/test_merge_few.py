"""What a decoded token costs is computed another way than a whole prompt, with the same answer."""

from importlib import import_module

import pytest
import torch

from remnant.kv.merge import apply_merge, fold_one, make_merge, nearest, take
from remnant.kv.view import Keep


@pytest.mark.parametrize("contiguous", [True, False])
def test_taking_rows_equals_gather(contiguous):
    x = torch.randn(2, 3, 40, 8)
    x = x if contiguous else x[:, :, :30]
    slots = torch.randint(-1, x.shape[2], (2, 3, 17))
    index = slots.clamp(min=0).unsqueeze(-1).expand(2, 3, 17, 8)
    assert torch.equal(take(x, slots), x.gather(2, index))


def _drop(s, count, seed=0):
    """A random plan over two rows and three heads: what stays, ascending, and what goes."""
    order = torch.rand(2, 3, s, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    return order[..., count:].sort(-1).values, order[..., :count].sort(-1).values


def test_few_are_nearest_to_the_same_as_many(monkeypatch):
    k = torch.randn(2, 3, 64, 8, generator=torch.Generator().manual_seed(0))
    k[:, :, 10] = k[:, :, 40]  # equal similarities go to the later key
    kept, src = _drop(64, 20)
    many, at = nearest(k, src, kept)
    monkeypatch.setattr(import_module("remnant_kernels.nearest.fast"), "_FEW", 20)
    few, place = nearest(k, src, kept)
    assert not torch.equal(many, few)  # summed in another order
    assert torch.allclose(many, few, atol=1e-6)
    assert torch.equal(at, place)


@pytest.mark.parametrize("chosen", [True, False])
def test_folding_one_in_place_equals_the_whole_merge(chosen):
    v = torch.randn(2, 3, 33, 8)
    kept, src = _drop(33, 1)
    m, dst = nearest(torch.randn(2, 3, 33, 8), src, kept)
    pick = torch.tensor([[True, chosen, True], [chosen, True, chosen]]).unsqueeze(-1)
    merge = make_merge(src, dst, m, pick, kept.shape[-1])
    out = take(v, kept)
    fold_one(out, v, merge)
    assert torch.allclose(out, apply_merge(v, Keep(kept, merge=merge)), atol=1e-6)
