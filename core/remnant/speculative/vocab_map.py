"""A smaller vocabulary for a drafter: which of the target's tokens it may propose, and how ids go back and forth."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, overload

import torch
from torch import Tensor, nn

from remnant.errors import ConfigError, ShapeError

__all__ = ["VocabMap", "trim_head"]

_PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True, eq=False)
class VocabMap:
    """The k target tokens that a drafter keeps; draft id i stands for the i-th of them in ascending order.

    Args:
        keep: `[k]` int64 target ids, strictly ascending: the order is part of the format, since training code selects
            target logits by a boolean mask, which yields ascending order.
        vocab_size: V, tokens of the target.

    Raises:
        ShapeError: `keep` is not `[k]` integers.
        ConfigError: no token, more tokens than V, or ids that repeat, descend or lie outside `[0, V)`.

    Source: Goel et al. 2025 (VocabTrim), arXiv 2506.22694; Zhao et al. 2025 (FR-Spec), arXiv 2502.14856; the tables
        `d2t` and `t2d` are those of EAGLE-3 (Li et al. 2025, arXiv 2503.01840).
    Example: VocabMap.from_counts(torch.tensor([0, 5, 1, 5]), 2).keep -> [1, 3]
    """

    keep: Tensor
    vocab_size: int
    _on: dict[torch.device, Tensor] = field(default_factory=dict[torch.device, Tensor], repr=False)

    def __post_init__(self) -> None:
        """Check that ids map one to one and in order."""
        object.__setattr__(self, "keep", _ids(self.keep, "kept ids").cpu())
        k = len(self.keep)
        if not 1 <= k <= self.vocab_size:
            raise ConfigError(
                f"{k} kept tokens of a vocabulary of {self.vocab_size}", accepted=f"1 to {self.vocab_size}"
            )
        if int(self.keep.min()) < 0 or int(self.keep.max()) >= self.vocab_size:
            outside = self.keep[(self.keep < 0) | (self.keep >= self.vocab_size)]
            raise ConfigError(f"kept id {int(outside[0])}", accepted=f"0 to {self.vocab_size - 1}")
        falls = (self.keep.diff() <= 0).nonzero()
        if len(falls):
            at = int(falls[0])
            pair = f"{int(self.keep[at])}, {int(self.keep[at + 1])}"
            raise ConfigError(f"kept ids {pair} at {at}", accepted="ids that ascend, each once", do="sort them")

    @classmethod
    def from_counts(cls, counts: Tensor, k: int, always: Iterable[int] = ()) -> VocabMap:
        """Keep the k highest counts.

        Args:
            counts: `[V]`, how often each token occurs, or any other merit of it; not negative.
            k: tokens to keep.
            always: ids that are kept whatever their count; they count among the k.

        Returns:
            The map. Of equal counts the lower id is kept, so that tokens which never occurred fill up from below.

        Raises:
            ShapeError: `counts` is not `[V]`.
            ConfigError: k outside `[1, V]`, fewer than `always`, counts below 0 or not finite, an id outside `[0, V)`.
        """
        if counts.dim() != 1 or counts.dtype in (torch.bool, torch.complex64, torch.complex128):
            raise ShapeError(f"counts of {counts.dtype} {tuple(counts.shape)}", accepted="numbers [V]")
        size, forced = len(counts), sorted({int(i) for i in always})
        if isinstance(k, bool) or not hasattr(k, "__index__") or not 1 <= k <= size:
            raise ConfigError(f"k {k} with a vocabulary of {size}", accepted=f"1 to {size}")
        if forced and not 0 <= forced[0] <= forced[-1] < size:
            raise ConfigError(f"always-kept ids {forced[0]} to {forced[-1]}", accepted=f"0 to {size - 1}")
        if len(forced) > k:
            raise ConfigError(
                f"k {k} with {len(forced)} tokens that are always kept", accepted=f"at least {len(forced)}"
            )
        merit = counts.detach().cpu().to(torch.float64, copy=True)
        if not bool(torch.isfinite(merit).all()) or bool((merit < 0).any()):
            raise ConfigError("counts that are negative or not finite", accepted="0 or more")
        merit[forced] = torch.inf
        order = torch.sort(merit, descending=True, stable=True).indices
        return cls(order[:k].sort().values, size)

    @classmethod
    def from_ids(cls, keep: Tensor | Sequence[int], vocab_size: int | None = None) -> VocabMap:
        """Keep these tokens.

        Args:
            keep: `[k]` target ids, ascending.
            vocab_size: V; left out, one more than the highest id.
        """
        if not len(keep):
            raise ConfigError("no kept ids", accepted="at least one")
        ids = _ids(keep, "kept ids")
        return cls(ids, int(ids.max()) + 1 if vocab_size is None else vocab_size)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], vocab_size: int | None = None) -> VocabMap:
        """Read the tables of a checkpoint.

        Args:
            tensors: `d2t` `[k]` integers, target id less draft id; and `t2d` `[V]` bool, which tokens are kept. A map
                is told by `d2t` and V alone, so that `t2d` may be absent where `vocab_size` is given and `d2t` is not
                all zero (an untouched table, which would silently mean "the first k tokens").
            vocab_size: V, where it is known from elsewhere.

        Raises:
            ConfigError: a table is missing, or the two say different things.
        """
        if "d2t" not in tensors:
            raise ConfigError("a smaller draft vocabulary without the table 'd2t'", accepted="d2t and t2d", do=_AGAIN)
        d2t, t2d = _ids(tensors["d2t"], "d2t").cpu(), tensors.get("t2d")
        if t2d is None and (vocab_size is None or (not bool(d2t.any()) and len(d2t) < vocab_size)):
            raise ConfigError("a map that no table 't2d' confirms", accepted="d2t and t2d", do=_AGAIN)
        size = vocab_size if vocab_size is not None else len(cast(Tensor, t2d))
        made = cls(d2t + torch.arange(len(d2t), device="cpu"), size)
        if t2d is not None:
            made._confirm(t2d.cpu())
        return made

    def _confirm(self, t2d: Tensor) -> None:
        if t2d.dim() != 1 or len(t2d) != self.vocab_size or t2d.is_floating_point():
            raise ConfigError(f"t2d of {t2d.dtype} {tuple(t2d.shape)}", accepted=f"bool [{self.vocab_size}]")
        marked = int((t2d != 0).sum())
        if marked != self.k or not bool((t2d[self.keep] != 0).all()):
            said = f"d2t names {self.k} tokens, t2d marks {marked}{', but others' if marked == self.k else ''}"
            raise ConfigError(said, accepted="two tables of the same tokens", do=_AGAIN)

    @property
    def k(self) -> int:
        """Tokens that are kept."""
        return len(self.keep)

    @property
    def whole(self) -> bool:
        """Whether every token is kept, so that no table is needed."""
        return self.k == self.vocab_size

    def to_tensors(self) -> dict[str, Tensor]:
        """The tables: `d2t` `[k]` int64, target id less draft id; `t2d` `[V]` bool, which tokens are kept."""
        t2d = torch.zeros(self.vocab_size, dtype=torch.bool, device="cpu")
        t2d[self.keep] = True
        return {"d2t": self.keep - torch.arange(self.k, device="cpu"), "t2d": t2d}

    @overload
    def to_target(self, i: int) -> int: ...
    @overload
    def to_target(self, i: Tensor) -> Tensor: ...
    def to_target(self, i: Tensor | int) -> Tensor | int:
        """Target ids of draft ids, of any shape.

        Raises:
            ConfigError: a draft id outside `[0, k)`; or a ShapeError, other numbers than integers.
        """
        ids = _numbers(i, "draft ids")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.k:
            raise ConfigError(f"draft ids {int(ids.min())} to {int(ids.max())}", accepted=f"0 to {self.k - 1}")
        found = self.index(ids.device)[ids]
        return found if isinstance(i, Tensor) else int(found)

    @overload
    def to_draft(self, x: int) -> int: ...
    @overload
    def to_draft(self, x: Tensor) -> Tensor: ...
    def to_draft(self, x: Tensor | int) -> Tensor | int:
        """Draft ids of target ids, integers of any shape; -1 for whatever is not kept."""
        ids = _numbers(x, "target ids")
        keep = self.index(ids.device)
        at = torch.searchsorted(keep, ids.contiguous()).clamp(max=self.k - 1)
        found = torch.where(keep[at] == ids, at, -1)
        return found if isinstance(x, Tensor) else int(found)

    def scatter(self, logits: Tensor) -> Tensor:
        """Logits over the target's vocabulary: minus infinity wherever a token is not kept.

        Args:
            logits: `[..., k]` floating point.

        Returns:
            `[..., V]` of the same type and device.
        """
        if not logits.is_floating_point() or logits.dim() < 1 or logits.shape[-1] != self.k:
            raise ShapeError(f"draft logits of {logits.dtype} {tuple(logits.shape)}", accepted=f"float [..., {self.k}]")
        full = logits.new_full((*logits.shape[:-1], self.vocab_size), -torch.inf)
        return full.index_copy(-1, self.index(logits.device), logits)

    def coverage(self, p: Tensor) -> Tensor:
        """How much of a distribution the kept tokens hold.

        Args:
            p: `[..., V]` probabilities (or anything else that adds up).

        Returns:
            `[...]`, the sum over the kept tokens.
        """
        if p.dim() < 1 or p.shape[-1] != self.vocab_size:
            raise ShapeError(f"probabilities of {tuple(p.shape)}", accepted=f"[..., {self.vocab_size}]")
        return p.index_select(-1, self.index(p.device)).sum(-1)

    def compose(self, inner: VocabMap) -> VocabMap:
        """The map of a vocabulary that was trimmed twice: `inner` keeps some of this map's draft ids."""
        if inner.vocab_size != self.k:
            raise ConfigError(f"a map over {inner.vocab_size} tokens", accepted=f"one over {self.k}")
        return VocabMap(self.keep[inner.keep], self.vocab_size)

    def index(self, device: torch.device) -> Tensor:
        """The kept ids on a device; copied there once."""
        if device not in self._on:
            self._on[device] = self.keep.to(device)
        return self._on[device]

    def save(self, path: Path | str) -> None:
        """Write both tables as a safetensors file, in one move."""
        from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

        path = Path(path)
        handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            save_file(self.to_tensors(), unfinished, metadata={"format": "pt", "vocab_size": str(self.vocab_size)})
            os.replace(unfinished, path)
        finally:
            Path(unfinished).unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path | str) -> VocabMap:
        """Read what `save` wrote; both tables must be there and agree.

        Raises:
            ConfigError: no such file, not a safetensors file, or tables that are missing or inconsistent.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

        try:
            return cls.from_tensors(load_file(path))
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"no map in {str(path)!r}: {error}", accepted="a file that VocabMap.save wrote") from None


_AGAIN = "trim the model again, with remnant trim-vocab"


def trim_head(linear: nn.Linear, vmap: VocabMap) -> nn.Linear:
    """Cut an output layer down to the kept tokens.

    Args:
        linear: `V` outputs, with or without bias, in plain floating point.
        vmap: which rows stay.

    Returns:
        A new layer of `k` outputs with copies of the rows, on the same device and of the same type; a head that was
        tied to the embedding is no longer.

    Raises:
        ConfigError: not a linear layer, or a quantised one: rows of one group share a scale, so trim before quantising.
        ShapeError: another number of outputs than the map's vocabulary.
    """
    head: Any = linear  # whatever a model gives out as its head
    weight = getattr(head, "weight", None)
    if not hasattr(head, "out_features") or not isinstance(weight, Tensor) or weight.dim() != 2:
        raise ConfigError(f"a head of type {type(head).__name__}", accepted="torch.nn.Linear with a weight [V, d]")
    if weight.dtype not in _PLAIN:
        do = "trim first, then quantise"
        raise ConfigError(f"a head of {weight.dtype}", accepted="float32, bfloat16, float16 or float64", do=do)
    if weight.shape[0] != vmap.vocab_size:
        raise ShapeError(f"a head of {weight.shape[0]} rows", accepted=f"{vmap.vocab_size}, the map's vocabulary")
    d, rows = weight.shape[1], vmap.index(weight.device)
    trimmed = nn.Linear(d, vmap.k, bias=getattr(head, "bias", None) is not None, device="meta", dtype=weight.dtype)
    for name, parameter in head.named_parameters(recurse=False):
        cut = nn.Parameter(parameter.detach()[rows], requires_grad=parameter.requires_grad)
        setattr(trimmed, name, cut)
    return trimmed.train(linear.training)


def _ids(x: Tensor | Sequence[int], name: str) -> Tensor:
    if (ids := _numbers(x, name)).dim() != 1:
        raise ShapeError(f"{name} of {tuple(ids.shape)}", accepted="integers [k]")
    return ids


def _numbers(x: Tensor | Sequence[int] | int, name: str) -> Tensor:
    try:
        ids = torch.as_tensor(x).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(f"{name} {x!r:.80}", accepted="integers") from error
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:  # a mask would pick, not look up
        raise ShapeError(f"{name} of {ids.dtype} {tuple(ids.shape)}", accepted="integers")
    return ids.to(torch.int64)
