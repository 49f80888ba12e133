"""What examples do not reach: shapes at random, nothing at all, everything hidden, and the same bits every time."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import remnant_kernels
from remnant_kernels import get_op

QUICK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WIDTHS = st.sampled_from([16, 64, 80, 96])
PROVIDERS = ["fast", "triton"]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("provider", PROVIDERS)
@given(b=st.integers(1, 2), h=st.integers(1, 3), g=st.integers(1, 5), s=st.integers(1, 150), d=WIDTHS, dv=WIDTHS,
       seed=st.integers(0, 99))  # fmt: skip
@QUICK
def test_decode_attention_of_any_shape(
    provider: str, b: int, h: int, g: int, s: int, d: int, dv: int, seed: int, close: Any
):
    op = get_op("decode_attention")
    lens = torch.randint(0, s + 1, (b, h), generator=torch.Generator().manual_seed(seed))
    kwargs: dict[str, Any] = {
        "q": normal(seed, b, g * h, d), "k": normal(seed + 1, b, h, s, d), "v": normal(seed + 2, b, h, s, dv),
        "lens": lens, "score": "row", "reduce": ("mean", "max", "sum")[seed % 3],
    }  # fmt: skip
    wide = {
        name: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for name, x in kwargs.items()
    }
    close(op, getattr(op, provider)(**kwargs), op.naive(**wide), torch.float32)


@pytest.mark.parametrize("provider", PROVIDERS)
@given(sq=st.integers(1, 70), more=st.integers(0, 80), g=st.integers(1, 3), d=WIDTHS, causal=st.booleans(),
       window=st.one_of(st.none(), st.integers(1, 40)), seed=st.integers(0, 99))  # fmt: skip
@QUICK
def test_attention_of_any_shape(
    provider: str, sq: int, more: int, g: int, d: int, causal: bool, window: int | None, seed: int, close: Any
):
    op = get_op("attention")
    kwargs: dict[str, Any] = {
        "q": normal(seed, 1, 2 * g, sq, d), "k": normal(seed + 1, 1, 2, sq + more, d),
        "v": normal(seed + 2, 1, 2, sq + more, d), "causal": causal, "window": window if causal else None,
    }  # fmt: skip
    wide = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in kwargs.items()}
    close(op, getattr(op, provider)(**kwargs), op.naive(**wide), torch.float32)


@pytest.mark.parametrize("provider", PROVIDERS)
@given(s=st.integers(1, 2100), k=st.integers(0, 2200), levels=st.integers(1, 9), seed=st.integers(0, 99))
@QUICK
def test_topk_with_many_ties(provider: str, s: int, k: int, levels: int, seed: int):
    op = get_op("topk")
    draw = torch.Generator().manual_seed(seed)
    values = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 1e-40, -1e-40, 1.5, -2.5, 3e38])[:levels]
    scores = values[torch.randint(0, levels, (1, 2, s), generator=draw)]
    kwargs = {"scores": scores, "k": torch.full((1, 2), k), "width": k}
    want, got = op.naive(**kwargs), getattr(op, provider)(**kwargs)
    assert torch.equal(got.counts, want.counts)
    assert torch.equal(got.indices, want.indices)


@pytest.mark.parametrize("width", [64, 128, 256])
def test_wide_heads(width: int, close: Any):
    for name, kwargs in (
        ("decode_attention", {"q": normal(0, 1, 4, width)}),
        ("attention", {"q": normal(0, 1, 4, 40, width)}),
    ):
        op = get_op(name)
        both = {**kwargs, "k": normal(1, 1, 2, 70, width), "v": normal(2, 1, 2, 70, width)}
        close(op, op.triton(**both), op.naive(**{name: x.double() for name, x in both.items()}), torch.float32)


@pytest.mark.parametrize("provider", ["naive", *PROVIDERS])
def test_a_head_that_sees_nothing_reads_zeros(provider: str):
    """No slot in use, or every slot hidden; what lies behind may be NaN."""
    op = get_op("decode_attention")
    k, v = torch.full((1, 2, 40, 16), float("nan")), torch.full((1, 2, 40, 16), float("nan"))
    k[:, 1], v[:, 1] = 1.0, 1.0
    bias = torch.zeros(1, 2, 40)
    bias[:, 1] = float("-inf")
    done = getattr(op, provider)(q=torch.ones(1, 4, 16), k=k, v=v, lens=torch.tensor([[0, 40]]), bias=bias, score="row")
    assert bool((done.out == 0).all())
    assert bool((done.lse == float("-inf")).all())
    assert bool((done.score == 0).all())


@pytest.mark.parametrize("provider", ["naive", *PROVIDERS])
def test_queries_behind_the_end_read_zeros(provider: str):
    op = get_op("attention")
    done = getattr(op, provider)(
        q=torch.ones(1, 2, 20, 16), k=torch.full((1, 1, 20, 16), float("nan")),
        v=torch.full((1, 1, 20, 16), float("nan")), lens_q=torch.tensor([0]), lens_k=torch.tensor([0]),
    )  # fmt: skip
    assert bool((done.out == 0).all())
    assert bool((done.lse == float("-inf")).all())


@pytest.mark.parametrize("provider", PROVIDERS)
def test_large_logits_do_not_overflow(provider: str, close: Any):
    op = get_op("decode_attention")
    kwargs: dict[str, Any] = {
        "q": 300 * normal(0, 1, 4, 32),
        "k": 300 * normal(1, 1, 2, 90, 32),
        "v": normal(2, 1, 2, 90, 32),
    }
    wide = {name: x.double() for name, x in kwargs.items()}
    got, want = getattr(op, provider)(**kwargs), op.naive(**wide)
    torch.testing.assert_close(got.out.double(), want.out, atol=1e-4, rtol=1e-4)


def test_shares_of_the_slots_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    """The log-sum-exp puts any number of parts together."""
    from remnant_kernels.decode_attention import triton as kernel

    kwargs = get_op("decode_attention").example(0, "odd")
    outs = []
    for chunk, splits in ((64, 3), (128, 2), (192, 1)):
        monkeypatch.setattr(kernel, "_shares", lambda *_, shares=(chunk, splits): shares)
        outs.append(kernel.decode_attention(**kwargs))
    for other in outs[1:]:
        torch.testing.assert_close(other.out, outs[0].out, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(other.score, outs[0].score, atol=1e-6, rtol=1e-6)


def test_a_hundred_steps_leave_the_same_stamps(device: str):
    """Integer state is exact: no step rounds it."""
    op = get_op("decode_attention")
    h, s, d, draw = 2, 50, 16, torch.Generator().manual_seed(0)
    k, v = torch.randn(1, h, s, d, generator=draw).to(device), torch.randn(1, h, s, d, generator=draw).to(device)
    state = {
        which: [torch.full((1, h, s), fill, dtype=torch.int32, device=device) for fill in (-1, 0)] for which in "ab"
    }
    for step in range(100):
        q = 2 * torch.randn(1, 2 * h, d, generator=draw).to(device)
        about: dict[str, Any] = {
            "now": torch.tensor([step + s], dtype=torch.int32, device=device),
            "threshold": torch.full((1, h), 3.0 / s, device=device), "score": "stamp", "reduce": "max",
        }  # fmt: skip
        for which, provider in (("a", op.naive), ("b", op.triton)):
            provider(q=q, k=k, v=v, last=state[which][0], interval=state[which][1], **about)
    assert torch.equal(state["a"][0], state["b"][0])
    assert torch.equal(state["a"][1], state["b"][1])
    assert int(state["a"][1].max()) > 5


@pytest.mark.parametrize("name", ["decode_attention", "fold", "window_score", "attention"])
def test_the_same_input_gives_the_same_bits(name: str, copied: Any, device: str):
    op = get_op(name)
    kwargs = op.example(0, "odd", device)
    first, second = op.triton(**copied(kwargs)), op.triton(**copied(kwargs))
    for a, b in zip(first if isinstance(first, tuple) else [first], second if isinstance(second, tuple) else [second],
                    strict=True):  # fmt: skip
        assert a is None or torch.equal(a, b)


def test_compaction_in_place_writes_to_no_other_head():
    """Guard rows around every head keep their content."""
    op = get_op("compact")
    whole = torch.full((1, 4, 70, 16), 7.0)
    k, v = whole[:, 1:3], whole[:, 1:3].clone()
    k[:, :, 64:] = 9.0
    keep = torch.stack([torch.arange(0, 40, 2), torch.arange(20, 60, 2)])[None]
    op.triton(k=k, v=v, keep=keep, in_place=True)
    assert bool((whole[:, [0, 3]] == 7.0).all())
    assert bool((whole[:, 1:3, 64:] == 9.0).all())


def test_page_bounds_are_bounds():
    """No logit of a page exceeds the bound it is chosen by."""
    from remnant_kernels.block_sparse_decode.fast import page_scores

    q, k = normal(0, 2, 2, 3, 32), normal(1, 2, 2, 96, 32)
    found = get_op("page_summaries")(k=k, page=16)
    bound = page_scores(q, None, found.low, found.high)
    logits = torch.matmul(q, k.transpose(2, 3)).amax(2).view(2, 2, 6, 16).amax(3)
    assert bool((logits <= bound + 1e-5).all())


@pytest.mark.parametrize("provider", ["naive", *PROVIDERS])
def test_all_pages_are_all_tokens(provider: str, close: Any):
    kwargs = get_op("block_sparse_decode").example(0, "small")
    kwargs["pages"] = 99
    done = getattr(get_op("block_sparse_decode"), provider)(**kwargs)
    dense = get_op("decode_attention").naive(q=kwargs["q"], k=kwargs["k"], v=kwargs["v"])
    torch.testing.assert_close(done.out, dense.out, atol=1e-5, rtol=1e-5)


def test_growing_sizes_compile_nothing_new():
    """Sizes that change from call to call are no constants of a kernel, and Triton does not specialise on them."""
    sizes = {"S", "K", "E", "C", "N", "M", "T", "SQ", "SK", "NB", "width", "chunk", "splits", "total", "now", "first"}
    checked = 0
    for path in sorted(Path(remnant_kernels.__file__).parent.glob("*/triton.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or not node.name.endswith("_kernel"):
                continue
            (decorator,) = node.decorator_list
            given = {k.arg: ast.literal_eval(k.value) for k in getattr(decorator, "keywords", [])}
            spared = set(given.get("do_not_specialize", []))
            plain = {a.arg for a in node.args.args if a.annotation is None}
            constant = {a.arg for a in node.args.args if a.annotation is not None}
            assert sizes & plain <= spared, f"{path.parent.name}.{node.name}"
            assert not sizes & constant, f"{path.parent.name}.{node.name}"
            checked += 1
    assert checked >= 12
