"""Arguments of every operation at a batch and a length, and what each is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from remnant_kernels.page_summaries.fast import page_summaries

__all__ = ["CASES", "HEADS", "KEPT", "PEERS", "make"]

HEADS, GROUP, DIM = 8, 4, 128
KEPT, WINDOW, PAGE, PAGES, NARROW = 2048, 32, 16, 62, 80
Kwargs = dict[str, Any]


def make(name: str, b: int, s: int, device: str, dtype: torch.dtype) -> Kwargs:
    """Arguments of one operation for b sequences of s stored tokens; 8 KV heads of 4 query heads of 128 channels."""
    torch.manual_seed(0)
    return CASES[name](b, s, {"device": device, "dtype": dtype}, device)


def _kv(b: int, s: int, kind: Kwargs) -> Kwargs:
    return {"k": torch.randn(b, HEADS, s, DIM, **kind), "v": torch.randn(b, HEADS, s, DIM, **kind)}


def _query(b: int, kind: Kwargs) -> Tensor:
    return torch.randn(b, HEADS * GROUP, DIM, **kind)


def _some(b: int, s: int, count: int, device: str) -> Tensor:
    return torch.rand(b, HEADS, s, device=device).topk(min(count, s)).indices.sort().values


def _plain(b: int, s: int, kind: Kwargs, device: str) -> Kwargs:
    return {"q": _query(b, kind), **_kv(b, s, kind)}


def _sum(b: int, s: int, kind: Kwargs, device: str) -> Kwargs:
    return {**_plain(b, s, kind, device), "score": "sum", "acc": torch.zeros(b, HEADS, s, device=device)}


def _stamp(b: int, s: int, kind: Kwargs, device: str) -> Kwargs:
    state = {name: torch.zeros(b, HEADS, s, dtype=torch.int32, device=device) for name in ("last", "interval")}
    now = torch.full((b,), s, dtype=torch.int32, device=device)
    threshold = torch.full((b, HEADS), 40.0 / s, device=device)
    return {
        **_plain(b, s, kind, device),
        "score": "stamp",
        "reduce": "max",
        **state,
        "now": now,
        "threshold": threshold,
    }


def _window(b: int, s: int, kind: Kwargs, device: str, lse: bool = False) -> Kwargs:
    made: Kwargs = {
        "q": torch.randn(b, HEADS * GROUP, WINDOW, DIM, **kind), "k": torch.randn(b, HEADS, s, DIM, **kind),
        "kernel": 5, "pooling": "avg",
    }  # fmt: skip
    if lse:
        made["lse"] = torch.full((b, HEADS * GROUP, WINDOW), 5.0, device=device)
    return made


def _compact(b: int, s: int, kind: Kwargs, device: str) -> Kwargs:
    return {**_kv(b, s, kind), "keep": _some(b, s, KEPT, device)}


def _paged(b: int, s: int, kind: Kwargs, device: str) -> Kwargs:
    count, kept = s // PAGE, min(KEPT, s)
    table = torch.randperm(b * count, device=device).view(b, count)
    return {
        "pages": torch.randn(b * count, HEADS, PAGE, 2 * DIM, **kind), "table": table,
        "keep": _some(b, s, kept, device), "start": torch.full((b,), s - kept, device=device), "towards_end": True,
    }  # fmt: skip


def _topk(b: int, s: int, kind: Kwargs, device: str) -> Kwargs:
    width = min(KEPT, s)
    return {
        "scores": torch.randn(b, HEADS, s, device=device), "k": torch.full((b, HEADS), width, device=device),
        "width": width,
    }  # fmt: skip


def _sparse(b: int, s: int, kind: Kwargs, device: str, bounds: bool = False) -> Kwargs:
    made = _plain(b, s, kind, device)
    found = page_summaries(made["k"], PAGE)
    by = {"low": found.low, "high": found.high} if bounds else {"mean": found.mean}
    return {**made, "page": PAGE, "pages": PAGES, **by}


def _pruned(b: int, s: int, kind: Kwargs, device: str) -> Kwargs:
    channels = torch.rand(b, HEADS, DIM, device=device).topk(NARROW).indices.sort().values
    return {
        "q": _query(b, kind), "k_pruned": torch.randn(b, HEADS, s - WINDOW, NARROW, **kind), "channels": channels,
        "k_recent": torch.randn(b, HEADS, WINDOW, DIM, **kind), "v": torch.randn(b, HEADS, s, DIM, **kind),
    }  # fmt: skip


def _parted(b: int, s: int, device: str) -> tuple[Tensor, Tensor]:
    order = torch.rand(b, HEADS, s, device=device).argsort(-1)
    kept = min(KEPT, s // 2)
    return order[..., :kept].sort().values, order[..., kept:].sort().values


def _nearest(b: int, s: int, kind: Kwargs, device: str) -> Kwargs:
    kept, src = _parted(b, s, device)
    return {"k": torch.randn(b, HEADS, s, DIM, **kind), "src": src, "kept": kept}


def _fold(b: int, s: int, kind: Kwargs, device: str) -> Kwargs:
    kept, src = _parted(b, s, device)
    return {
        "v": torch.randn(b, HEADS, s, DIM, **kind), "kept": kept, "own": torch.rand(kept.shape, device=device),
        "src": src, "dst": torch.randint(0, kept.shape[2], src.shape, device=device),
        "weight": torch.rand(src.shape, device=device),
    }  # fmt: skip


def _attention(b: int, s: int, kind: Kwargs, device: str) -> Kwargs:
    return {"q": torch.randn(b, HEADS * GROUP, s, DIM, **kind), **_kv(b, s, kind)}


def _strided(b: int, s: int, kind: Kwargs, device: str, stride: int = 16, local: int = 16) -> Kwargs:
    """Every 16th block by phase of the head, the last 16 and the first: the hybrid pattern of LongGen."""
    count = s // 64
    row, column = torch.arange(count)[:, None], torch.arange(count)
    listed = torch.stack([
        (column <= row) & ((column % stride == phase) | (row - column < local) | (column == 0))
        for phase in range(stride)
    ])  # fmt: skip
    ends = torch.cat([torch.zeros(1, dtype=torch.long), listed.sum(-1).flatten().cumsum(0)])
    begin = torch.stack([ends[phase * count : (phase + 1) * count + 1] for phase in range(stride)])
    columns = listed.nonzero()[:, 2]
    return {**_attention(b, s, kind, device), "rows": begin.int().to(device), "columns": columns.int().to(device)}


def _gate(b: int, s: int, kind: Kwargs, device: str) -> Kwargs:
    made = {"w1": (HEADS, 64, 2 * DIM), "b1": (HEADS, 64), "w2": (HEADS, 64), "bias": (HEADS,)}
    return {**_kv(b, s, kind), **{name: torch.randn(*shape, device=device) for name, shape in made.items()}}


CASES: dict[str, Callable[[int, int, Kwargs, str], Kwargs]] = {
    "decode_attention": _plain,
    "decode_attention+sum": _sum,
    "decode_attention+stamp": _stamp,
    "window_score": _window,
    "window_score+lse": lambda b, s, kind, device: _window(b, s, kind, device, True),
    "compact": _compact,
    "compact_paged": _paged,
    "topk": _topk,
    "page_summaries": lambda b, s, kind, device: {"k": torch.randn(b, HEADS, s, DIM, **kind), "page": PAGE},
    "block_sparse_decode+mean": _sparse,
    "block_sparse_decode+bounds": lambda b, s, kind, device: _sparse(b, s, kind, device, True),
    "pruned_decode": _pruned,
    "nearest": _nearest,
    "fold": _fold,
    "attention": _attention,
    "attention+blocks": _strided,
    "retention_gate": _gate,
}
"""Operation, and a variant behind `+` -> its arguments."""


def _dense(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)


def _sorted_topk(scores: Tensor, k: Tensor, width: int) -> Tensor:
    return scores.topk(width).indices.sort().values


PEERS: dict[str, tuple[str, Callable[[Kwargs], Callable[[], Any]]]] = {
    "decode_attention": ("sdpa", lambda a: lambda: _dense(a["q"][:, :, None], a["k"], a["v"])),
    "decode_attention+sum": ("sdpa, no score", lambda a: lambda: _dense(a["q"][:, :, None], a["k"], a["v"])),
    "decode_attention+stamp": ("sdpa, no score", lambda a: lambda: _dense(a["q"][:, :, None], a["k"], a["v"])),
    "block_sparse_decode+mean": ("sdpa, dense", lambda a: lambda: _dense(a["q"][:, :, None], a["k"], a["v"])),
    "block_sparse_decode+bounds": ("sdpa, dense", lambda a: lambda: _dense(a["q"][:, :, None], a["k"], a["v"])),
    "attention": ("sdpa", lambda a: lambda: _dense(a["q"], a["k"], a["v"], True)),
    "attention+blocks": ("sdpa, dense", lambda a: lambda: _dense(a["q"], a["k"], a["v"], True)),
    "topk": ("torch.topk + sort", lambda a: lambda: _sorted_topk(**a)),
}
"""What else computes the same, or what it replaces, in torch itself."""
