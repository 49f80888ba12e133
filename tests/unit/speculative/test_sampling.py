"""From logits to probabilities: filters, ties, processors with a history, and what is refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from remnant.errors import ConfigError, ShapeError  # noqa: E402
from remnant.speculative import Sampler  # noqa: E402
from remnant.speculative.drafter import Sampler as Protocol  # noqa: E402

LOGITS = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()


def near(got, want):
    assert got.shape == (1, len(want))
    assert torch.allclose(got, torch.tensor([want], dtype=got.dtype), atol=1e-6)


def test_the_plain_distribution():
    near(Sampler().probs([], LOGITS), [0.5, 0.25, 0.125, 0.125])
    assert isinstance(Sampler(), Protocol)
    assert Sampler().probs([], LOGITS.half()).dtype == torch.float32
    assert Sampler().probs([], LOGITS.double()).dtype == torch.float64


def test_temperature():
    near(Sampler(0.5).probs([], LOGITS), [16 / 22, 4 / 22, 1 / 22, 1 / 22])
    near(Sampler(0.0).probs([], LOGITS), [1, 0, 0, 0])
    assert Sampler(0.0).greedy
    assert not Sampler(0.1).greedy


@pytest.mark.parametrize(
    ("top_k", "want"),
    [(1, [1, 0, 0, 0]), (2, [2 / 3, 1 / 3, 0, 0]), (3, [0.5, 0.25, 0.125, 0.125]), (9, [0.5, 0.25, 0.125, 0.125])],
)
def test_top_k_keeps_ties_with_the_last(top_k, want):
    near(Sampler(top_k=top_k).probs([], LOGITS), want)


@pytest.mark.parametrize(
    ("top_p", "want"),
    [(0.01, [1, 0, 0, 0]), (0.5, [1, 0, 0, 0]), (0.6, [2 / 3, 1 / 3, 0, 0]), (0.8, [4 / 7, 2 / 7, 1 / 7, 0])],
)
def test_top_p_keeps_the_smaller_id_of_equals(top_p, want):
    near(Sampler(top_p=top_p).probs([], LOGITS), want)


def test_filters_agree_with_transformers():
    warpers = pytest.importorskip("transformers.generation.logits_process")
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    scores = warpers.TemperatureLogitsWarper(0.7)(None, logits)
    scores = warpers.TopPLogitsWarper(0.8)(None, warpers.TopKLogitsWarper(12)(None, scores))
    assert torch.allclose(Sampler(0.7, 12, 0.8).probs([], logits), scores.softmax(-1), atol=1e-6)


def test_each_row_has_its_own_history():
    def no_repeat(before, scores):
        scores[0, before[0]] = float("-inf")  # in place, as stock processors do
        return scores

    logits = LOGITS.repeat(3, 1)
    history = [torch.tensor([], dtype=torch.int64), torch.tensor([0]), torch.tensor([2, 0])]
    sampler = Sampler(0.0, processors=[no_repeat])
    assert sampler.reads_history
    assert sampler.probs(history, logits).argmax(-1).tolist() == [0, 1, 1]
    assert torch.equal(logits, LOGITS.repeat(3, 1))
    with pytest.raises(ShapeError, match="2 histories"):
        sampler.probs(history[:2], logits)


def test_the_best_token_is_what_a_greedy_distribution_marks():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    logits[2, 3] = logits[2, 7] = 9.0  # the first of equals
    history = [torch.tensor([row]) for row in range(6)]
    for processors in ((), (lambda before, s: s - 3 * (torch.arange(9) == before[0, -1]),)):
        sampler = Sampler(0.0, processors=processors)
        best = sampler.best(history, logits)
        assert torch.equal(best, sampler.probs(history, logits).argmax(-1))
        assert best[2] == 3
    for bad in (float("nan"), float("-inf"), float("inf")):
        with pytest.raises(ShapeError, match="not finite"):
            Sampler(0.0).best([], torch.full((1, 4), bad))


def test_processors_run_in_order():
    sampler = Sampler(0.0, processors=[lambda _, s: s * 0, lambda _, s: s + torch.tensor([0.0, 1.0, 0.0, 0.0])])
    assert sampler.probs([torch.tensor([0])], LOGITS).argmax().item() == 1


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), float("inf")])
def test_a_row_that_bars_everything(bad):
    logits = LOGITS.repeat(2, 1)
    logits[1] = bad
    with pytest.raises(ShapeError, match="not finite"):
        Sampler().probs([], logits)
    with pytest.raises(ShapeError, match=r"\[B, V\]"):
        Sampler().probs([], LOGITS[0])


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_numbers_outside_their_range(options):
    with pytest.raises(ConfigError, match="accepted"):
        Sampler(**options)
