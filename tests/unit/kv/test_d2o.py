"""D2O: budgets, threshold and plan against hand-computed answers and loops; decode in a small host."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.errors import ConfigError
from remnant.kv import KVView, get_policy
from remnant.kv.merge import apply_merge
from remnant.kv.policies.d2o import D2O, UNBOUNDED, apportion


def make_view(s=20, b=2, h=2, g=2, d=6, seed=0, pad=0, **kw) -> Any:
    gen = torch.Generator().manual_seed(seed)
    k, v = torch.randn(b, h, s, d, generator=gen), torch.randn(b, h, s, d, generator=gen)
    q = torch.randn(b, h * g, s, d, generator=gen)
    valid = None
    if pad:
        valid = torch.ones(b, h, s, dtype=torch.bool)
        valid[-1, :, :pad] = False
    kw.setdefault("side", {"mass": torch.zeros(b, h, s)})
    return KVView(k, v, torch.arange(s).expand(b, h, s), s, queries=q, valid=valid, **kw)


def with_side(view, side, **kw) -> Any:
    fields = {n: getattr(view, n) for n in view.__dataclass_fields__}
    return KVView(**{**fields, "side": dict(side), **kw})


def plan(policy, view, tokens) -> Any:
    return policy.plan(view, tokens)


def observed(policy, view) -> Any:
    return with_side(view, policy.observe(view)[0])


def row_of(view, row, pad=0):
    one = slice(row, row + 1)
    s = view.shape[2] - pad
    return KVView(
        view.k[one, :, pad:],
        view.v[one, :, pad:],
        torch.arange(s).expand(1, view.shape[1], s),
        s,
        queries=view.queries[one, :, pad:],
        side={"mass": torch.zeros(1, view.shape[1], s)},
    )


def naive_plan(view, mass, tokens, recent, sinks, tau=None, alpha=0.5, beta=0.5):
    """Kept slots, and (src, dst, m) of what is folded, per row and head, by loops."""
    b, h, s = view.shape
    out = {}
    for bi in range(b):
        for hi in range(h):
            real = [j for j in range(s) if view.valid is None or view.valid[bi, hi, j]]
            safe = set(real[:sinks]) | {j for j in real if j >= s - recent}
            rest = sorted((j for j in real if j not in safe), key=lambda j: (float(mass[bi, hi, j]), j), reverse=True)
            kept = sorted(safe | set(rest[: tokens - len(safe)]))
            ms = []
            for e in (j for j in real if j not in kept):
                cosine = [float(torch.cosine_similarity(view.k[bi, hi, e], view.k[bi, hi, c], dim=0)) for c in kept]
                ms.append((e, kept[max(range(len(kept)), key=lambda c: cosine[c])], max(cosine)))
            mean = sum(m for *_, m in ms) / len(ms) if ms else math.nan
            t = mean if tau is None else alpha * float(tau[bi, hi]) + beta * mean
            out[bi, hi] = kept, [x for x in ms if x[2] >= t - 1e-6], t
    return out


@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("seed", range(3))
def test_plan_equals_loops(seed, pad, by_loops):
    policy = D2O(sinks=2)
    view = observed(policy, make_view(seed=seed, pad=pad))
    keep = plan(policy, view, 9)
    expected = naive_plan(view, view.side["mass"], 9, 4, 2)
    values = apply_merge(view.v, keep)
    torch.testing.assert_close(values, by_loops(apply_merge, view.v, keep), atol=1e-5, rtol=0)
    for (b, h), (kept, folded, tau) in expected.items():
        assert keep.indices[b, h].tolist() == kept
        assert float(keep.state["tau"][b, h]) == pytest.approx(tau, abs=1e-5)
        found = [
            (int(src), kept[int(dst)])
            for src, dst in zip(keep.merge.src[b, h], keep.merge.dst[b, h], strict=True)
            if src >= 0
        ]
        assert found == [(e, c) for e, c, _ in folded]
        for c, slot in enumerate(kept):
            members = [(e, m) for e, target, m in folded if target == slot]
            total = math.e + sum(math.exp(m) for _, m in members)
            value = view.v[b, h, slot] * math.e / total
            for e, m in members:
                value = value + view.v[b, h, e] * math.exp(m) / total
            torch.testing.assert_close(values[b, h, c], value, atol=1e-5, rtol=0)


def test_mass_is_the_column_sum_and_grows_by_the_row():
    policy = D2O()
    view = make_view(s=7, g=2)
    mass = torch.zeros(2, 2, 7)
    for b in range(2):
        for h in range(4):
            for i in range(7):
                p = (view.k[b, h // 2, : i + 1] @ view.queries[b, h, i] * view.scale).softmax(0)
                mass[b, h // 2, : i + 1] += p / 2
    view = observed(policy, view)
    torch.testing.assert_close(view.side["mass"], mass, atol=1e-5, rtol=0)
    row = torch.rand(2, 2, 7)
    later = with_side(view, view.side, queries=None, attn=row, step=1)
    torch.testing.assert_close(policy.observe(later)[0]["mass"], mass + row, atol=1e-5, rtol=0)


def test_threshold_by_hand():
    policy, gone = D2O(alpha=0.25, beta=0.75), -math.inf
    m = torch.tensor([[[0.2, 0.6], [0.5, gone], [gone, gone]]])
    tau = policy.threshold(m, None)
    torch.testing.assert_close(tau, torch.tensor([[0.4, 0.5, math.nan]]), equal_nan=True)
    later = policy.threshold(torch.tensor([[[0.8, gone], [gone, gone], [0.1, gone]]]), tau)
    torch.testing.assert_close(later, torch.tensor([[0.25 * 0.4 + 0.75 * 0.8, 0.5, 0.1]]))


def test_threshold_is_monotone_under_constant_input():
    policy, tau, path = D2O(), torch.tensor([[0.1]]), []
    for _ in range(20):
        tau = policy.threshold(torch.tensor([[[0.9]]]), tau)
        path.append(tau.item())
    assert path == sorted(path)
    assert path[-1] == pytest.approx(0.9, abs=1e-4)


def test_layer_statistic_by_hand_without_padding():
    mass = torch.tensor([[[9.0, 1, 2, 6], [9, 2, 2, 2]]])
    valid = torch.tensor([False, True, True, True]).expand(1, 2, 4)
    kv = torch.zeros(1, 2, 4, 2)
    view = KVView(kv, kv, torch.arange(4).expand(1, 2, 4), 4, side={"mass": mass}, valid=valid)
    assert D2O().layer_stat(view).tolist() == [3.5]  # variances 7 and 0, divided by n - 1
    torch.testing.assert_close(D2O(allocation="code").layer_stat(view), torch.tensor([0.5]))


def test_budgets_by_hand_and_the_compat_options():
    stats = torch.tensor([[4.0], [1.0], [1.0], [2.0]])
    z = (stats.flatten() - 2) / 1.5**0.5
    share = (-z).softmax(0) * 40
    got = D2O(allocation="variance").layer_budgets(stats, 100, 10)
    assert sum(got) == 40
    # The first layer would get 1.7 of 40 and is lifted to the minimum of 5; the others share the rest.
    rest = share[1:] / share[1:].sum() * 35
    assert got[0] == D2O().minimum == 5
    assert all(abs(x - float(y)) < 1 for x, y in zip(got[1:], rest, strict=True))
    assert D2O(allocation="uniform").layer_budgets(stats, 100, 10) == [10] * 4
    assert D2O(allocation="variance").layer_budgets(stats, 10, 10) == [10] * 4
    assert D2O().allocation == "uniform"
    skipped = D2O(allocation="variance", skip=(0, 1, -1)).layer_budgets(stats, 100, 10)
    assert skipped == [UNBOUNDED, UNBOUNDED, got[2], UNBOUNDED]
    code = D2O(allocation="code").layer_budgets(torch.tensor([[0.2], [0.6]]), 100, 10)
    assert code == [12, 8]  # 20 * sigmoid(0.4) = 11.97


def test_a_layer_whose_budget_is_its_prompt_stays_bounded():
    got = D2O(allocation="variance").layer_budgets(torch.tensor([[0.0], [50.0], [50.0]]), 12, 10)
    assert max(got) == 12
    assert sum(got) == 30
    assert D2O().due("decode", 1, 13, 12)


@settings(max_examples=100, deadline=None)
@given(
    shares=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12),
    low=st.integers(1, 20),
    high=st.integers(20, 200),
    tokens=st.integers(1, 250),
)
def test_apportion_keeps_sum_and_bounds(shares, low, high, tokens):
    n = len(shares)
    out = apportion(shares, low, high, n * tokens)
    assert sum(out) == n * min(tokens, high)
    assert all(min(low, tokens) <= x <= high for x in out)
    for i in range(n):
        for j in range(n):
            assert shares[i] < shares[j] or out[i] >= out[j] - 1


def decode(policy, view, tokens, steps, seed):
    """A small host: plan, fold, compact, append; random rows of attention. Yields each plan."""
    g = torch.Generator().manual_seed(seed)
    k, v, positions, side, state, seen = view.k, view.v, view.positions, dict(view.side), {}, view.seen
    valid = view.valid if view.valid is not None else torch.ones(view.shape, dtype=torch.bool)
    for step in range(steps + 1):
        if step:
            b, h, _ = valid.shape
            new = torch.randn(1, h, 1, k.shape[-1], generator=g).expand(b, -1, -1, -1)
            k, v = torch.cat([k, new], 2), torch.cat([v, new.flip(-1)], 2)
            positions = torch.cat([positions, torch.full((b, h, 1), seen)], -1)
            valid = torch.cat([valid, torch.ones(b, h, 1, dtype=torch.bool)], -1)
            side = {"mass": torch.cat([side["mass"], torch.zeros(b, h, 1)], -1)}
            seen += 1
            attn = (k.sum(-1).masked_fill(~valid, -math.inf)).softmax(-1)
            shown = KVView(k, v, positions, seen, side=side, state=state, valid=valid, attn=attn, step=step)
            side = dict(policy.observe(shown)[0])
        now = KVView(k, v, positions, seen, side=side, state=state, valid=valid, step=step)
        keep = plan(policy, now, tokens)
        yield now, keep
        v = apply_merge(v, keep)
        k = k.gather(2, keep.indices.unsqueeze(-1).expand(*keep.indices.shape, k.shape[-1]))
        positions, valid, side = (x.gather(-1, keep.indices) for x in (positions, valid, side["mass"]))
        side, state = {"mass": side}, {**state, **keep.state}


def test_decode_evicts_one_and_moves_the_threshold():
    policy = D2O(sinks=2)
    view, tau = observed(policy, make_view()), None
    for now, keep in decode(policy, view, 9, 12, seed=3):
        expected = naive_plan(now, now.side["mass"], 9, 4, 2, tau)
        tau = keep.state["tau"]
        assert keep.indices.shape[-1] == 9
        assert now.shape[2] == (10 if now.step else 20)
        for (b, h), (kept, folded, t) in {} if now.step == 0 else expected.items():
            old = now.positions[b, h]
            # Sinks are positions, not slots: the loops work on slots, where both are the first two.
            assert old[:2].tolist() == [0, 1]
            assert keep.indices[b, h].tolist() == kept
            assert float(tau[b, h]) == pytest.approx(t, abs=1e-5)
            assert (keep.merge.src[b, h] >= 0).sum().item() == len(folded)


@pytest.mark.parametrize("pad", [0, 6])
def test_rows_do_not_see_each_other(pad):
    policy = D2O(sinks=2)
    batch = make_view(pad=pad)
    both = list(decode(policy, observed(policy, batch), 8, 6, seed=4))
    for row in range(2):
        skip = pad if row else 0
        alone = list(decode(policy, observed(policy, row_of(batch, row, skip)), 8, 6, seed=4))
        for (now_a, a), (now_b, b) in zip(both, alone, strict=True):
            at = now_a.positions[row].gather(-1, a.indices[row]) - skip
            assert torch.equal(at, now_b.positions[0].gather(-1, b.indices[0]))
            torch.testing.assert_close(apply_merge(now_a.v, a)[row], apply_merge(now_b.v, b)[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(a.state["tau"][row], b.state["tau"][0], atol=1e-5, rtol=0)


def test_group_is_the_mean_of_repeated_heads():
    view = make_view(g=3)
    repeated = KVView(
        view.k.repeat_interleave(3, 1),
        view.v.repeat_interleave(3, 1),
        view.positions.repeat_interleave(3, 1),
        view.seen,
        queries=view.queries,
        side={"mass": torch.zeros(2, 6, 20)},
    )
    each = D2O().observe(repeated)[0]["mass"].view(2, 2, 3, 20).mean(2)
    torch.testing.assert_close(D2O().observe(view)[0]["mass"], each, atol=1e-5, rtol=0)


def test_what_fits_is_kept_whole_and_a_short_row_is_left_alone():
    policy = D2O(sinks=1)
    view = observed(policy, make_view(pad=14))
    assert policy.plan(view, 20).merge is None
    keep = plan(policy, view, 8)
    assert set(range(14, 20)) <= set(keep.indices[1, 0].tolist())
    assert (keep.merge.src[1] == -1).all()
    assert keep.state["tau"][1].isnan().all()
    torch.testing.assert_close(apply_merge(view.v, keep)[1, :, -6:], view.v[1, :, 14:])


def test_keys_are_merged_only_on_demand():
    for keys in (False, True):
        policy = D2O(merge_keys=keys)
        assert plan(policy, observed(policy, make_view()), 9).merge.keys is keys
    assert plan(D2O(weights="code"), observed(D2O(), make_view()), 9).merge.own.min() < 0.6


def test_options_are_checked():
    assert get_policy("d2o", sinks=3, skip=(0, 1, -1)).minimum == 4
    assert not D2O().in_place
    for bad in ({"recent_share": 1.5}, {"allocation": "mean"}, {"alpha": -0.1}, {"beta": 2.0}, {"weights": "sum"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            get_policy("d2o", **bad)
