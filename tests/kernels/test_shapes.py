"""Shapes at random for the operations that test_edges.py does not draw: fast path and kernel against the naive one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remnant_kernels import get_op


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_slots(seed: int, s: int, count: int, *outer: int) -> torch.Tensor:
    order = torch.rand(*outer, s, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    return order[..., :count].sort().values


def window(seed: int, s: int, d: int, few: int) -> dict[str, Any]:
    w, seen, draw = min(few, s), s + seed % 40, torch.Generator().manual_seed(seed)
    positions = torch.rand(1, 2, seen, generator=draw).argsort(-1)[..., :s]
    some: dict[str, Any] = [{}, {"positions": positions.sort().values, "seen": seen},
                            {"positions": positions, "seen": seen, "ordered": False}][seed % 3]  # fmt: skip
    if seed % 2:
        some["hidden"] = torch.rand(1, 2, s, generator=draw) < 0.3
    if seed % 5 == 0:
        some["real"] = torch.rand(1, w, generator=draw) < 0.5
    return some | {
        "q": numbers(seed, 1, 4, w, d), "k": numbers(seed + 1, 1, 2, s, d), "over": ("sum", "max")[seed % 2],
        "reduce": ("mean", "max", "sum")[seed % 3], "kernel": (1, 3, 7)[seed % 3], "pooling": ("avg", "max")[seed % 2],
    }  # fmt: skip


def compact(seed: int, s: int, d: int, few: int) -> dict[str, Any]:
    return {
        "k": numbers(seed, 2, 2, s, d), "v": numbers(seed + 1, 2, 2, s, d + 3), "spare": seed % 5,
        "keep": some_slots(seed, s, min(few, s), 2, 2), "sides": (torch.arange(4 * s).view(2, 2, s),),
    }  # fmt: skip


def summaries(seed: int, s: int, d: int, few: int) -> dict[str, Any]:
    lens = torch.randint(0, s + 1, (1, 2), generator=torch.Generator().manual_seed(seed))
    return {"k": numbers(seed, 1, 2, s, d), "page": min(few, 16), "lens": lens}


def sparse(seed: int, s: int, d: int, few: int) -> dict[str, Any]:
    made = {"q": numbers(seed, 1, 4, d), "k": numbers(seed + 1, 1, 2, s, d), "v": numbers(seed + 2, 1, 2, s, d)}
    found = get_op("page_summaries").naive(made["k"], 8)
    by = {"mean": found.mean} if seed % 2 else {"low": found.low, "high": found.high}
    return {**made, "page": 8, "pages": few % 7, "sinks": seed % 2, "local": 1 + seed % 3, **by}


def pruned(seed: int, s: int, d: int, few: int) -> dict[str, Any]:
    narrow, recent = max(1, d - few % d), few % 9
    return {
        "q": numbers(seed, 1, 4, d), "k_pruned": numbers(seed + 1, 1, 2, s, narrow),
        "channels": some_slots(seed, d, narrow, 1, 2), "k_recent": numbers(seed + 2, 1, 2, recent, d),
        "v": numbers(seed + 3, 1, 2, s + recent, d),
    }  # fmt: skip


def folding(seed: int, s: int, d: int, few: int) -> dict[str, Any]:
    kept = min(few, s)
    order = torch.rand(1, 2, s, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    src = order[..., kept:]
    draw = torch.Generator().manual_seed(seed + 1)
    return {
        "v": numbers(seed, 1, 2, s, d),
        "kept": order[..., :kept].sort().values,
        "own": torch.rand(1, 2, kept, generator=draw),
        "src": src,
        "dst": torch.randint(0, kept, src.shape, generator=draw),
        "weight": torch.rand(src.shape, generator=draw),
    }


def gate(seed: int, s: int, d: int, few: int) -> dict[str, Any]:
    return {
        "k": numbers(seed, 1, 2, s, d), "v": numbers(seed + 1, 1, 2, s, d + 2),
        "w1": numbers(seed + 2, 2, few, 2 * d + 2) / d, "b1": numbers(seed + 3, 2, few),
        "w2": numbers(seed + 4, 2, few) / few, "bias": numbers(seed + 5, 2),
    }  # fmt: skip


BUILD: dict[str, Callable[[int, int, int, int], dict[str, Any]]] = {
    "window_score": window, "compact": compact, "page_summaries": summaries, "block_sparse_decode": sparse,
    "pruned_decode": pruned, "fold": folding, "retention_gate": gate,
}  # fmt: skip


@pytest.mark.parametrize("provider", ["fast", "triton"])
@pytest.mark.parametrize("name", BUILD)
@given(seed=st.integers(0, 999), s=st.integers(1, 90), d=st.sampled_from([16, 40, 64, 80]), few=st.integers(1, 40))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(name: str, provider: str, seed: int, s: int, d: int, few: int, in_double: Any, close: Any):
    op, kwargs = get_op(name), BUILD[name](seed, s, d, few)
    close(op, getattr(op, provider)(**kwargs), op.naive(**in_double(kwargs)), torch.float32)
