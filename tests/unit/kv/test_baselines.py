"""The small policies and the heavy hitters: answers by hand, loops as oracles, and in-place eviction."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from remnant.errors import ConfigError  # noqa: E402
from remnant.kv.policies.expected import ExpectedAttention  # noqa: E402
from remnant.kv.policies.h2o import H2O  # noqa: E402
from remnant.kv.policies.keydiff import KeyDiff  # noqa: E402
from remnant.kv.policies.knorm import Knorm  # noqa: E402
from remnant.kv.policies.random import Random  # noqa: E402
from remnant.kv.policies.streaming import Streaming  # noqa: E402
from remnant.kv.policies.tova import TOVA  # noqa: E402
from remnant.kv.policies.window import Window  # noqa: E402
from remnant.kv.view import KVView, Rope  # noqa: E402

ROPE = Rope(torch.tensor([1.0, 0.3, 0.1]))  # six of eight channels are rotated


def kept(policy, view, tokens):
    """Positions kept, as lists."""
    indices = policy.plan(view, tokens).indices
    return view.positions.gather(-1, indices).tolist()


def watched(policy, view):
    """The view after the host stored what the policy observed."""
    b, h, s = view.shape
    view = replace(view, side={x.name: torch.full((b, h, s), x.fill, dtype=x.dtype) for x in policy.sides})
    side, state = policy.observe(view)
    return replace(view, side={**view.side, **side}, state={**view.state, **state})


def by_hand(score, tokens):
    """Positions of the best of one row, ties to the larger."""
    return sorted(sorted(range(len(score)), key=lambda i: (score[i], i))[-tokens:])


ALL = [
    Random(),
    Random(seed=7, sinks=2, recent=2),
    Window(),
    Streaming(),
    Knorm(),
    KeyDiff(),
    TOVA(),
    TOVA(recent=1),
    H2O(),
    H2O(normalise=True),
    H2O(score_queries="last", window=3),
    ExpectedAttention(),
    ExpectedAttention(covariance=False, vnorm=False),
]
IN_PLACE = [p for p in ALL if p.in_place]


def test_window_and_streaming_by_hand(make_view):
    view = make_view(s=10, h=1)
    assert kept(Window(), view, 3) == [[[7, 8, 9]]]
    assert kept(Streaming(sinks=2), view, 5) == [[[0, 1, 7, 8, 9]]]
    assert Streaming().minimum == 5
    padded = make_view(s=10, h=1, starts=[3])
    assert kept(Streaming(sinks=2), padded, 5) == [[[3, 4, 7, 8, 9]]]


def test_window_goes_by_position_not_by_slot(make_view):
    view = make_view(s=4, h=1, positions=torch.tensor([[[4, 1, 2, 3]]]), seen=5, ordered=False)
    assert kept(Window(), view, 2) == [[[3, 4]]]
    assert Window().evict(view, 1).tolist() == [[[1]]]


def test_streaming_refuses_unknown_positions():
    assert Streaming(positions="rerotate").positions == "rerotate"
    with pytest.raises(ConfigError, match="keep, rerotate"):
        Streaming(positions="closed")  # pyright: ignore[reportArgumentType]


def test_knorm_by_hand():
    k = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [0.6, 0.8]]).view(1, 1, 4, 2)
    view = KVView(k, k, torch.arange(4).view(1, 1, 4), seen=4)
    assert Knorm().score(view).tolist() == [[[-5.0, -1.0, -2.0, -1.0]]]
    assert kept(Knorm(), view, 1) == [[[3]]]  # slots 1 and 3 tie: the newer one
    assert kept(Knorm(), view, 3) == [[[1, 2, 3]]]


def test_keydiff_by_hand():
    # Three keys to the east, one to the north: the one that differs stays, then the newest of the equals.
    k = torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 1.0], [2.0, 0.0]]).view(1, 1, 4, 2)
    view = KVView(k, k, torch.arange(4).view(1, 1, 4), seen=4)
    assert kept(KeyDiff(), view, 2) == [[[2, 3]]]
    # As padding the eastern keys do not shape the mean.
    valid = torch.tensor([[[False, False, True, True]]])
    score = KeyDiff().score(replace(view, valid=valid))[0, 0]
    assert score[2:].tolist() == pytest.approx([-(0.5**0.5)] * 2)


def test_random_is_a_uniform_sample_that_depends_on_nothing_else(make_view):
    policy = Random(seed=3)
    view = make_view(s=4000, h=2, d=1)
    score = policy.score(view)
    assert 0 <= float(score.min()) < 0.01 < 0.99 < float(score.max()) < 1
    assert float(score.mean()) == pytest.approx(0.5, abs=0.02)
    assert abs(float(torch.corrcoef(score[0])[0, 1])) < 0.06  # heads draw by themselves
    assert not torch.equal(score, Random(seed=4).score(view))
    assert not torch.equal(score, policy.score(replace(view, layer=1)))
    # Dropping tokens one by one ends with the sample that one decision makes.
    once = set(kept(policy, view, 50)[0][0])
    half = policy.plan(view, 500).indices
    again = replace(view, k=half.unsqueeze(-1), v=half.unsqueeze(-1), positions=half)
    assert set(kept(policy, again, 50)[0][0]) == once


def test_keydiff_equals_the_loop(make_view):
    view = make_view(s=17, b=2, starts=[0, 4])
    assert view.valid is not None
    score = KeyDiff().score(view)
    for b in range(2):
        for h in range(2):
            units = [k / k.norm() for k, ok in zip(view.k[b, h].double(), view.valid[b, h], strict=True) if ok]
            mean = torch.stack(units).mean(0)
            for j in range([0, 4][b], 17):
                k = view.k[b, h, j].double()
                assert float(score[b, h, j]) == pytest.approx(float(-(k @ mean) / (k.norm() * mean.norm())), abs=1e-5)


def attention_by_loops(view):
    """p[b][query head][query][slot] in float64, with causal mask and padding."""
    b, h, s = view.shape
    g, w = view.group, view.queries.shape[2]
    p = torch.zeros(b, h * g, w, s, dtype=torch.float64)
    for x in range(b):
        for n in range(h * g):
            for i in range(w):
                at = view.seen - w + i
                e = {}
                for j in range(s):
                    ok = view.valid is None or bool(view.valid[x, n // g, j])
                    if ok and int(view.positions[x, n // g, j]) <= at:
                        dot = view.queries[x, n, i].double() @ view.k[x, n // g, j].double()
                        e[j] = float((dot * view.scale).exp())
                for j, y in e.items():
                    p[x, n, i, j] = y / sum(e.values())
    return p


@pytest.mark.parametrize("normalise", [False, True])
def test_h2o_equals_the_loop(make_view, normalise):
    view = make_view(s=14, b=2, w=14, starts=[0, 3])
    policy = H2O(normalise=normalise)
    p = attention_by_loops(view)
    want = torch.zeros(2, 2, 14, dtype=torch.float64)
    for b in range(2):
        for n in range(4):
            for i in range(14):
                for j in range(14):
                    want[b, n // 2, j] += p[b, n, i, j] / 2 / ((14 - j) if normalise else 1)
    view = watched(policy, view)
    assert torch.allclose(policy.score(view).double(), want, atol=1e-5)
    assert kept(policy, view, 6)[0] == [sorted({11, 12, 13} | set(by_hand(row[:11].tolist(), 3))) for row in want[0]]


def test_h2o_adds_decoded_rows_and_reserves_its_share(make_view):
    view = watched(H2O(), make_view(s=6, h=1, g=1, w=6))
    row = torch.tensor([[[0.9, 0.0, 0.0, 0.0, 0.0, 0.1]]])
    side, _ = H2O().observe(replace(view, step=1, attn=row, queries=None))
    assert torch.equal(side["mass"], view.side["mass"] + row)
    mass = torch.tensor([[[1.0, 9.0, 2.0, 3.0, 0.0, 0.0]]])
    view = replace(view, side={"mass": mass})
    assert kept(H2O(), view, 4) == [[[1, 3, 4, 5]]]  # half of four are the newest
    assert kept(H2O(recent_share=0.25), view, 4) == [[[1, 2, 3, 5]]]
    assert kept(H2O(recent_share=0), view, 4) == [[[0, 1, 2, 3]]]
    assert kept(H2O(recent_share=1, sinks=1), view, 4) == [[[0, 3, 4, 5]]]


def test_h2o_in_blocks_sums_what_each_block_saw(make_view):
    whole = make_view(s=12, w=12)
    policy = H2O()
    mass = torch.zeros(1, 2, 0)
    for end in (5, 12):
        n = end - mass.shape[-1]
        part = replace(
            whole,
            k=whole.k[:, :, :end],
            v=whole.v[:, :, :end],
            positions=whole.positions[:, :, :end],
            seen=end,
            queries=whole.queries[:, :, end - n : end],
            side={"mass": torch.cat([mass, torch.zeros(1, 2, n)], -1)},
        )
        mass = policy.observe(part)[0]["mass"]
    assert torch.allclose(mass, watched(policy, whole).side["mass"], atol=1e-5)


def test_h2o_last_is_the_tail_of_all(make_view):
    view = make_view(s=12, w=12)
    cheap = watched(H2O(score_queries="last", window=4), view).side["mass"]
    tail = watched(H2O(), replace(view, queries=view.queries[:, :, -4:])).side["mass"]
    assert torch.equal(cheap, tail)
    with pytest.raises(ConfigError, match="normalise"):
        H2O(score_queries="last", normalise=True)


def test_tova_equals_the_loop_and_keeps_one_set_for_all_heads(make_view):
    view = make_view(s=15, b=2, w=5, starts=[0, 4])
    p = attention_by_loops(view)
    score = TOVA().score(view)
    for b in range(2):
        row = [sum(float(p[b, n, -1, j]) for n in range(4)) / 4 for j in range(15)]
        assert score[b, 0].tolist() == pytest.approx(row, abs=1e-5)
        assert kept(TOVA(), view, 6)[b] == [by_hand(row, 6)] * 2
    # A decoded row arrives ready.
    attn = torch.rand(2, 2, 15)
    assert torch.allclose(TOVA().score(replace(view, step=1, attn=attn))[:, 1], attn.mean(1))
    assert 14 in kept(TOVA(recent=1), replace(view, step=1, attn=-attn), 2)[0][0]


def test_expected_equals_the_loop(make_view):
    s, d, future = 13, 8, 20
    view = make_view(s=s, b=2, w=s, starts=[0, 3], rope=ROPE)
    got = ExpectedAttention(future=future, epsilon=0.02).score(view)
    half = ROPE.inv_freq.shape[0]

    def matrix(p):
        out = torch.eye(d, dtype=torch.float64)
        for c in range(half):
            a = torch.tensor(p * float(ROPE.inv_freq[c]), dtype=torch.float64)
            out[c, c] = out[c + half, c + half] = a.cos()
            out[c + half, c], out[c, c + half] = a.sin(), -a.sin()
        return out

    turn = torch.stack([matrix(s + i) for i in range(future)]).mean(0)
    for b, start in enumerate([0, 3]):
        for h in range(2):
            want = torch.zeros(s, dtype=torch.float64)
            for n in (2 * h, 2 * h + 1):
                q = [matrix(-i) @ view.queries[b, n, i].double() for i in range(start + 4, s)]
                mean = torch.stack(q).mean(0)
                spread = torch.stack([torch.outer(x - mean, x - mean) for x in q]).mean(0)
                mean, spread = turn @ mean, turn @ spread @ turn.T
                e = {}
                for j in range(start + 4, s):
                    k = view.k[b, h, j].double()
                    e[j] = float((k @ mean / d**0.5 + k @ spread @ k / (2 * d)).exp())
                for j, y in e.items():
                    want[j] += y / sum(e.values()) / 2
            for j in range(start + 4, s):
                value = float((want[j] + 0.02) * view.v[b, h, j].double().norm())
                assert float(got[b, h, j]) == pytest.approx(value, abs=1e-5)
            assert bool(torch.isinf(got[b, h, : start + 4]).all())
            best = set(range(start, start + 4)) | {start + 4 + i for i in by_hand(got[b, h, start + 4 :].tolist(), 3)}
            assert kept(ExpectedAttention(future=future, epsilon=0.02), view, 7)[b][h] == sorted(best)


def test_expected_of_a_prompt_of_sinks_is_defined(make_view):
    view = make_view(s=5, w=5, rope=ROPE)
    assert kept(ExpectedAttention(), view, 5) == [[[0, 1, 2, 3, 4]] * 2]
    assert bool(torch.isfinite(ExpectedAttention(sinks=5).score(make_view(s=4, w=4, rope=ROPE))).logical_not().all())


def test_expected_prefers_the_key_that_the_mean_query_seeks(make_view):
    # No rotation: queries are e0 with no spread, so the keys along e0 win.
    view = make_view(s=20, h=1, g=1, w=20, rope=Rope(torch.zeros(4)), v=torch.ones(1, 1, 20, 8))
    q = torch.zeros(1, 1, 20, 8)
    q[..., 0] = 3.0
    k = torch.zeros(1, 1, 20, 8)
    k[0, 0, [9, 12], 0] = 2.0
    assert kept(ExpectedAttention(), replace(view, queries=q, k=k), 6) == [[[0, 1, 2, 3, 9, 12]]]


@pytest.mark.parametrize("policy", [H2O(), TOVA(), ExpectedAttention()], ids=lambda p: p.name)
def test_grouped_heads_are_the_mean_of_repeated_ones(make_view, policy):
    view = make_view(s=16, b=2, w=16, rope=ROPE)
    wide = replace(
        view,
        k=view.k.repeat_interleave(2, 1),
        v=view.v.repeat_interleave(2, 1),
        positions=view.positions.repeat_interleave(2, 1),
    )
    narrow, wide = watched(policy, view), watched(policy, wide)
    assert torch.allclose(policy.score(narrow), policy.score(wide).view(2, 2, 2, 16).mean(2), atol=1e-5)


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_a_padded_row_keeps_what_it_keeps_alone(make_view, policy):
    view = make_view(s=20, b=2, w=20, starts=[0, 6], rope=ROPE)
    alone = KVView(
        view.k[1:, :, 6:],
        view.v[1:, :, 6:],
        view.positions[1:, :, :14],
        seen=14,
        queries=view.queries[1:, :, 6:],
        rope=ROPE,
    )
    got = torch.tensor(kept(policy, watched(policy, view), 8))[1] - 6
    assert got.tolist() == kept(policy, watched(policy, alone), 8)[0]
    # A row with fewer tokens than the budget keeps them all.
    assert set(range(6, 20)) <= set(kept(policy, watched(policy, view), 16)[1][0])


@pytest.mark.parametrize("policy", ALL, ids=repr)
@pytest.mark.parametrize("tokens", [9, 10, 99])
def test_nothing_goes_within_the_budget(make_view, policy, tokens):
    view = watched(policy, make_view(s=9, w=9, rope=ROPE))
    assert kept(policy, view, tokens) == [[list(range(9))] * 2]
    assert not policy.due("prefill", 0, 9, tokens)


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_blocks_are_bounded_and_so_is_decoding_where_it_is_said(policy):
    assert policy.due("block", 0, 11, 10)
    assert policy.due("prefill", 0, 11, 10)
    assert policy.due("decode", 1, 10 + max(1, policy.slack), 10) == policy.bounded


@pytest.mark.parametrize("slack", [0, 32])
def test_slack_gathers_before_it_acts(slack):
    for policy in (Knorm(slack=slack), KeyDiff(slack=slack)):
        first = next(n for n in range(10, 99) if policy.due("decode", 1, n, 10))
        assert first == 10 + max(slack, 1)
        assert (policy.slack, policy.options()["slack"]) == (slack, slack)


@pytest.mark.parametrize("policy", IN_PLACE, ids=repr)
@pytest.mark.parametrize("chunk", [1, 3])
def test_in_place_eviction_follows_the_plan_for_fifty_steps(policy, chunk):
    """One store is compacted by `plan`, the other overwritten in place by `evict`; both hold the same tokens."""
    r = torch.Generator().manual_seed(1)
    tokens, h, start = 9, 2, torch.tensor([0, 2])
    history = {name: torch.randn(2, h, 200, 4, generator=r) for name in ("k", "v")}
    rows = torch.rand(2, h, 60, 200, generator=r)

    def view_at(store, seen, step, ordered):
        p = store["positions"]
        at = p.unsqueeze(-1).expand(*p.shape, 4)
        return KVView(
            history["k"].gather(2, at),
            history["v"].gather(2, at),
            p,
            seen=seen,
            valid=p >= start.view(-1, 1, 1),
            attn=rows[:, :, step].gather(-1, p),
            side={k: v for k, v in store.items() if k != "positions"},
            state={"start": start},
            step=step,
            ordered=ordered,
        )

    def new_store(n):
        p = torch.arange(n).expand(2, h, n).clone()
        return {"positions": p, **{x.name: torch.full((2, h, n), x.fill, dtype=x.dtype) for x in policy.sides}}

    packed, fixed = new_store(tokens), new_store(tokens)
    seen = tokens
    for step in range(1, 51):
        for store, in_place in ((packed, False), (fixed, True)):
            fresh = torch.arange(seen, seen + chunk).expand(2, h, chunk)
            store["positions"] = torch.cat([store["positions"], fresh], -1)
            for x in policy.sides:
                store[x.name] = torch.cat([store[x.name], torch.full((2, h, chunk), x.fill)], -1)
            view = view_at(store, seen + chunk, step, ordered=not in_place)
            store.update(policy.observe(view)[0])
            view = view_at(store, seen + chunk, step, ordered=not in_place)
            if in_place:
                gone = policy.evict(view, chunk)
                assert gone.shape == (2, h, chunk)
                for name, x in store.items():
                    for b in range(2):
                        for n in range(h):
                            dead = set(gone[b, n].tolist())
                            body = x[b, n].tolist()
                            tail = [body[i] for i in range(tokens, tokens + chunk) if i not in dead]
                            for slot in sorted(d for d in dead if d < tokens):
                                body[slot] = tail.pop(0)
                            x[b, n, :tokens] = torch.tensor(body[:tokens], dtype=x.dtype)
                    store[name] = x[..., :tokens].clone()
            else:
                keep = policy.plan(view, tokens).indices
                assert keep.shape == (2, h, tokens)
                for name, x in store.items():
                    store[name] = x.gather(-1, keep)
        seen += chunk
        assert torch.equal(packed["positions"], fixed["positions"].sort(-1).values)
    assert bool((packed["positions"].diff(dim=-1) > 0).all())
