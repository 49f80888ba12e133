"""The losses of FastDraft: what their gradients are, and that buckets keep a divergence a divergence."""

import pytest
import torch

from remnant.errors import ConfigError, ShapeError
from remnant.speculative.fastdraft.losses import buckets, distillation_loss, kl, mask_padding, tvd


def logits(n: int, v: int, seed: int, grad: bool = False) -> torch.Tensor:
    made = torch.randn(n, v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    return made.requires_grad_(grad)


def test_gradient_of_tvd_is_that_of_half_the_absolute_difference():
    p = logits(7, 33, 0).softmax(-1)
    one, two = logits(7, 33, 1, grad=True), logits(7, 33, 1, grad=True)
    tvd(p, one.softmax(-1)).sum().backward()
    half = (p - two.softmax(-1)).abs().sum(-1) / 2
    half.sum().backward()
    assert one.grad is not None
    assert two.grad is not None
    torch.testing.assert_close(tvd(p, one.softmax(-1)), half)
    torch.testing.assert_close(one.grad, two.grad, atol=1e-12, rtol=0)
    # And the same once more by hand: q_j (s_j - sum s q) / 2 with s the sign of q - p.
    q = one.softmax(-1).detach()
    sign = (q - p).sign()
    torch.testing.assert_close(one.grad, q * (sign - (sign * q).sum(-1, keepdim=True)) / 2, atol=1e-12, rtol=0)


def test_one_minus_tvd_is_the_probability_of_acceptance():
    p, q = logits(5, 12, 2).softmax(-1), logits(5, 12, 3).softmax(-1)
    torch.testing.assert_close(1 - tvd(p, q), torch.minimum(p, q).sum(-1))
    assert tvd(p, p).abs().max() < 1e-12


def test_kl_by_hand_and_with_zeros():
    p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.5, 0.25]])
    assert kl(p, q).item() == pytest.approx(0.5 * torch.log(torch.tensor(2.0)).item())
    assert torch.isfinite(kl(p, torch.tensor([[1.0, 0.0, 0.0]]))).all()


def test_buckets_sum_to_one_and_never_raise_a_divergence():
    p, q = logits(40, 50, 4).softmax(-1), logits(40, 50, 5).softmax(-1)
    ids = p.topk(6).indices
    small, other = buckets(p, ids), buckets(q, ids)
    torch.testing.assert_close(small.sum(-1), torch.ones(40, dtype=torch.float64))
    assert small.shape == (40, 7)
    for divergence in (kl, tvd):
        assert (divergence(small, other) <= divergence(p, q) + 1e-12).all()
        assert (divergence(small, other) >= 0).all()
    # Without the bucket for the rest it is no divergence: the top of these two would give a negative one.
    p, q = torch.tensor([[0.4, 0.3, 0.3]]), torch.tensor([[0.6, 0.4, 0.0]])
    ids = torch.tensor([[0, 1]])
    assert kl(p[:, :2], q[:, :2]).item() < 0 < kl(buckets(p, ids), buckets(q, ids)).item()
    with pytest.raises(ShapeError, match="accepted"):
        buckets(p, ids.expand(3, 2))


def test_a_target_all_of_whose_mass_is_in_the_top_gives_finite_gradients():
    sharp = torch.zeros(2, 9)
    sharp[:, 3] = 200.0
    q = torch.zeros(2, 9, requires_grad=True)
    distillation_loss("kl", q, torch.tensor([3, 3]), sharp, top=2).backward()
    assert q.grad is not None
    assert torch.isfinite(q.grad).all()
    assert (q.grad[:, 3] < 0).all()


@pytest.mark.parametrize("name", ["kl", "tvd", "ce+kl", "ce+tvd"])
def test_padding_of_the_target_counts_for_nothing_and_of_the_drafter_is_unlearned(name: str):
    target = logits(6, 10, 6).float()
    loud = torch.cat([target[:, :8], torch.full((6, 2), 50.0)], -1)
    draft = torch.zeros(6, 10, requires_grad=True)
    labels = target[:, :8].argmax(-1)
    told = distillation_loss(name, draft, labels, loud, real=8)
    assert told.item() == distillation_loss(name, draft, labels, target, real=8).item()
    told.backward()
    assert draft.grad is not None
    assert (draft.grad[:, 8:] > 0).all()  # a step against it lowers padding
    assert mask_padding(loud, 8).softmax(-1)[:, 8:].sum() == 0
    assert mask_padding(loud, 10) is loud


def test_halves_and_bad_input():
    target, draft = logits(4, 7, 7).float(), logits(4, 7, 8).float()
    labels = torch.tensor([0, 1, 2, 3])
    ce, both = (distillation_loss(name, draft, labels, target) for name in ("ce", "ce+tvd"))
    assert both.item() == pytest.approx((ce + distillation_loss("tvd", draft, labels, target)).item() / 2)
    full = distillation_loss("kl", draft, labels, target, top=7)
    assert full.item() == distillation_loss("kl", draft, labels, target).item()
    with pytest.raises(ConfigError, match="target_logits"):
        distillation_loss("kl", draft, labels)
    with pytest.raises(ConfigError, match="ce\\+kl"):
        distillation_loss("jsd", draft, labels, target)
