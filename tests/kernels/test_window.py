"""`window_score` by hand: who sees what, and what spreads to whom."""

from typing import Any

import pytest
import torch

from remnant_kernels import get_op

PROVIDERS = ["naive", "fast", "triton"]
OP = get_op("window_score")


def scored(provider: str, scores: list[float], **how: Any) -> list[float]:
    """What a provider makes of slots that receive these scores: one query, one head, a known log-sum-exp of 0."""
    k = torch.zeros(1, 1, len(scores), 16)
    k[0, 0, :, 0] = torch.tensor(scores).clamp(min=1e-30).log()
    q = torch.zeros(1, 1, 1, 16)
    q[..., 0] = 1.0
    return getattr(OP, provider)(q=q, k=k, lse=torch.zeros(1, 1, 1), scale=1.0, **how)[0, 0].tolist()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_pooling_by_hand(provider: str):
    x = [3.0, 0.0, 0.0, 6.0, 0.0]
    for how, want in (
        ({"pooling": "avg"}, [1.5, 1.0, 2.0, 2.0, 3.0]),
        ({"pooling": "avg", "pad_counts": True}, [1.0, 1.0, 2.0, 2.0, 2.0]),
        ({"pooling": "max"}, [3.0, 3.0, 6.0, 6.0, 6.0]),
        ({"pooling": "none"}, x),
    ):
        assert scored(provider, x, kernel=3, **how) == pytest.approx(want, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("pad_counts", [False, True])
def test_pooling_beside_padding_is_that_of_a_lone_row(provider: str, pooling: str, pad_counts: bool):
    x = [float(i) for i in range(1, 8)]
    among = torch.tensor([[[False, False, True, True, True, True, False]]])
    how = {"kernel": 5, "pooling": pooling, "pad_counts": pad_counts}
    got = scored(provider, x, among=among, **how)[2:6]
    assert got == pytest.approx(scored(provider, x[2:6], **how), rel=1e-5)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_queries_see_by_position_not_by_slot(provider: str):
    # Two equal logits share a query; queries stand at 7, 8 and 9, the last one is padding.
    about = {"q": torch.zeros(1, 1, 3, 16), "k": torch.zeros(1, 1, 4, 16), "seen": 10}
    real = torch.tensor([[True, True, False]])
    for positions, ordered, want in (
        ([2, 5, 8, 9], True, [1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3, 0.0]),
        ([9, 2, 8, 5], False, [0.0, 1 / 2 + 1 / 3, 1 / 3, 1 / 2 + 1 / 3]),
        ([0, 1, 2, 3], True, [1 / 2] * 4),  # all slots are older than every query, as under a patched prompt
    ):
        at = torch.tensor([[positions]])
        got = getattr(OP, provider)(**about, positions=at, ordered=ordered, real=real)
        assert got[0, 0].tolist() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_padding_behind_a_row_does_not_make_old_slots_new(provider: str):
    # Slot 0 holds the newest token: there is nothing behind it but padding, so order says nothing.
    at, hidden = torch.tensor([[[5, 6, 7, 8]]]), torch.tensor([[[False, True, True, True]]])
    got = getattr(OP, provider)(
        q=torch.zeros(1, 1, 2, 16), k=torch.zeros(1, 1, 4, 16), positions=at, seen=6, hidden=hidden
    )
    assert got[0, 0].tolist() == [1.0, 0.0, 0.0, 0.0]  # the query at 4 sees nothing, the one at 5 itself


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_queries_give_nothing(provider: str):
    q, k = torch.zeros(1, 2, 0, 16), torch.zeros(1, 1, 5, 16)
    assert getattr(OP, provider)(q=q, k=k).tolist() == [[[0.0] * 5]]
