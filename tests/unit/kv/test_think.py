"""ThinK: channels chosen by hand and by loops, rows and padding apart, and the cost of what is dropped."""

from typing import Any

import pytest
import torch

from remnant.errors import ConfigError, ShapeError
from remnant.kv import KVView, get_policy
from remnant.kv.policies.snapkv import SnapKV
from remnant.kv.policies.think import ThinK


def make_view(s=24, b=2, h=2, g=3, d=10, w=6, seed=0, valid=None, **kw) -> Any:
    gen = torch.Generator().manual_seed(seed)
    scale = torch.rand(1, h, 1, d, generator=gen) * 3  # channels differ, so that a choice matters
    k = torch.randn(b, h, s, d, generator=gen) * scale
    q = torch.randn(b, h * g, w, d, generator=gen) * scale.repeat_interleave(g, 1).flip(-1)
    v = torch.randn(b, h, s, 4, generator=gen)
    return KVView(k, v, torch.arange(s).expand(b, h, s), s, queries=q, valid=valid, **kw)


def plan(policy, view, tokens) -> Any:
    return policy.plan(view, tokens)


def naive_energy(view, old, begin):
    b, h, _ = view.shape
    g, w, d = view.group, view.queries.shape[2], view.k.shape[-1]
    out = torch.zeros(b, h, d)
    for bi, hi, c in torch.cartesian_prod(torch.arange(b), torch.arange(h), torch.arange(d)).tolist():
        qs = [
            view.queries[bi, hi * g + gi, i, c] ** 2
            for gi in range(g)
            for i in range(w)
            if view.seen - w + i >= begin[bi]
        ]
        ks = [view.k[bi, hi, j, c] ** 2 for j in old[bi, hi].tolist() if view.valid is None or view.valid[bi, hi, j]]
        out[bi, hi, c] = sum(qs) / len(qs) * sum(ks) / max(len(ks), 1)
    return out


def logits(view, keep):
    """What the newest query sees through the kept channels of old keys and all channels of recent ones."""
    b, h = view.shape[:2]
    k = view.k.gather(2, keep.indices.unsqueeze(-1).expand(*keep.indices.shape, view.k.shape[-1]))
    old = keep.indices.shape[-1] - keep.recent
    k = torch.cat([k[:, :, :old] * keep.channels.unsqueeze(2), k[:, :, old:]], 2)
    return view.queries[:, :, -1].view(b, h, -1, view.k.shape[-1]) @ k.transpose(2, 3)


def test_by_hand():
    k = torch.tensor([[1.0, 1, 1, 3], [1, 1, 2, 0], [9, 9, 9, 9]]).view(1, 1, 3, 4)
    q = torch.tensor([[2.0, 0, 1, 1], [2, 1, 1, 1]]).view(1, 2, 1, 4)
    view = KVView(k, k, torch.arange(3).expand(1, 1, 3), 3, queries=q)
    policy = ThinK(ratio=0.5, recent=1, window=1, evictor="none")
    # q^2 mean over the group: 4, .5, 1, 1; k^2 mean over the two old keys: 1, 1, 2.5, 4.5.
    assert policy.energy(view, torch.tensor([[[0, 1]]])).tolist() == [[[4.0, 0.5, 2.5, 4.5]]]
    keep = plan(policy, view, 3)
    assert keep.channels.tolist() == [[[True, False, False, True]]]
    assert keep.recent == 1
    assert keep.indices.tolist() == [[[0, 1, 2]]]
    # Pairs are channels 0 and 2, 1 and 3: 6.5 against 5.
    pairs = ThinK(ratio=0.5, recent=1, window=1, evictor="none", pairs=True)
    assert plan(pairs, view, 3).channels.tolist() == [[[True, False, True, False]]]


def test_energy_equals_loops_with_padding():
    valid = torch.ones(2, 2, 24, dtype=torch.bool)
    valid[1, :, :20] = False  # shorter than the window of queries
    view = make_view(d=4, valid=valid)
    old = torch.arange(22).expand(2, 2, 22)
    policy = ThinK(window=6)
    expected = naive_energy(view, old, [0, 20])
    torch.testing.assert_close(policy.energy(view, old), expected, atol=1e-5, rtol=1e-5)
    started = make_view(d=4, valid=valid, state={"start": torch.tensor([0, 20])})
    torch.testing.assert_close(policy.energy(started, old), expected, atol=1e-5, rtol=1e-5)


def test_energy_is_the_squared_norm_of_each_channels_outer_product():
    view = make_view(b=1, h=1, g=1)
    old = torch.arange(24).view(1, 1, 24)
    terms = torch.stack([torch.outer(view.queries[0, 0, :, c], view.k[0, 0, :, c]).norm() ** 2 for c in range(10)])
    torch.testing.assert_close(ThinK(window=6).energy(view, old)[0, 0] * (6 * 24), terms, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("ratio", "d", "kept"), [(0.4, 128, 77), (0.29, 100, 71), (0.0, 16, 16), (0.5, 16, 8)])
def test_number_of_channels(ratio, d, kept):
    energy = torch.rand(1, 1, d)
    assert ThinK(ratio=ratio).channels(energy).sum().item() == kept
    assert ThinK(ratio=ratio, pairs=True).channels(energy).sum().item() == d - (d - kept) // 2 * 2


def test_equal_energy_keeps_the_higher_channel():
    assert ThinK(ratio=0.5).channels(torch.ones(1, 1, 4)).tolist() == [[[False, False, True, True]]]


def test_tokens_are_those_of_the_evictor_and_channels_are_judged_on_them():
    view = make_view()
    policy = ThinK(window=4, recent=4, ratio=0.4)
    keep = plan(policy, view, 10)
    assert torch.equal(keep.indices, SnapKV(window=4).plan(view, 10).indices)
    expected = naive_energy(view, keep.indices[..., :6], [0, 0])
    assert torch.equal(keep.channels, policy.channels(expected))
    assert (keep.channels.sum(-1) == 6).all()


def test_what_fits_stays_whole():
    view = make_view()
    for policy, tokens in (
        (ThinK(window=4), 24),
        (ThinK(window=4, recent=30, evictor="none"), 5),
        (ThinK(window=4, recent=12), 12),
        (ThinK(window=4, recent=4, ratio=0.0), 12),
    ):
        assert plan(policy, view, tokens).channels is None
    assert not ThinK().due("prefill", 0, 100, 100)
    assert ThinK(evictor="none").due("prefill", 0, 100, 100)
    assert not ThinK(evictor="none").due("prefill", 0, 32, 10)
    assert not ThinK(evictor="none").due("decode", 1, 100, 10)


def test_choice_loses_less_than_a_random_one():
    view = make_view(s=64, w=1, b=1)
    keep = plan(ThinK(window=1, recent=4, evictor="none"), view, 64)
    b, h = view.shape[:2]
    true = view.queries[:, :, -1].view(b, h, -1, 10) @ view.k.transpose(2, 3)
    loss = (logits(view, keep) - true).square().mean()
    g = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(20):
        channels = torch.zeros(1, 2, 10, dtype=torch.bool)
        channels.scatter_(-1, torch.rand(1, 2, 10, generator=g).argsort(-1)[..., :6], True)
        object.__setattr__(keep, "channels", channels)
        losses.append((logits(view, keep) - true).square().mean())
    assert loss < min(losses)


def test_rows_do_not_see_each_other_and_nothing_is_written():
    valid = torch.ones(2, 2, 24, dtype=torch.bool)
    valid[1, :, :9] = False
    view = make_view(valid=valid)
    before = view.k.clone(), view.queries.clone()
    policy = ThinK(window=4, recent=4)
    keep = plan(policy, view, 12)
    for row in range(2):
        one = slice(row, row + 1)
        alone = KVView(
            view.k[one, :, 9 * row :],
            view.v[one, :, 9 * row :],
            torch.arange(24 - 9 * row).expand(1, 2, -1),
            24 - 9 * row,
            queries=view.queries[one],
        )
        single = plan(policy, alone, 12)
        assert torch.equal(single.channels, keep.channels[one])
        assert torch.equal(single.indices + 9 * row, keep.indices[one])
    assert torch.equal(view.k, before[0])
    assert torch.equal(view.queries, before[1])


def test_channels_of_a_sequence_are_chosen_once():
    policy = ThinK(window=4, recent=4)
    first = plan(policy, make_view(seed=0), 12)
    again = plan(policy, make_view(seed=5, state=first.state), 12)
    assert torch.equal(again.channels, first.channels)
    # A row that has none yet, as a fresh sequence in an old batch, gets its own.
    state = {"channels": first.channels.clone()}
    state["channels"][1] = False
    mixed = plan(policy, make_view(seed=5, state=state), 12)
    fresh = plan(policy, make_view(seed=5), 12)
    assert torch.equal(mixed.channels[0], first.channels[0])
    assert torch.equal(mixed.channels[1], fresh.channels[1])


def test_options_are_checked():
    assert get_policy("think", window=8, sinks=2).minimum == 11
    assert get_policy("think", evictor="none").minimum == 1
    for bad in ({"ratio": 1.0}, {"window": 0}, {"evictor": "h2o"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            get_policy("think", **bad)
    with pytest.raises(ShapeError, match="channels"):
        ThinK(pairs=True).channels(torch.ones(1, 1, 3))
    view = make_view()
    blind = KVView(view.k, view.v, view.positions, view.seen)
    with pytest.raises(ShapeError, match="queries"):
        ThinK(window=4, recent=2, evictor="none").plan(blind, 8)
