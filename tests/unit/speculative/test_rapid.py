"""The tilts of RAPID: golden values of the spec, the gradient they come from, and what each mode really samples."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
np = pytest.importorskip("numpy", reason="needs the extra 'torch'")

from remnant.errors import ConfigError, ShapeError  # noqa: E402
from remnant.speculative.rapid import Tilt, tilt_geometric, tilt_kl, tilt_step  # noqa: E402

F64 = torch.float64
Z, ZQ = torch.tensor([2.0, 1.0, 0.0], dtype=F64), torch.tensor([0.0, 1.0, 2.0], dtype=F64)
INF = float("inf")
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=60, deadline=None)


def overlap(p, q):
    """Probability that a token drawn from q is accepted as one of p."""
    return torch.minimum(p, q).sum(-1)


def rows(seed, *shape, scale=2.0):
    source = torch.Generator().manual_seed(seed % 2**31)
    return scale * torch.randn(*shape, generator=source, dtype=F64)


def emitted(tilt, z, zq):
    """Distribution of one emitted token in closed form: accepted drafts, and corrections for the rest."""
    p, q, tilted = z.softmax(-1), zq.softmax(-1), tilt(z, zq).softmax(-1)
    kept = torch.minimum(tilted, q)
    return kept + (1 - kept.sum(-1, keepdim=True)) * tilt.residual(p, q, tilted)


def test_the_golden_values_of_the_step():
    p, q = Z.softmax(-1), ZQ.softmax(-1)
    tilted = tilt_step(Z, ZQ, 1.0).softmax(-1)
    torch.testing.assert_close(tilted, torch.tensor([0.480422, 0.314152, 0.205426], dtype=F64), atol=1e-6, rtol=0)
    assert overlap(p, q).item() == pytest.approx(0.424790, abs=1e-6)
    assert overlap(tilted, q).item() == pytest.approx(0.540185, abs=1e-6)
    exact = Tilt("exact", eta=1.0).residual(p, q, tilted)
    torch.testing.assert_close(exact, torch.tensor([0.849019, 0.150981, 0.0], dtype=F64), atol=1e-6, rtol=0)
    paper = Tilt("paper", eta=1.0).residual(p, q, tilted)
    torch.testing.assert_close(paper, torch.tensor([1.0, 0.0, 0.0], dtype=F64), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("lam", "wanted"), [(0.0, 0.424790), (0.25, 0.521083), (0.5, 0.668092), (0.75, 0.841239)])
def test_the_golden_values_of_the_geometric_tilt(lam, wanted):
    tilted = tilt_geometric(Z.log_softmax(-1), ZQ.log_softmax(-1), lam).exp()
    assert overlap(tilted, ZQ.softmax(-1)).item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("eta", "distance", "acceptance"), [(0.1, 0.006, 0.406), (1, 0.061, 0.451), (10, 0.171, 0.734), (50, 0.497, 0.503)]
)
def test_the_released_rule_samples_neither_and_ours_exactly_the_tilted(eta, distance, acceptance):
    """The twelve tokens that the figures of the specification were computed on."""
    source = np.random.default_rng(0)
    z, zq = (torch.from_numpy(2 * source.normal(size=12)) for _ in range(2))
    tilted = tilt_step(z, zq, eta).softmax(-1)
    assert overlap(tilted, zq.softmax(-1)).item() == pytest.approx(acceptance, abs=6e-4)
    paper = emitted(Tilt("paper", eta=eta), z, zq)
    assert (paper - tilted).abs().sum().item() / 2 == pytest.approx(distance, abs=6e-4)
    torch.testing.assert_close(emitted(Tilt("exact", eta=eta), z, zq), tilted, atol=1e-14, rtol=0)


@pytest.mark.parametrize("mode", ["target", "exact", "geometric", "kl"])
@few
@given(seed=seeds)
def test_every_other_mode_samples_what_it_says(mode, seed):
    z, zq = rows(seed, 4, 9), rows(seed + 1, 4, 9)
    tilt = Tilt(mode, eta=3.0, lam=0.4, delta=0.2)
    torch.testing.assert_close(emitted(tilt, z, zq), tilt(z, zq).softmax(-1), atol=1e-12, rtol=0)
    if mode == "target":
        torch.testing.assert_close(emitted(tilt, z, zq), z.softmax(-1), atol=1e-12, rtol=0)


def test_what_each_mode_promises():
    assert [m for m in ("target", "exact", "geometric", "kl", "paper") if Tilt(m).lossless] == ["target"]
    assert [m for m in ("target", "exact", "geometric", "kl", "paper") if Tilt(m).tilted_bonus] == [
        "exact",
        "geometric",
        "kl",
    ]


@pytest.mark.parametrize("T", [0.5, 1.0, 2.0])
def test_the_step_follows_the_gradient_of_the_distillation_loss(T):
    z, zq = rows(3, 7), rows(4, 7)

    def loss(x):
        teacher, student = (zq / T).log_softmax(-1), (x / T).log_softmax(-1)
        return T * T * (teacher.exp() * (teacher - student)).sum()

    h, eta = 1e-5, 0.3
    numeric = torch.stack([(loss(z + h * e) - loss(z - h * e)) / (2 * h) for e in torch.eye(7, dtype=F64)])
    step = (z - tilt_step(z, zq, eta, T=T, mask_alpha=0.0)) / eta
    torch.testing.assert_close(step, numeric, atol=1e-9, rtol=0)
    torch.testing.assert_close(step, T * ((z / T).softmax(-1) - (zq / T).softmax(-1)), atol=1e-14, rtol=0)


@few
@given(seed=seeds, eta=st.floats(0, 50), alpha=st.floats(0, 1), T=st.floats(0.2, 3))
def test_no_logit_moves_by_more_than_the_step_and_only_likely_ones_move(seed, eta, alpha, T):
    z, zq = rows(seed, 3, 11), rows(seed + 1, 3, 11)
    moved = tilt_step(z, zq, eta, T, alpha) - z
    assert moved.abs().max() <= eta * T + 1e-9
    q = (zq / T).softmax(-1)
    assert (moved[q < alpha * q.amax(-1, keepdim=True) - 1e-12].abs() == 0).all()


@few
@given(seed=seeds)
def test_a_small_tilt_is_a_small_change(seed):
    z, zq = rows(seed, 5, 8), rows(seed + 1, 5, 8)
    p = z.softmax(-1)
    for small in (1e-2, 1e-4, 1e-6, 0.0):
        for tilt in (Tilt("exact", eta=small), Tilt("geometric", lam=small), Tilt("paper", eta=small)):
            assert (tilt(z, zq).softmax(-1) - p).abs().sum(-1).max() <= 50 * small + 1e-12
        assert (emitted(Tilt("paper", eta=small), z, zq) - p).abs().sum(-1).max() <= 50 * small + 1e-12
    torch.testing.assert_close(tilt_kl(z, zq, 0.0)[0].exp(), p, atol=1e-9, rtol=0)


@few
@given(seed=seeds)
def test_names_of_tokens_mean_nothing(seed):
    z, zq = rows(seed, 2, 10), rows(seed + 1, 2, 10)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed % 2**31))
    for mode in ("exact", "geometric", "kl"):
        tilt = Tilt(mode, eta=4.0, delta=0.3)
        torch.testing.assert_close(tilt(z[:, order], zq[:, order]), tilt(z, zq)[:, order], atol=1e-9, rtol=1e-9)


@few
@given(seed=seeds, a=st.floats(0, 1), b=st.floats(0, 1), width=st.integers(2, 40))
def test_more_weight_never_lowers_the_acceptance(seed, a, b, width):
    z, zq = rows(seed, 4, width, scale=3.0).log_softmax(-1), rows(seed + 1, 4, width, scale=3.0).log_softmax(-1)
    low, high = (overlap(tilt_geometric(z, zq, lam).exp(), zq.exp()) for lam in sorted((a, b)))
    assert (high >= low - 1e-9).all()


def test_a_larger_step_may_lower_the_acceptance():
    """What the geometric tilt is there for."""
    source = np.random.default_rng(0)
    z, zq = (torch.from_numpy(2 * source.normal(size=12)) for _ in range(2))
    ten, fifty = (overlap(tilt_step(z, zq, eta).softmax(-1), zq.softmax(-1)) for eta in (10, 50))
    assert fifty < ten


@few
@given(seed=seeds, delta=st.floats(0, 3))
def test_the_bound_on_the_divergence_holds_and_is_used_up(seed, delta):
    logp, logq = rows(seed, 4, 12).log_softmax(-1), rows(seed + 1, 4, 12).log_softmax(-1)
    tilted, lam = tilt_kl(logp, logq, delta)
    spent = (tilted.exp() * (tilted - logp)).sum(-1)
    assert (spent <= delta + 1e-9).all()
    torch.testing.assert_close(tilted, tilt_geometric(logp, logq, lam))
    more = tilt_geometric(logp, logq, (lam + 2e-6).clamp(max=1))
    beyond = (more.exp() * (more - logp)).sum(-1)
    assert ((beyond > delta - 1e-4) | (lam == 1)).all()


def test_tokens_that_one_side_forbids():
    logp, logq = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.0, 0.5, 0.5]).log()
    torch.testing.assert_close(tilt_geometric(logp, logq, 0.5).exp(), torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(tilt_geometric(logp, logq, 0.0).exp(), torch.tensor([0.5, 0.5, 0.0]))
    torch.testing.assert_close(tilt_geometric(logp, logq, 1.0).exp(), torch.tensor([0.0, 0.5, 0.5]))
    apart = tilt_geometric(torch.tensor([0.0, -INF]), torch.tensor([-INF, 0.0]), 0.5)
    assert apart.exp().tolist() == [1.0, 0.0], "nothing in common: the target's own"
    tilted, lam = tilt_kl(logp, logq, 0.1)
    assert tilted.exp()[2] == 0, "a token that the target forbids costs without bound"
    assert lam < 1
    moved = tilt_step(torch.tensor([0.0, -INF, 1.0]), torch.tensor([1.0, 5.0, 0.0]), 3.0)
    assert moved[1] == -INF, "what the target forbids stays forbidden"


def test_half_precision_is_computed_in_float32():
    z, zq = Z.to(torch.bfloat16), ZQ.to(torch.bfloat16)
    for out in (tilt_step(z, zq, 1.0), tilt_geometric(z, zq, 0.5), tilt_kl(z, zq, 0.1)[0]):
        assert out.dtype == torch.float32


@pytest.mark.parametrize("mode", ["target", "exact", "geometric", "kl", "paper"])
def test_nothing_left_to_correct_falls_back(mode):
    """p and q alike: a rejection is a rounding error."""
    p = Z.softmax(-1)
    got = Tilt(mode, eta=1.0).residual(p, p, p)
    torch.testing.assert_close(got, p)


def test_the_audit_says_how_much_of_the_drafter_is_in_a_token():
    z, zq = rows(1, 3, 6), rows(2, 3, 6)
    assert Tilt("target").weight(z, zq).tolist() == [0.0] * 3
    assert Tilt("geometric", lam=0.25).weight(z, zq).tolist() == [0.25] * 3
    torch.testing.assert_close(Tilt("kl", delta=0.2).weight(z, zq), tilt_kl(z, zq, 0.2)[1])
    step = Tilt("exact", eta=2.0)
    moved = (step(z, zq).softmax(-1) - z.softmax(-1)).abs().sum(-1) / 2
    torch.testing.assert_close(step.weight(z, zq), moved)
    assert (step.weight(z, zq) > 0).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "papre"}, "did you mean 'paper'"),
        ({"mode": "exact", "eta": -1.0}, "eta=-1"),
        ({"mode": "exact", "mask_alpha": 2.0}, "mask_alpha=2"),
        ({"mode": "exact", "T": 0.0}, "T=0"),
        ({"mode": "geometric", "lam": 1.5}, "lam=1.5"),
        ({"mode": "kl", "delta": -0.1}, "delta=-0.1"),
        ({"mode": "kl", "delta": float("nan")}, "delta=nan"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Tilt(**options)


def test_logits_of_two_vocabularies_are_refused():
    with pytest.raises(ShapeError, match=r"\[3\] of the target, \[4\]"):
        tilt_step(torch.zeros(3), torch.zeros(4), 1.0)
    with pytest.raises(ShapeError, match="lam"):
        tilt_geometric(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3))
