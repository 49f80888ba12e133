"""The planner: never slower for more memory, refusals exact to the byte, speculation off where it does not pay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.errors import ConfigError
from remnant.speculative.calibration import Acceptance
from remnant.speculative.costs import DEVICES, Measured, Roofline, device, measure_device, time_passes
from remnant.speculative.memory_model import MemoryModel
from remnant.speculative.planner import Plan, Planner, Refusal, lower_bound, plan

TARGET: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 6,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "torch_dtype": "float16",
}
DRAFT = TARGET | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
MODEL = MemoryModel(TARGET, DRAFT)
TREE = Acceptance.constant(0.6, 8, 3)

acceptances = st.builds(
    lambda first, depth, ranks, decay: Acceptance.constant(first, depth, ranks, decay),
    st.floats(0, 1), st.integers(1, 8), st.integers(1, 4), st.floats(0, 1),
)  # fmt: skip


class Bumpy:
    """Times that go up and down with n, as kernels with tiles do."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = seconds

    def verify(self, B: int, n: int, L: int) -> float:
        return self.seconds[n % len(self.seconds)] * (1 + B / 7)

    def draft(self, B: int, depth: int, top_k: int, L: int) -> float:
        return 0.05 * depth


bumpy = st.builds(Bumpy, st.lists(st.floats(0.1, 10), min_size=1, max_size=9))


def planned(budget: int, model: MemoryModel = MODEL, **options: Any) -> Plan:
    made = plan(budget, model, **options)
    assert isinstance(made, Plan)
    return made


def refused(budget: int, model: MemoryModel = MODEL, **options: Any) -> Refusal:
    made = plan(budget, model, **options)
    assert isinstance(made, Refusal)
    return made


@settings(max_examples=40, deadline=None)
@given(
    acceptances, bumpy, st.sampled_from([1, 3, None]), st.floats(0, 0.5), st.lists(st.integers(0, 10**6), min_size=2)
)
def test_more_budget_is_never_slower(table: Acceptance, costs: Bumpy, batch: Any, epsilon: float, more: list[int]):
    planner = Planner(MODEL, batch, 300, acceptance=table, costs=costs, max_nodes=20, epsilon=epsilon, now=10)
    least = refused_by(planner)
    speeds: list[float] = []
    for extra in sorted(more):
        made = planner.plan(least + extra)
        assert isinstance(made, Plan)
        assert made.total <= least + extra
        speeds.append(made.speed)
    assert speeds == sorted(speeds)


def refused_by(planner: Planner) -> int:
    made = planner.plan(1)
    assert isinstance(made, Refusal)
    return made.needed_bytes


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 10**7), st.integers(1, 8), st.integers(1, 2000), acceptances, st.booleans(), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_refusal_is_exact(
    budget: int, batch: int, context: int, table: Acceptance, lazy: bool, resident: bool, strict: bool
):
    planner = Planner(
        MODEL, batch, context, acceptance=table, max_nodes=12, lazy_logits=lazy, resident=resident, strict=strict
    )
    made = planner.plan(budget)
    if isinstance(made, Plan):
        assert made.total <= budget
        return
    assert made.missing_bytes == made.needed_bytes - budget > 0
    assert made.bytes["total"] == made.needed_bytes
    assert isinstance(planner.plan(budget + made.missing_bytes), Plan)
    assert isinstance(planner.plan(budget + made.missing_bytes - 1), Refusal)


def test_the_floor_is_plain_decoding_without_the_drafter():
    one = refused(1, context=500)
    assert one.needed_bytes == MODEL.without_drafter().total(1, 500, 1)
    least = planned(one.needed_bytes, context=500)
    assert (least.n, least.speculate, least.gamma, least.depth) == (1, False, 0, 0)
    assert least.bytes["weights_draft"] == 0
    assert least.speedup == 1
    assert refused(1, context=500, resident=True).needed_bytes == MODEL.total(1, 500, 1)


def test_what_is_now_there_must_fit_and_the_rest_is_cut():
    alone = MODEL.without_drafter()
    budget = alone.total(1, 300, 1)
    assert isinstance(plan(budget, MODEL, context=500), Refusal)
    got = planned(budget, context=500, now=200)
    assert (got.L_max, got.kv_length, got.n) == (300, 300, 1)
    assert got.offload == 200 * alone.kv_per_token
    assert refused(1, context=500, now=200).needed_bytes == alone.total(1, 200, 1)


def test_the_smallest_n_within_epsilon_of_the_best():
    speeds = {n: (1 + sum(0.8**i for i in range(1, n))) / (1 + 0.02 * n) for n in range(1, 17)}
    costs = Measured({n: 1 + 0.02 * n for n in range(1, 17)})
    table = Acceptance.constant(0.8, 15)
    best = max(speeds.values())
    expected = min(n for n, s in speeds.items() if s >= 0.96 * best)
    got = planned(10**9, context=100, acceptance=table, costs=costs, max_nodes=16)
    assert got.n == expected < max(speeds, key=lambda n: speeds[n])
    assert got.tau == pytest.approx(1 + sum(0.8**i for i in range(1, expected)))
    assert got.depth == got.gamma == expected - 1
    bound = lower_bound(MODEL, 1, 100, acceptance=table, costs=costs, max_nodes=16)
    assert (bound.n, bound.total) == (expected, MODEL.total(1, 100, expected, False))
    assert got.bound == bound.total
    assert planned(bound.total, context=100, acceptance=table, costs=costs, max_nodes=16).n == expected
    below = planned(bound.total - 1, context=100, acceptance=table, costs=costs, max_nodes=16)
    assert below.n == expected - 1, "the fastest that fits, where the goal cannot be reached"
    strict = refused(bound.total - 1, context=100, acceptance=table, costs=costs, max_nodes=16, strict=True)
    assert strict.missing_bytes == 1


def test_speculation_is_off_where_it_does_not_pay():
    never = Acceptance.constant(0.0, 4)
    assert planned(10**9, context=100, acceptance=never).n == 1
    slow = Measured({1: 1.0, 2: 3.0, 4: 7.0})
    assert planned(10**9, context=100, acceptance=Acceptance.constant(0.9, 4), costs=slow).n == 1


def test_trees_where_ranks_are_known_chains_where_not():
    tree = planned(10**9, context=100, acceptance=TREE)
    assert tree.top_k > 1
    assert max(map(len, tree.nodes)) == tree.depth < tree.n - 1
    assert all(node[:-1] == () or node[:-1] in tree.nodes for node in tree.nodes)
    chain = planned(10**9, context=100)
    assert (chain.top_k, chain.depth) == (1, chain.n - 1)
    assert chain.nodes == tuple((0,) * i for i in range(1, chain.n))


def test_the_batch_is_chosen_by_throughput():
    planner = Planner(MODEL, None, 200, acceptance=TREE, max_nodes=8)
    sizes = [made.batch for made in (planner.plan(b) for b in (3 * 10**7, 10**8, 10**9)) if isinstance(made, Plan)]
    assert len(sizes) == 3
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_gains_fall_with_the_batch():
    costs = Roofline(MODEL, DEVICES["t4"])
    gains = [planned(10**12, context=64, batch=b, costs=costs, epsilon=0.0).speedup for b in (1, 32, 256)]
    assert gains[0] > gains[1] > gains[2]


def test_a_budget_of_the_cache_bounds_its_length_but_not_the_text():
    bounded = MemoryModel(TARGET, DRAFT, kv_budget=64)
    got = planned(10**9, bounded, context=1000)
    assert (got.L_max, got.kv_length) == (1000, 64)
    assert got.bytes["kv"] < planned(10**9, context=1000).bytes["kv"]
    assert planned(10**9, bounded, context=32).kv_length == 32
    assert refused(1, bounded, context=1000).needed_bytes < refused(1, context=1000).needed_bytes


def test_a_naive_allocation_cut_to_60_percent_keeps_its_tau():
    """Naive: every row at the model's longest length with the full tree; here in the shape of Llama-2-7B."""
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32}
    target = {**shape, "vocab_size": 32000, "max_position_embeddings": 4096, "torch_dtype": "float16"}
    draft = {**target, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 2}
    model = MemoryModel(target, draft)
    planner = Planner(model, 1, 2048, acceptance=Acceptance.constant(0.7, 16, 4), epsilon=0.01)
    naive = planner.candidates[-1]
    assert naive.n == 64
    whole = model.bytes(1, 4096, 64, False, depth=naive.depth, top_k=naive.top_k)
    fixed = whole["weights_target"] + whole["weights_draft"]
    made = planner.plan(fixed + (whole["total"] - fixed) * 6 // 10)
    assert isinstance(made, Plan)
    assert made.total - fixed <= 0.6 * (whole["total"] - fixed)
    assert made.tau >= 0.95 * naive.tau
    many = replace(planner, batch=4).plan(fixed + 4 * (whole["total"] - fixed) * 6 // 10)
    assert isinstance(many, Plan)
    assert 4 * many.n > 153 > 4 * many.n - 40, "rows share the device's arithmetic: more nodes would cost time"


def test_the_curve_is_what_plans_choose():
    planner = Planner(MODEL, 2, 200, acceptance=TREE, max_nodes=16)
    steps = planner.curve()
    assert len(steps) > 2
    assert [b for b, _ in steps] == sorted(b for b, _ in steps)
    for bytes_, chosen in steps:
        made = planner.plan(bytes_)
        assert isinstance(made, Plan)
        assert (made.n, made.speed) == (chosen.n, chosen.speed)


def test_blocks_of_a_paged_cache():
    got = planned(10**9, context=100, batch=2)
    assert got.kv_blocks(16) == 2 * -(-(100 + got.n) // 16)
    assert got.to_dict()["total"] == got.total


@pytest.mark.parametrize(
    "options", [{"batch": 0}, {"context": 0}, {"epsilon": 1.0}, {"now": 9, "context": 8}, {"max_nodes": 0}, {"x": 1}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]):
    with pytest.raises(ConfigError):
        plan(10**9, MODEL, **options)


@pytest.mark.parametrize("budget", [0, -1, 1.5, "24GiB"])
def test_budgets_that_are_none_are_refused(budget: Any):
    with pytest.raises(ConfigError, match="in bytes"):
        plan(budget, MODEL)


def test_a_refusal_is_an_error_for_hosts():
    one = refused(10, context=500)
    with pytest.raises(ConfigError, match=f"{one.missing_bytes} are missing"):
        one.throw()
    for name in ("n", "depth", "L_max"):  # what an engine reads of a plan
        with pytest.raises(ConfigError, match="are missing"):
            getattr(one, name)


def test_roofline_by_hand():
    machine = replace(DEVICES["t4"], bandwidth=1e9, flops=1e12)
    alone = MODEL.without_drafter()
    costs = Roofline(alone, machine, step=0.5, guess=0.25)
    read = alone.target.weights + 2 * alone.target.kv_per_token * 101
    assert costs.verify(2, 1, 100) == pytest.approx(0.5 + read / 1e9)
    slow = Roofline(alone, replace(machine, flops=1e6))
    parameters = alone.target.weights / 2
    attended = 2 * 2 * 4 * 100 * alone.target.kv_per_token / 2
    assert slow.verify(2, 4, 100) == pytest.approx((2 * 2 * 4 * parameters + attended) / 1e6)
    assert (costs.draft(1, 0, 1, 100), costs.draft(1, 3, 1, 100)) == (0.0, 0.25)


def test_measured_times_are_interpolated_and_go_on():
    costs = Measured({1: 1.0, 4: 4.0, 8: 6.0}, draft_seconds=0.1)
    assert [costs.verify(1, n, 0) for n in (1, 2, 4, 6, 8, 12)] == pytest.approx([1, 2, 4, 5, 6, 8])
    assert costs.draft(1, 3, 1, 0) == pytest.approx(0.3)
    assert Measured({1: 2.0}).verify(1, 9, 0) == 2.0
    for bad in ({2: 1.0}, {1: 0.0}):
        with pytest.raises(ConfigError, match="times"):
            Measured(bad)


def test_this_machine_can_be_measured():
    here = measure_device(megabytes=2, size=64, repeats=1)
    assert here.bandwidth > 1e7
    assert here.flops > 1e7
    with pytest.raises(ConfigError, match="unknown device"):
        device("h10")
    seen: list[int] = []
    times = time_passes(seen.append, (1, 2), repeats=2)
    assert seen == [1, 1, 1, 2, 2, 2]
    assert set(times) == {1, 2}


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (TARGET, {}, "model of type dict; accepted: a MemoryModel"),
        (None, {}, "model of type NoneType"),
        (MODEL, {"acceptance": 0.7}, "acceptance=0.7; .*Acceptance.constant"),
        (MODEL, {"costs": 3}, "costs=3; accepted: Roofline"),
    ],
)
def test_arguments_of_another_kind_are_refused(model: Any, options: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        plan(10**9, model, **options)
