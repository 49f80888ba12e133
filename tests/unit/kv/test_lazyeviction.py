"""LazyEviction against the reference vectors and a simulator of hand-made activity."""

import pytest
import torch

from remnant.errors import ConfigError
from remnant.kv import KVView, get_policy
from remnant.kv.policies.lazyeviction import LazyEviction

AWAY = [0, 1, 10, 50, 175, 400]
TABLE = {
    0: [0.5379, 0, 0, 0, 0, 0],
    1: [1.5379, 1.2384, 1, 1, 1, 1],
    2: [1.0758, 0.9027, 0.5428, 0.5379, 0.5379, 0.5379],
    10: [0.5381, 0.4997, 0.2387, 0.0052, 0.0002, 0.0002],
    50: [0.5379, 0.5301, 0.4630, 0.2384, 0.0220, 0.0002],
    175: [0.5379, 0.5356, 0.5157, 0.4332, 0.2384, 0.0721],
}


class Cache:
    """The host in miniature: positions, sides, and slots overwritten or compacted."""

    def __init__(self, policy, prompt, rows=1, budget=10**6):
        self.policy, self.budget, self.seen, self.step = policy, budget, prompt, 0
        self.positions = torch.arange(prompt).expand(rows, 1, prompt)
        self.side = {s.name: torch.full((rows, 1, prompt), s.fill, dtype=s.dtype) for s in policy.sides}

    def view(self, attn=None):
        b, h, s = self.positions.shape
        kv = torch.zeros(b, h, s, 2)
        return KVView(kv, kv, self.positions, self.seen, attn=attn, side=self.side, step=self.step)

    def decode(self, active):
        """One step; `active[row]` are the positions that its newest query attends to."""
        rows = self.positions.shape[0]
        self.positions = torch.cat([self.positions, torch.full((rows, 1, 1), self.seen)], -1)
        for s in self.policy.sides:
            self.side[s.name] = torch.cat([self.side[s.name], torch.full((rows, 1, 1), s.fill, dtype=s.dtype)], -1)
        self.seen, self.step = self.seen + 1, self.step + 1
        attn = torch.stack(
            [torch.isin(self.positions[i], torch.tensor(sorted(a))).float() for i, a in enumerate(active)]
        )
        self.side |= self.policy.observe(self.view(attn))[0]
        stored = self.positions.shape[-1]
        if self.policy.due("decode", self.step, stored, self.budget):
            keep = self.policy.plan(self.view(), self.budget).indices
            dropped = self.policy.evict(self.view(), stored - self.budget)
            assert not torch.isin(keep, dropped).any() or rows > 1
            assert keep.shape[-1] + dropped.shape[-1] == stored
            self.positions = self.positions.gather(-1, keep)
            self.side = {n: x.gather(-1, keep) for n, x in self.side.items()}


def simulate(prompt, pattern, window, budget, score):
    """The rule in plain Python over events: {position: [last, interval]}."""
    slots = {p: [prompt, 0] for p in range(prompt)}
    for step, active in enumerate(pattern, 1):
        t = prompt + step
        slots[t - 1] = [t - 1, 0]
        for p in active & slots.keys():
            slots[p] = [t, max(slots[p][1], t - slots[p][0])]
        if len(slots) > budget and step % window == 0:
            old = [p for p in slots if p < t - window]
            rank = sorted(old, key=lambda p: (score(t - slots[p][0], slots[p][1]), p), reverse=True)
            kept = {*rank[: budget - window], *(p for p in slots if p >= t - window)}
            slots = {p: s for p, s in slots.items() if p in kept}
    return slots


@pytest.mark.parametrize("interval", TABLE)
def test_paper_formula_gives_the_reference_vectors(interval):
    policy = LazyEviction(formula="paper")
    score = policy.recurrence(torch.tensor(AWAY), torch.full((len(AWAY),), interval))
    torch.testing.assert_close(score, torch.tensor(TABLE[interval], dtype=torch.float32), atol=6e-5, rtol=0)


def test_corrected_formula_is_the_log_of_the_product_where_that_exists():
    away, interval = torch.tensor([0, 1, 5, 20, 3]), torch.tensor([1, 1, 2, 30, 10])
    longest = torch.maximum(away, interval)
    product = torch.sigmoid(-1 - away / (interval + 1e-5)) * torch.sigmoid(1.0 - longest)
    torch.testing.assert_close(LazyEviction().recurrence(away, interval), product.log(), atol=1e-4, rtol=1e-4)


def test_corrected_formula_has_no_immortal_slots():
    # Active twice in a row, then silent for 175 tokens, against one that returns every 64 and is due again.
    away, interval = torch.tensor([175, 40]), torch.tensor([1, 64])
    dead, recurring = LazyEviction(formula="paper").recurrence(away, interval)
    assert dead > recurring
    dead, recurring = LazyEviction().recurrence(away, interval)
    assert dead < recurring
    long = LazyEviction().recurrence(torch.tensor([10, 300, 200_000]), torch.tensor([500, 500, 0]))
    assert torch.isfinite(long).all()
    assert long[0] > long[1] > long[2]


@pytest.mark.parametrize("formula", ["paper", "corrected"])
@pytest.mark.parametrize("seed", range(4))
def test_cache_equals_event_simulator(formula, seed):
    g = torch.Generator().manual_seed(seed)
    prompt, window, budget, steps = 9, 4, 12, 40
    recurring = {int(p): int(r) for p, r in zip(torch.randperm(9, generator=g)[:3], (3, 7, 11), strict=True)}
    pattern = [
        {p for p, r in recurring.items() if t % r == 0} | set(torch.randint(0, prompt + t, (3,), generator=g).tolist())
        for t in range(1, steps + 1)
    ]
    policy = LazyEviction(window=window, formula=formula)

    def score(d, m):
        return float(policy.recurrence(torch.tensor(d), torch.tensor(m)))

    cache = Cache(policy, prompt, budget=budget)
    for t, active in enumerate(pattern, 1):
        cache.decode([active])
        expected = simulate(prompt, pattern[:t], window, budget, score)
        assert cache.positions.flatten().tolist() == sorted(expected)
        assert cache.positions.shape[-1] <= max(prompt + window, budget + window)
        last, interval = policy.stamps(cache.view())
        got = {
            p: [a, b]
            for p, a, b in zip(
                cache.positions.flatten().tolist(), last.flatten().tolist(), interval.flatten().tolist(), strict=True
            )
        }
        assert got == expected


def test_recurring_token_survives_and_a_burst_does_not():
    # Position 1 is read every 8 tokens; 2, 3 and 25 twice in a row and never again; the rest never.
    pattern = [({1} if t == 3 or t % 8 == 0 else set()) | ({2, 3} if t <= 2 else set()) for t in range(1, 97)]
    pattern[19] = pattern[20] = {25}
    kept = {}
    for formula in ("corrected", "paper"):
        cache = Cache(LazyEviction(window=4, formula=formula, activity=0.5), 6, budget=7)
        for active in pattern:
            cache.decode([active])
        kept[formula] = cache.positions.flatten().tolist()
    assert kept["paper"][:3] == [2, 3, 25]
    assert 1 in kept["corrected"]


@pytest.mark.parametrize("formula", ["paper", "corrected"])
def test_window_one_and_alpha_zero_is_recency(formula):
    cache = Cache(LazyEviction(window=1, alpha=0.0, formula=formula), 5, budget=6)
    for t in range(12):
        cache.decode([{t % 3}])
    assert cache.positions.flatten().tolist() == list(range(17 - 6, 17))


def test_first_step_of_a_prompt_stamps_it_whatever_the_chunks():
    policy = LazyEviction(window=4, activity=0.5)
    cache = Cache(policy, 3)
    cache.decode([{0}])
    assert cache.side["last"].tolist() == [[[4, 3, 3, 3]]]
    assert cache.side["interval"].tolist() == [[[1, 0, 0, 0]]]
    assert cache.side["last"].dtype == torch.int32
    cache.decode([{0, 3}])
    assert cache.side["last"].tolist() == [[[5, 3, 3, 5, 4]]]
    assert cache.side["interval"].tolist() == [[[1, 0, 0, 2, 0]]]


def test_rows_do_not_see_each_other():
    a = [{0} if t % 3 == 0 else {2} for t in range(20)]
    b = [{1} if t % 5 == 0 else set() for t in range(20)]
    both, alone = Cache(LazyEviction(window=3), 6, rows=2, budget=7), []
    for x, y in zip(a, b, strict=True):
        both.decode([x, y])
    for pattern in (a, b):
        cache = Cache(LazyEviction(window=3), 6, budget=7)
        for x in pattern:
            cache.decode([x])
        alone.append(cache.positions)
    assert torch.equal(both.positions, torch.cat(alone))


def test_threshold_is_relative_to_real_slots_or_absolute():
    p = torch.tensor([[[0.2, 0.3, 0.5, 0.0]]])
    kv = torch.zeros(1, 1, 4, 2)
    side = {"last": torch.full((1, 1, 4), 4, dtype=torch.int32), "interval": torch.zeros(1, 1, 4, dtype=torch.int32)}
    view = KVView(kv, kv, torch.arange(4).expand(1, 1, 4), 9, attn=p, side=side)
    assert LazyEviction(activity=1.0).observe(view)[0]["last"].tolist() == [[[4, 9, 9, 4]]]
    assert LazyEviction(alpha=0.4).observe(view)[0]["last"].tolist() == [[[4, 4, 9, 4]]]
    padded = KVView(kv, kv, view.positions, 9, attn=p, side=side, valid=torch.tensor([[[False, True, True, False]]]))
    assert LazyEviction(activity=0.8).observe(padded)[0]["last"].tolist() == [[[4, 4, 9, 4]]]
    assert LazyEviction(alpha=0.0).observe(padded)[0]["last"].tolist() == [[[4, 9, 9, 4]]]


def test_padding_goes_first_and_recency_goes_by_position():
    kv = torch.zeros(1, 1, 5, 2)
    side = {"last": torch.tensor([[[8, 9, 2, 8, 1]]]), "interval": torch.tensor([[[1, 1, 1, 1, 1]]])}
    view = KVView(
        kv,
        kv,
        torch.tensor([[[8, 3, 7, 4, 0]]]),
        9,
        side=side,
        valid=torch.tensor([[[True, True, True, True, False]]]),
        ordered=False,
    )
    policy = LazyEviction(window=2)
    assert policy.plan(view, 3).indices.tolist() == [[[1, 2, 0]]]
    assert sorted(policy.evict(view, 2).flatten().tolist()) == [3, 4]
    assert policy.in_place


def test_options_are_checked():
    assert get_policy("lazyeviction", alpha=5e-4, window=3).minimum == 4
    for bad in ({"window": 0}, {"alpha": 2.0}, {"activity": -1.0}, {"formula": "other"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            get_policy("lazyeviction", **bad)
