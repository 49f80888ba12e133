"""TIM drops exactly the spans it is told."""

import pytest
import torch

from remnant.errors import ConfigError
from remnant.kv import KVView, get_policy
from remnant.kv.policies.tim import TIM


def view(b=2, h=2, s=8, positions=None):
    k = torch.randn(b, h, s, 4)
    p = torch.arange(s).expand(b, h, s) if positions is None else positions
    return KVView(k, k, p, seen=int(p.max()) + 1)


def test_nothing_goes_without_events():
    policy = get_policy("tim")
    assert policy.plan(view(), 2).indices.shape == (2, 2, 8)
    assert not policy.due("prefill", 0, 100, 10)
    assert not policy.due("decode", 5, 100, 10)


def test_spans_go_from_every_head_and_row():
    keep = TIM().plan_spans(view(), [(1, 3), (6, 7)])
    assert keep.indices[1, 1].tolist() == [0, 3, 4, 5, 7]
    assert not keep.ragged


def test_spans_of_one_row_leave_the_others():
    keep = TIM().plan_spans(view(), [(0, 6)], row=1)
    assert keep.lengths is not None
    assert keep.lengths.tolist() == [[8, 8], [2, 2]]
    assert keep.indices[1, 0].tolist() == [6, 7] + [-1] * 6
    assert keep.indices[0, 0].tolist() == list(range(8))


def test_positions_count_and_not_slots():
    p = torch.tensor([0, 1, 10, 11, 12]).expand(1, 1, 5)
    assert TIM().plan_spans(view(1, 1, 5, p), [(1, 11)]).indices.tolist() == [[[0, 3, 4]]]


def test_empty_and_everything():
    assert TIM().plan_spans(view(), []).indices.shape[-1] == 8
    assert TIM().plan_spans(view(), [(0, 99)]).indices.shape[-1] == 0


def test_options():
    with pytest.raises(ConfigError):
        get_policy("tim", buffer=-1)
