"""What acceptance asks of its arguments, and says when they are otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from remnant.errors import ConfigError, ShapeError
from remnant.speculative._lists import ints

if TYPE_CHECKING:
    from remnant.speculative.tree import Tree

__all__ = ["Mode", "check_chain", "check_values", "check_walk", "whole", "wide"]

Mode = Literal["det", "iid", "without_replacement"]
"""How the children of a node were found: listed, drawn independently, or drawn without replacement."""

_SLACK = 0.01
_SUM = "[V] probabilities that sum to 1"


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def whole(p: Tensor) -> Tensor:
    """One node's distribution in float64, checked."""
    p = wide(p) if p.device.type == "mps" else p.double()
    if p.dim() != 1 or not abs(float(p.sum()) - 1) < _SLACK:
        raise ShapeError(f"a target distribution of {tuple(p.shape)} that sums to {float(p.sum())}", accepted=_SUM)
    return p


def check_chain(ids: Tensor, p: Tensor, q: Tensor | None, u: Tensor | None, length: Tensor | None) -> tuple[int, int]:
    """Shapes of a chain; gives B and g."""
    if ids.dim() != 2 or ids.dtype != torch.int64:
        raise ShapeError(f"draft ids of {ids.dtype} {tuple(ids.shape)}", accepted="int64 [B, g]")
    b, g = ids.shape
    if p.dim() != 3 or p.shape[:2] != (b, g + 1):
        raise ShapeError(f"target distributions of {tuple(p.shape)}", accepted=f"[{b}, {g + 1}, V]")
    if q is not None and q.shape != (b, g, p.shape[2]):
        raise ShapeError(f"draft distributions of {tuple(q.shape)}", accepted=f"[{b}, {g}, {p.shape[2]}]")
    if u is not None and u.shape not in ((b, g), (b, g + 1)):
        raise ShapeError(f"uniforms of {tuple(u.shape)}", accepted=f"[{b}, {g}] or [{b}, {g + 1}]")
    if length is not None and length.shape != (b,):
        raise ShapeError(f"draft lengths of {tuple(length.shape)}", accepted=f"[{b}]")
    return b, g


def check_values(ids: Tensor, p: Tensor, lengths: Tensor) -> None:
    """Ids and sums, with one look at the device for all rows."""
    read = torch.arange(p.shape[1], device=p.device) <= lengths.unsqueeze(1)
    off = read & ~((p.sum(-1) - 1).abs() < _SLACK)
    outside = ((ids < 0) | (ids >= p.shape[2])).any()
    long = ((lengths < 0) | (lengths > ids.shape[1])).any()
    wrong = ints(torch.stack([off.any(), outside, long]))
    if wrong[2]:
        raise ShapeError(f"draft lengths {ints(lengths)}", accepted=f"0 to {ids.shape[1]}")
    if wrong[1]:
        raise ShapeError("a drafted token outside the vocabulary", accepted=f"0 to {p.shape[2] - 1}")
    if wrong[0]:
        raise ShapeError(
            "target distributions that do not sum to 1", accepted=_SUM, do="give probabilities, not logits"
        )


def check_walk(tree: Tree, mode: Mode, u: Tensor) -> None:
    """Mode and uniforms of a walk."""
    if mode not in get_args(Mode):
        raise ConfigError(f"mode {mode!r}", accepted=get_args(Mode))
    if mode != "det" and tree.q_full is None:
        raise ConfigError(
            f"mode {mode!r} for a tree without q_full", do="give the distributions children were drawn from"
        )
    if u.shape != (len(tree),):
        raise ShapeError(f"uniforms of {tuple(u.shape)}", accepted=f"[{len(tree)}]")
