"""Gated attention, capacity and distillation against their definitions, forward and backward."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from remnant.errors import ConfigError
from remnant.kv.gate_attention import (
    gated_attention,
    naive_gated_attention,
    naive_selected_attention,
    selected_attention,
)
from remnant.kv.gate_training import capacity_loss, choice, distillation, naive_retained, retained

B, H, G, D, DV = 2, 2, 2, 6, 4


def tensors(s: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(s)
    q = torch.randn(B, H * G, s, D, generator=rng, dtype=dtype)
    k = torch.randn(B, H, s, D, generator=rng, dtype=dtype)
    v = torch.randn(B, H, s, DV, generator=rng, dtype=dtype)
    log_beta = -torch.rand(B, H, s, generator=rng, dtype=dtype)
    return q, k, v, log_beta


VARIANTS: list[dict[str, Any]] = [
    {},
    {"scale": 0.3},
    {"form": "multiplicative"},
    {"softcap": 2.0},
    {"sinks": torch.tensor([0.1, -0.5, 1.0, 0.0], dtype=torch.float64)},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("s", [1, 5, 11])
def test_blocks_equal_the_whole(options: dict[str, Any], s: int):
    got = gated_attention(*tensors(s), **options, block=4)
    torch.testing.assert_close(got, naive_gated_attention(*tensors(s), **options))


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(o) or "plain")
def test_gradients(options: dict[str, Any]):
    inputs = [x[:1].detach().requires_grad_() for x in tensors(3)]
    assert torch.autograd.gradcheck(lambda *x: gated_attention(*x, **options, block=2), inputs)


@pytest.mark.parametrize("cut", [0, 4, 11])
@pytest.mark.parametrize("options", [o for o in VARIANTS if "form" not in o], ids=lambda o: "-".join(o) or "plain")
def test_selected_in_blocks_equals_the_whole(options: dict[str, Any], cut: int):
    got = selected_attention(*tensors(11), cut, **options, block=4)
    torch.testing.assert_close(got, naive_selected_attention(*tensors(11), cut, **options))


@pytest.mark.parametrize("options", [o for o in VARIANTS if "form" not in o], ids=lambda o: "-".join(o) or "plain")
def test_selected_gradients(options: dict[str, Any]):
    inputs = [x[:1].detach().requires_grad_() for x in tensors(3)]
    assert torch.autograd.gradcheck(
        lambda q, k, v, bias: selected_attention(q, k, v, bias, 1, **options, block=2), inputs
    )


def test_selected_without_a_key_is_without_it():
    q, k, v, _ = tensors(5)
    bias = torch.zeros(B, H, 5, dtype=torch.float64)
    bias[:, :, 1] = -60.0
    out = selected_attention(q, k, v, bias, 3)
    rest = [0, 2, 3, 4]
    keys, values = (x[:, :, rest].repeat_interleave(G, 1) for x in (k, v))
    left = F.scaled_dot_product_attention(q[:, :, 4:], keys, values)
    torch.testing.assert_close(out[:, :, 4:], left)
    torch.testing.assert_close(out[:, :, :3], gated_attention(q, k, v, bias * 0.0)[:, :, :3])


@pytest.mark.parametrize(("share", "total"), [("head", 3), ("layer", 6)])
def test_choice_keeps_the_budget(share: Any, total: int):
    log_beta = tensors(20)[3].requires_grad_()
    kept = choice(log_beta, 16, 3, share).exp()
    assert kept.shape == log_beta.shape
    assert (kept[..., 16:] == 1).all()
    sums = kept[..., :16].sum(-1) if share == "head" else kept[..., :16].sum((1, 2))
    torch.testing.assert_close(sums, torch.full_like(sums, total))
    # What competes cannot be raised as a whole.
    (grad,) = torch.autograd.grad(sums.sum(), log_beta)
    assert grad.abs().max() < 1e-6


def test_a_hard_choice_is_the_top_of_the_faded_scores():
    log_beta = tensors(20)[3]
    kept = choice(log_beta, 16, 3, "head", width=1e-3).exp() > 0.5
    scores = log_beta[..., :16] * (17 - torch.arange(16))
    wanted = torch.zeros_like(kept).scatter(2, scores.topk(3, -1).indices, True)
    assert torch.equal(kept[..., :16], wanted[..., :16])


def test_choice_above_the_length_changes_nothing():
    assert (choice(tensors(8)[3], 4, 4) == 0).all()


def test_choice_gradients():
    inputs = [tensors(9)[3][:1].requires_grad_()]
    # The distance that scales the softness counts as fixed, so the step is taken along scores that keep it.
    kept = choice(inputs[0], 6, 2, "head")
    (grad,) = torch.autograd.grad(kept[..., 5].sum(), inputs[0])
    assert (grad[..., 5] > 0).all()
    assert (grad[..., :5] <= 0).all()


def test_capacity_does_not_count_padding():
    log_beta = tensors(6)[3]
    real = torch.arange(6).expand(B, 6) < 4
    padded = capacity_loss(log_beta, [1, 2], "head", real=real)
    torch.testing.assert_close(padded, capacity_loss(log_beta[..., :4], [1, 2], "head"))


def test_definition():
    q, k, v, log_beta = (x[:1, :1] for x in tensors(3))
    out = gated_attention(q, k, v, log_beta)[0, 0]
    logits = [q[0, 0, 2] @ k[0, 0, i] * D**-0.5 + (2 - i) * log_beta[0, 0, i] for i in range(3)]
    torch.testing.assert_close(out[2], torch.stack(logits).softmax(0) @ v[0, 0])


@pytest.mark.parametrize("form", ["additive", "multiplicative"])
def test_gates_of_one_are_plain_attention(form: Any):
    q, k, v, _ = tensors(9)
    plain = F.scaled_dot_product_attention(q, k.repeat_interleave(G, 1), v.repeat_interleave(G, 1), is_causal=True)
    got = gated_attention(q, k, v, torch.zeros(B, H, 9, dtype=q.dtype), form=form, block=4)
    torch.testing.assert_close(got, plain)


def test_forms_forget_differently():
    """Gates of zero remove every old key in the additive form and leave it a weight of exp(0) in the other."""
    q, k, v, log_beta = tensors(6)
    none = torch.full_like(log_beta, -1e3)
    torch.testing.assert_close(gated_attention(q, k, v, none)[:, ::G], v)
    assert (gated_attention(q, k, v, none, form="multiplicative")[:, ::G] - v).abs().max() > 0.1


@pytest.mark.parametrize("additive", [False, True])
def test_mask_on_top_of_causality(additive: bool):
    s, (q, k, v, log_beta) = 7, tensors(7)
    mask = torch.ones(B, 1, s, s, dtype=torch.bool)
    mask[0, :, 2:, :2] = False
    given = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min) if additive else mask
    got = gated_attention(q, k, v, log_beta, mask=given, block=3)
    short = gated_attention(q[:1, :, 2:], k[:1, :, 2:], v[:1, :, 2:], log_beta[:1, :, 2:])
    torch.testing.assert_close(got[:1, :, 2:], short)
    torch.testing.assert_close(got[1:], gated_attention(q[1:], k[1:], v[1:], log_beta[1:]))


def test_float32_is_close_at_length():
    q, k, v, log_beta = tensors(600, torch.float32)
    got = gated_attention(q, k, v, log_beta * 5)
    exact = naive_gated_attention(q.double(), k.double(), v.double(), log_beta.double() * 5)
    assert (got - exact).abs().max() < 2e-4


def test_half_precision_models_are_gated_in_float32():
    q, k, v, log_beta = tensors(9, torch.float32)
    got = gated_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), log_beta)
    assert got.dtype == torch.float32


def test_unknown_form():
    with pytest.raises(ConfigError, match="additive, multiplicative"):
        gated_attention(*tensors(3), form="other")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("s", [1, 4, 9])
def test_retained(s: int):
    log_beta = tensors(s)[3]
    torch.testing.assert_close(retained(log_beta, block=4), naive_retained(log_beta))
    torch.testing.assert_close(retained(torch.zeros(1, 1, s), 4)[0, 0], torch.arange(1.0, s + 1))


def test_retained_of_equal_gates_is_a_geometric_sum():
    beta, s = 0.5, 8
    got = retained(torch.full((1, 1, s), beta, dtype=torch.float64).log())[0, 0]
    torch.testing.assert_close(got, (1 - beta ** torch.arange(1, s + 1, dtype=torch.float64)) / (1 - beta))


def test_retained_gradients():
    log_beta = tensors(7)[3].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: retained(x, 3), [log_beta])
    assert torch.autograd.gradcheck(lambda x: capacity_loss(x, [1, 2], block=3), [log_beta])


def test_capacity_by_hand():
    # Held 1, 2, 3, 4 of a cache of 2: mean of 0, 0, 1/3, 2/4; of a cache of 4: nothing.
    held = torch.zeros(1, 1, 4)
    torch.testing.assert_close(capacity_loss(held, [2]), torch.tensor((1 / 3 + 2 / 4) / 4))
    torch.testing.assert_close(capacity_loss(held, [2, 4]), torch.tensor((1 / 3 + 2 / 4) / 8))
    uneven = torch.stack([torch.zeros(4), torch.full((4,), -1e3)]).view(1, 2, 4)
    # Heads of 4 and 1 tokens at the end hold 2.5 on average.
    torch.testing.assert_close(capacity_loss(uneven, [2]), torch.tensor((1 / 3 + 2 / 4) / 8))
    torch.testing.assert_close(capacity_loss(uneven, [2], "layer"), torch.tensor(0.5 / 4 / 4))


def test_distillation():
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 5, generator=rng) for _ in range(2))
    labels, weights = torch.tensor([1, -100, 4, 0]), torch.tensor([1.0, 3.0, 0.0, 1.0])
    kl, ce = distillation(student, teacher, labels, weights)
    each = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl, (each[0] + 3 * each[1] + each[3]) / 5)
    torch.testing.assert_close(ce, F.cross_entropy(student[[0, 3]], labels[[0, 3]]))
    assert distillation(teacher, teacher, labels, weights)[0] == 0
    assert not any(torch.isnan(x) for x in distillation(student, teacher, labels, torch.zeros(4)))


def test_no_square_is_kept(monkeypatch: pytest.MonkeyPatch):
    """What the backward pass holds grows with S, not with its square."""
    s = 64

    def held(options: dict[str, Any]) -> int:
        sizes: list[int] = []

        def note(x: Tensor) -> Tensor:
            sizes.append(x.numel())
            return x

        q, k, v, log_beta = (x.requires_grad_() for x in tensors(s))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            out = gated_attention(q, k, v, log_beta, **options, block=8).sum() + retained(log_beta, 8).sum()
        out.backward()
        return max(sizes)

    assert held({"form": "multiplicative"}) < B * H * G * s * s
    assert held({"softcap": 3.0}) < B * H * G * s * s
