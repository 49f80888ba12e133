"""Nothing but our own errors comes out of wrong options, and every plan is a valid one."""

from __future__ import annotations

import copy
import warnings
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="pip install 'remnant[hf]'")

from remnant.errors import RemnantError  # noqa: E402
from remnant.kv import Keep, KVView, Policy, Rope, get_policy, list_policies, policy_class  # noqa: E402
from remnant_hf import RemnantCache  # noqa: E402

NAMES = list_policies()
ANYTHING = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([10**12, -(10**12), 2**31, 0.0, 0.25, 1.0, 1.5, -0.5, float("nan"), float("inf"), "", "avg", "max",
                     "none", "nonsense", "keep", "uniform", "head", True, False, None, (), (1, 2), ("x",), (0.5,), [40],
                     {"a": 1}, b"x", object()]),
)  # fmt: skip


@st.composite
def any_options(draw: Any, name: str) -> dict[str, Any]:
    own = [f.name for f in fields(policy_class(name)) if f.init]
    asked = draw(st.lists(st.sampled_from([*own, "windows"]), max_size=3, unique=True))
    return {option: draw(ANYTHING) for option in asked}


def named(error: RemnantError) -> None:
    """A refusal says what was given."""
    assert str(error)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_construction_raises_nothing_but_our_errors(lab, data):
    name = data.draw(st.sampled_from([*NAMES, "snapvk", ""]))
    options = data.draw(any_options(name)) if name in NAMES else {}
    budget = data.draw(st.one_of(st.integers(1, 80), ANYTHING))
    try:
        RemnantCache(lab.model.config, name, budget=budget, prefill_block=data.draw(ANYTHING), **options)
    except RemnantError as error:
        named(error)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_accepted_policy_serves_or_refuses_by_name(lab, data):
    """What the constructor let through runs a prompt and some steps, or is refused with one of our errors."""
    name = data.draw(st.sampled_from(NAMES))
    options = data.draw(any_options(name))
    try:
        cache = RemnantCache(lab.model.config, name, budget=data.draw(st.integers(1, 60)), **options)
    except RemnantError:
        return
    ids = lab.ids(data.draw(st.integers(1, 30)) + 4, rows=data.draw(st.integers(1, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for part in [ids[:, :-4], *ids[:, -4:].split(1, 1)]:
                lab.feed(cache, part)
        except RemnantError as error:
            named(error)


@st.composite
def options_of(draw: Any, name: str) -> dict[str, Any]:
    """Options within their ranges."""
    good: dict[str, Any] = {
        "sinks": st.integers(0, 3), "recent": st.integers(0, 4), "window": st.integers(1, 6),
        "kernel": st.sampled_from([1, 3, 5]), "pooling": st.sampled_from(["avg", "max", "none"]),
        "reduce": st.sampled_from(["mean", "max", "sum"]), "pad_counts": st.booleans(), "refresh": st.integers(0, 4),
        "floor": st.floats(0, 1), "beta": st.integers(1, 30) if name == "pyramidkv" else st.floats(0, 1),
        "slack": st.integers(0, 4), "seed": st.integers(0, 9), "recent_share": st.floats(0, 1),
        "allocation": st.sampled_from(["flat", "uniform"] if name == "epicache" else ["variance", "code", "uniform"]),
        "weights": st.sampled_from(["paper", "code"]), "formula": st.sampled_from(["paper", "corrected"]),
        "ratio": st.floats(0, 0.9), "evictor": st.sampled_from(["snapkv", "none"]), "pairs": st.booleans(),
        "future": st.integers(1, 20), "covariance": st.booleans(), "vnorm": st.booleans(),
        "share": st.sampled_from(["layer", "head"]), "with_norm": st.booleans(), "buffer": st.integers(0, 3),
        "normalise": st.booleans(),
    }  # fmt: skip
    own = {f.name for f in fields(policy_class(name)) if f.init}
    chosen = {k: draw(v) for k, v in good.items() if k in own and draw(st.booleans())}
    return {**chosen, **({"gates": "uniform"} if "gates" in own else {})}


@st.composite
def views(draw: Any, policy: Policy) -> KVView:
    b, h, g, d = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 2)), 8
    s, gap, layers = draw(st.integers(1, 40)), draw(st.integers(0, 5)), draw(st.integers(1, 4))
    r = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    positions = torch.stack(
        [torch.randperm(s + gap, generator=r)[:s].sort().values for _ in range(b * h)]
    ).view(b, h, s)  # fmt: skip
    step, more = draw(st.integers(0, 2)), {}
    seen = s + gap
    if draw(st.booleans()):
        begin = torch.tensor([draw(st.integers(0, seen - 1)) for _ in range(b)])
        more = {"valid": positions >= begin.view(-1, 1, 1), "state": {"start": begin}}
    k = torch.randn(b, h, s, d, generator=r)
    if draw(st.booleans()):
        k = torch.ones_like(k)  # nothing but ties
    wanted = seen if "all_queries" in policy.needs else min(max(policy.window, 1), seen)
    asked = bool({"queries", "all_queries"} & policy.needs) and (step == 0 or "attn" not in policy.needs)
    view = KVView(
        k=k,
        v=torch.randn(b, h, s, d, generator=r),
        positions=positions,
        seen=seen,
        layer=draw(st.integers(0, layers - 1)),
        layers=layers,
        queries=torch.randn(b, g * h, wanted, d, generator=r) if asked else None,
        attn=torch.rand(b, h, s, generator=r).softmax(-1) if "attn" in policy.needs and step else None,
        step=step,
        rope=Rope(1.0 / 100 ** (torch.arange(0, d, 2) / d)) if "rope" in policy.needs else None,
        **more,
    )
    sides = {x.name: torch.full((b, h, s), x.fill, dtype=x.dtype) for x in policy.sides}
    view = replace(view, side={**sides, **policy.append(view)})
    side, state = policy.observe(view)
    return replace(view, side={**view.side, **side}, state={**view.state, **state})


def check_plan(keep: Keep, view: KVView, policy: Policy, tokens: int) -> None:
    b, h, s = view.shape
    assert keep.indices.shape[:2] == (b, h)
    assert keep.indices.dtype == torch.int64
    counts = []
    for row, head in [(i, j) for i in range(b) for j in range(h)]:
        slots = [n for n in keep.indices[row, head].tolist() if n >= 0]
        if keep.lengths is None:
            assert len(slots) == keep.indices.shape[2]
        else:
            assert len(slots) == int(keep.lengths[row, head])
            assert (keep.indices[row, head, : len(slots)] >= 0).all()
        at = view.positions[row, head, slots].tolist()
        assert all(n < s for n in slots)
        assert at == sorted(set(at)), "ascending, each once"
        counts.append(len(slots))
        if view.valid is not None and keep.lengths is None:
            real = view.valid[row, head]
            assert int(real[slots].sum()) == min(int(real.sum()), len(slots)), "padding goes first"
    if not policy.when or all(t.kind == "event" for t in policy.when) or getattr(policy, "evictor", "") == "none":
        assert counts == [s] * (b * h)
    else:
        for i in range(b):
            assert sum(counts[i * h : (i + 1) * h]) <= h * tokens
        if policy.layout != "ragged":
            assert set(counts) == {min(tokens, s)}
    if keep.merge is not None:
        assert keep.merge.src.shape == keep.merge.dst.shape == keep.merge.weight.shape
        assert int(keep.merge.dst.max()) < keep.indices.shape[2]
        assert keep.merge.own.shape == keep.indices.shape
    for x in keep.side.values():
        assert x.shape[:3] == keep.indices.shape


def tensors(view: KVView) -> list[Any]:
    loose = [view.k, view.v, view.positions, view.valid, view.queries, view.attn]
    return [x for x in [*loose, *view.side.values(), *view.state.values()] if x is not None]


def same(a: Keep, b: Keep) -> bool:
    return torch.equal(a.indices, b.indices) and (a.channels is None or torch.equal(a.channels, b.channels))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_plan_is_valid(name, data):
    try:
        policy = get_policy(name, **data.draw(options_of(name)))
    except RemnantError:
        return
    view = data.draw(views(policy))
    tokens = data.draw(st.integers(policy.minimum, policy.minimum + 20))
    before = copy.deepcopy(tensors(view))
    keep = policy.plan(view, tokens)
    check_plan(keep, view, policy, tokens)
    for x, y in zip(tensors(view), before, strict=True):
        assert torch.equal(x, y) or (x.isnan() == y.isnan()).all(), "a view is read only"
    assert same(keep, policy.plan(view, tokens)), "the same view gives the same plan"
    s = view.shape[2]
    if policy.in_place and s > tokens:
        victims = policy.evict(view, s - tokens)
        for i in range(view.shape[0]):
            for j in range(view.shape[1]):
                left = set(range(s)) - set(victims[i, j].tolist())
                assert left == set(keep.indices[i, j].tolist()), "in place drops what the plan drops"
