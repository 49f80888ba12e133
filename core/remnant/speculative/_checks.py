"""What acceptance asks of its arguments, and says when they are otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from remnant.errors import ConfigError, ShapeError
from remnant.speculative._lists import floats, ints

if TYPE_CHECKING:
    from remnant.speculative.tree import Tree

__all__ = ["Mode", "check_chain", "check_kids", "check_values", "check_walk", "whole", "wide"]

Mode = Literal["det", "iid", "without_replacement"]
"""How the children of a node were found: listed, drawn independently, or drawn without replacement."""

_SLACK = 0.01
_SUM = "[V] probabilities, 0 or more, that sum to 1"
_DO = "give probabilities, not logits"
_UNIFORMS = "0 to 1"


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def whole(p: Tensor, of: str = "target") -> Tensor:
    """One node's distribution in float64, checked."""
    p = wide(p) if p.device.type == "mps" else p.double()
    least, total = floats(torch.stack([p.amin(), p.sum()])) if p.numel() else (0.0, 0.0)
    if p.dim() != 1 or not abs(total - 1) < _SLACK or least < 0:
        told = f"of {tuple(p.shape)} that sums to {total} and falls to {least}"
        raise ShapeError(f"a {of} distribution {told}", accepted=_SUM, do=_DO)
    return p


def _off(p: Tensor) -> Tensor:
    """Which rows are no distributions, `[...]` bool; NaN and infinities are none."""
    if not p.shape[-1]:
        return p.new_ones(p.shape[:-1], dtype=torch.bool)
    return ~((p.sum(-1) - 1).abs() < _SLACK) | (p.amin(-1) < 0)


def _outside(u: Tensor) -> Tensor:
    """Whether a uniform lies outside 0 to 1, or is NaN; 1 itself is what one of fewer bits may round to."""
    return ~((u >= 0) & (u <= 1)).all()


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
    if length is not None and (length.shape != (b,) or length.is_floating_point()):
        raise ShapeError(f"draft lengths of {length.dtype} {tuple(length.shape)}", accepted=f"int64 [{b}]")
    return b, g


def check_values(ids: Tensor, p: Tensor, lengths: Tensor, q: Tensor | None = None, u: Tensor | None = None) -> None:
    """Ids, distributions and uniforms, with one look at the device for all rows."""
    read = torch.arange(p.shape[1], device=p.device) <= lengths.unsqueeze(1)
    drafted = read[:, 1:]
    none = read.new_zeros(())
    wrong = ints(
        torch.stack(
            [
                ((lengths < 0) | (lengths > ids.shape[1])).any(),
                ((ids < 0) | (ids >= p.shape[2])).any(),
                none if u is None else _outside(u),
                (read & _off(p)).any(),
                none if q is None else (drafted & _off(q)).any(),
            ]
        )
    )
    if wrong[0]:
        raise ShapeError(f"draft lengths {ints(lengths)}", accepted=f"0 to {ids.shape[1]}")
    if wrong[1]:
        raise ShapeError("a drafted token outside the vocabulary", accepted=f"0 to {p.shape[2] - 1}")
    if wrong[2]:
        raise ShapeError("uniforms outside their range", accepted=_UNIFORMS)
    if wrong[3] or wrong[4]:
        raise ShapeError(f"{'target' if wrong[3] else 'draft'} distributions that are none", accepted=_SUM, do=_DO)


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
    if bool(_outside(u)):
        raise ShapeError(f"uniforms {floats(u)}", accepted=_UNIFORMS)


def check_kids(tokens: list[int], p: Tensor, q: Tensor | None) -> None:
    """The children of one node: tokens of the vocabulary, drawn from a distribution over the same."""
    v = p.shape[-1]
    if min(tokens) < 0 or max(tokens) >= v:
        raise ShapeError(f"a token id among {tokens}", accepted=f"0 to {v - 1}")
    if q is not None and q.shape[-1] != v:
        raise ShapeError(f"q_full over {q.shape[-1]} tokens", accepted=f"{v}, as the target's")
