"""TRIM-KV against sets that follow from its definition: full cache, sliding window, sinks and window."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from remnant.errors import ConfigError, ShapeError
from remnant.kv import Keep, KVView, get_policy
from remnant.kv.gates import GateShape, RetentionGate

B, H, S, D = 2, 2, 20, 4
SHARES = ["layer", "head"]


def view(log_beta: Any, s: int = S, **more: Any) -> KVView:
    rng = torch.Generator().manual_seed(0)
    k, v = (torch.randn(B, H, s, D, generator=rng) for _ in range(2))
    side = torch.as_tensor(log_beta, dtype=torch.float32).expand(B, H, s)
    return KVView(k, v, torch.arange(s).expand(B, H, s), s, side={"log_beta": side}, **more)


def kept(policy: Any, seen: KVView, tokens: int) -> list[list[int]]:
    plan = policy.plan(seen, tokens)
    return [[i for i in row if i >= 0] for row in plan.indices.flatten(0, 1).tolist()]


def lengths(plan: Keep) -> list[list[int]]:
    assert plan.lengths is not None
    return plan.lengths.tolist()


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("tokens", [S, S + 5])
def test_budget_for_all_is_the_identity(share: str, tokens: int):
    assert kept(get_policy("trimkv", share=share), view(0.0), tokens) == [list(range(S))] * (B * H)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("log_beta", [-1e-7, -0.3, -20.0])
def test_equal_gates_are_a_sliding_window(share: str, log_beta: float):
    for tokens in (1, 7, S - 1):
        policy = get_policy("trimkv", share=share)
        assert kept(policy, view(log_beta), tokens) == [list(range(S - tokens, S))] * (B * H)


@pytest.mark.parametrize("share", SHARES)
def test_four_lasting_tokens_are_streaming_llm(share: str):
    gates = torch.full((S,), -0.2)
    gates[:4] = 0.0
    streaming = [0, 1, 2, 3, *range(S - 5, S)]
    assert kept(get_policy("trimkv", share=share), view(gates), 9) == [streaming] * (B * H)


@pytest.mark.parametrize("share", SHARES)
def test_ties_go_to_the_later_position(share: str):
    assert kept(get_policy("trimkv", share=share), view(0.0), 3) == [[S - 3, S - 2, S - 1]] * (B * H)


def test_by_hand():
    # At t = 4: ages 4, 3, 2 of three tokens seen; scores -0.4, -3, -1.
    gates = torch.tensor([-0.1, -1.0, -0.5])
    policy = get_policy("trimkv", share="head")
    torch.testing.assert_close(policy.score(view(gates, 3))[0, 0], torch.tensor([-0.4, -3.0, -1.0]))
    assert kept(policy, view(gates, 3), 2) == [[0, 2]] * (B * H)


def uneven() -> torch.Tensor:
    return torch.tensor([-1e-3, -1.0]).view(1, H, 1)


def test_heads_compete_for_the_layer():
    plan = get_policy("trimkv").plan(view(uneven()), 6)
    assert plan.ragged
    assert lengths(plan) == [[12, 0]] * B
    assert not get_policy("trimkv", share="head").plan(view(uneven()), 6).ragged


@pytest.mark.parametrize(("floor", "least"), [(0.5, 3), (0.29, 1), (1.0, 6)])
def test_floor(floor: float, least: int):
    assert lengths(get_policy("trimkv", floor=floor).plan(view(uneven()), 6)) == [[12 - least, least]] * B


def test_protection():
    rows = kept(get_policy("trimkv", sinks=2, recent=3), view(uneven()), 6)
    assert all({0, 1, S - 3, S - 2, S - 1} <= set(row) for row in rows)
    assert sum(map(len, rows)) == B * H * 6


def test_padding_goes_first_and_takes_no_share():
    valid = torch.ones(B, H, S, dtype=torch.bool)
    valid[0, :, :15] = False
    plan = get_policy("trimkv", floor=0.5).plan(view(-0.1, valid=valid), 8)
    assert lengths(plan) == [[5, 5], [8, 8]]
    assert plan.indices[0, 0].tolist() == [15, 16, 17, 18, 19, -1, -1, -1]


def test_key_norm():
    seen = view(-1e-9)
    seen.k[:, :, 2] = 50.0
    policy = get_policy("trimkv", share="head", with_norm=True)
    assert all(2 in row for row in kept(policy, seen, 3))


def test_in_place_drops_what_plan_drops():
    torch.manual_seed(3)
    policy, seen = get_policy("trimkv", share="head", sinks=1), view(-torch.rand(B, H, S))
    assert policy.in_place
    assert not get_policy("trimkv").in_place
    for count in (1, 4):
        dropped = policy.evict(seen, count).sort(-1).values
        rows = kept(policy, seen, S - count)
        assert [sorted(set(range(S)) - set(row)) for row in rows] == dropped.flatten(0, 1).tolist()


def test_buffer_of_one_token_equals_recomputing():
    """Dropping one token per step ends with the best of all that was never beaten: beta order at equal ages."""
    torch.manual_seed(0)
    gates = -torch.rand(S) * 0.1
    policy, alive = get_policy("trimkv", share="head", buffer=1), list(range(6))
    for t in range(6, S):
        alive.append(t)
        here = view(gates[alive], len(alive))
        here = replace(here, positions=torch.tensor(alive).expand(B, H, -1), seen=t + 1)
        alive = [alive[i] for i in kept(policy, here, 6)[0]]
        best = sorted(((t + 2 - p) * float(gates[p]), p) for p in [*alive])
        assert len(best) == 6
    assert S - 1 in alive


def test_when():
    policy = get_policy("trimkv", buffer=4)
    assert [str(t) for t in policy.when] == ["prefill_end", "block", "overflow(4)"]
    assert policy.slack == 4
    assert policy.bounded
    assert not policy.due("decode", 1, 13, 10)
    assert policy.due("decode", 1, 14, 10)


def test_gates_from_file_and_object(tmp_path: Path):
    gate = RetentionGate(GateShape(1, H, D, D, 8))
    gate.export().save(tmp_path / "g.safetensors")
    seen = view(0.0)
    expected = gate(0, seen.k, seen.v)
    for given in (str(tmp_path / "g.safetensors"), gate.export()):
        side = get_policy("trimkv", gates=given).append(seen)
        torch.testing.assert_close(side["log_beta"], expected)


def test_uniform_gates_are_a_window():
    policy, seen = get_policy("trimkv", gates="uniform"), view(0.0)
    seen = replace(seen, side=policy.append(seen))
    assert kept(policy, seen, 5) == [list(range(S - 5, S))] * (B * H)


def test_without_gates_it_can_be_described_and_refuses_the_first_token():
    policy = get_policy("trimkv")
    assert policy.options()["gates"] is None
    with pytest.raises(ConfigError, match=r"no gates.*remnant train-gates MODEL"):
        policy.append(view(0.0))
    with pytest.raises(ConfigError, match=r"does not exist.*remnant train-gates"):
        get_policy("trimkv", gates="/no/such/file").append(view(0.0))
    with pytest.raises(ShapeError, match="log_beta"):
        policy.score(replace(view(0.0), side={}))


def test_gates_of_another_model():
    other = RetentionGate(GateShape(5, H, D, D, 8)).export()
    with pytest.raises(ConfigError, match=r"5 layers.*1 layers"):
        get_policy("trimkv", gates=other).append(view(0.0))


@pytest.mark.parametrize("option", [{"buffer": -1}, {"share": "all"}, {"floor": 1.5}, {"gates": 3}, {"gates": ""}])
def test_bad_options(option: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(option))):
        get_policy("trimkv", **option)
