"""RAPID's tilt: the target's distribution moved towards that of a drafter which reads retrieved passages.

A drafter that reads the right passages may know more than a target that is lost in a long context. A tilt lets the
target learn from it while decoding, and by that changes what is sampled. Only mode `target` leaves it alone:

    target      not tilted: the output is distributed as the target's own
    exact       one gradient step of the distillation loss; the output is distributed exactly as the tilted p~
    geometric   p~ in proportion to p^(1-lam) q^lam; the output is distributed exactly as p~
    kl          geometric, lam chosen per token so that KL(p~ || p) <= delta; exactly p~ again
    paper       the step of `exact` with the residual and bonus of the released code: neither p nor p~
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from remnant.errors import ConfigError, ShapeError, unknown
from remnant.speculative._lists import floats, ints

__all__ = ["Audit", "Mode", "Tilt", "tilt_geometric", "tilt_kl", "tilt_step"]

Mode = Literal["target", "exact", "geometric", "kl", "paper"]
_HALVINGS = 20


def tilt_step(z: Tensor, zq: Tensor, eta: float, T: float = 1.0, mask_alpha: float = 0.1) -> Tensor:
    """One gradient step on `T^2 KL(softmax(zq/T) || softmax(z/T))` with the drafter as the teacher.

    Args:
        z: `[..., V]`, logits of the target before temperature and filters.
        zq: `[..., V]`, logits of the drafter, likewise.
        eta: step size, 0 or more. No logit moves by more than `eta * T`; a large step overshoots q.
        T: temperature of the loss, above 0.
        mask_alpha: only tokens with `q >= mask_alpha * max q` move; 0 moves all.

    Returns:
        `[..., V]` logits z~, at least float32.

    Raises:
        ConfigError: a number is out of range.
        ShapeError: the logits do not fit each other, or are NaN or infinite (minus infinity is no token).

    Source: Chen et al. 2025 (RAPID), arXiv 2502.20330, section on knowledge transfer. Differs: works on logits before
        filters, where the released code tilts filtered ones.
    Example: tilt_step(torch.tensor([2., 1., 0.]), torch.tensor([0., 1., 2.]), 1.0).softmax(-1)
        -> [0.480422, 0.314152, 0.205426]
    """
    _check_logits(z, zq)
    if not (0 <= eta < math.inf and 0 < T < math.inf and 0 <= mask_alpha <= 1):
        raise ConfigError(
            f"eta={eta}, T={T}, mask_alpha={mask_alpha}",
            accepted="eta 0 or more, T above 0, both finite, mask_alpha from 0 to 1",
        )
    z, zq = _floats(z), _floats(zq)
    p, q = torch.softmax(z / T, -1), torch.softmax(zq / T, -1)
    moved = q >= mask_alpha * q.amax(-1, keepdim=True)
    return z + torch.where(moved, eta * T * (q - p), torch.zeros((), dtype=z.dtype, device=z.device))


def tilt_geometric(logp: Tensor, logq: Tensor, lam: float | Tensor) -> Tensor:
    """The geometric mixture `log p~ = (1 - lam) log p + lam log q - log Z`.

    With growing lam the acceptance `1 - TV(p~, q)` never falls: p~ is a one-parameter exponential family in log(p/q).

    Args:
        logp: `[..., V]`, log probabilities of the target; unnormalised ones are normalised.
        logq: `[..., V]`, those of the drafter, before filters: where q is 0, p~ is 0 for any lam above 0.
        lam: weight of the drafter, 0 to 1; a tensor has the shape `[...]`.

    Returns:
        `[..., V]` log probabilities, at least float32. A row whose p and q share no token keeps p.

    Raises:
        ConfigError: lam is out of range.
        ShapeError: the shapes do not fit, or a row is no distribution: NaN, infinite, or without any token.

    Source: ours, in place of RAPID's step, which overshoots.
    """
    _check_logits(logp, logq)
    logp, logq = _floats(logp).log_softmax(-1), _floats(logq).log_softmax(-1)
    weight = torch.as_tensor(lam, dtype=logp.dtype, device=logp.device)
    if bool(((weight < 0) | (weight > 1) | weight.isnan()).any()):
        raise ConfigError(f"lam={lam}", accepted="0 to 1")
    if weight.dim() and weight.shape != logp.shape[:-1]:
        raise ShapeError(f"lam {list(weight.shape)}", accepted=f"a number, or {list(logp.shape[:-1])}")
    return _mixture(logp, logq, weight)


def _mixture(logp: Tensor, logq: Tensor, weight: Tensor) -> Tensor:
    """`tilt_geometric` of normalised rows, with a weight `[...]` that was checked."""
    weight = weight.unsqueeze(-1)
    mixed = _times(1 - weight, logp) + _times(weight, logq)
    empty = mixed.isneginf().all(-1, keepdim=True)
    return torch.where(empty, logp, mixed).log_softmax(-1)


def tilt_kl(logp: Tensor, logq: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """The geometric mixture with the largest lam, per row, that keeps `KL(p~ || p) <= delta`.

    Args:
        logp: `[..., V]`, log probabilities of the target.
        logq: `[..., V]`, those of the drafter.
        delta: bound in nats, 0 or more.

    Returns:
        `(logp~ [..., V], lam [...])`; lam is exact to `2^-20`, from below, so that the bound holds.

    Raises:
        ConfigError: delta is below 0.
        ShapeError: the shapes do not fit, or a row is no distribution: NaN, infinite, or without any token.

    Source: ours; the divergence grows with lam, so that bisection finds the bound.
    """
    if not delta >= 0:
        raise ConfigError(f"delta={delta}", accepted="0 or more, in nats")
    _check_logits(logp, logq)
    logp, logq = _floats(logp).log_softmax(-1), _floats(logq).log_softmax(-1)
    low = torch.zeros(logp.shape[:-1], dtype=logp.dtype, device=logp.device)
    high = torch.ones_like(low)
    low = torch.where(_divergence(_mixture(logp, logq, high), logp) <= delta, high, low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        holds = _divergence(_mixture(logp, logq, middle), logp) <= delta
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return _mixture(logp, logq, low), low


class Audit:
    """How much of the drafter is in each token of the newest run; see `Tilt.weight` for the number."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._rows: dict[int, list[float]] = {}

    def of(self, row: int, ids: Tensor) -> list[float]:
        """One weight, 0 to 1, for each of a row's new tokens `[n]`."""
        return self._rows.get(row, [])[: len(ids)]

    def begin(self) -> None:
        """Forget the run before."""
        self._rows = {}

    def add(self, row: int, weights: list[float]) -> None:
        """The tokens that a row got in one block; those behind its end come last and are left out by `of`."""
        self._rows.setdefault(row, []).extend(weights)


@dataclass(frozen=True)
class Tilt:
    """Which distribution is sampled from, for a host's loop: `tilt(z, zq)` gives the logits to sample from.

    Args:
        mode: `target` (lossless), `exact`, `geometric`, `kl` or `paper`; the module says what each samples from.
        eta: step size of `exact` and `paper`. The paper's: 10 for a drafter of the target's size, 20 for a 70B one of
            itself, 40 to 50 for a 70B drafter of an 8B target.
        lam: weight of the drafter in `geometric`, 0 to 1.
        delta: most nats that `kl` moves a token's distribution.
        T: temperature of the loss of the step.
        mask_alpha: see `tilt_step`.
        audit: where the loop writes down the weight of every token; None writes nothing.

    Raises:
        ConfigError: an unknown mode, or a number out of range.

    Example: generate(target, RagDrafter(small, context, tilt), ids, 100, Sampler(0.7), tilt=tilt)
    """

    mode: Mode = "target"
    eta: float = 10.0
    lam: float = 0.5
    delta: float = 0.5
    T: float = 1.0
    mask_alpha: float = 0.1
    audit: Audit | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Check once what every step would check again."""
        if self.mode not in get_args(Mode):
            raise unknown("tilt mode", str(self.mode), get_args(Mode))
        probe = torch.zeros(2)
        tilt_step(probe, probe, self.eta, self.T, self.mask_alpha)
        tilt_geometric(probe, probe, self.lam)
        tilt_kl(probe, probe, self.delta)

    @property
    def lossless(self) -> bool:
        """Whether the output is distributed as the target's own."""
        return self.mode == "target"

    @property
    def tilted_bonus(self) -> bool:
        """Whether the token after a wholly accepted draft is drawn from p~ too; it then needs the drafter's logits."""
        return self.mode in ("exact", "geometric", "kl")

    def __call__(self, z: Tensor, zq: Tensor) -> Tensor:
        """Logits z~ `[..., V]` from the target's z and the drafter's zq, both before temperature and filters."""
        if self.mode == "target":
            return z
        if self.mode == "geometric":
            return tilt_geometric(z, zq, self.lam)
        if self.mode == "kl":
            return tilt_kl(z, zq, self.delta)[0]
        return tilt_step(z, zq, self.eta, self.T, self.mask_alpha)

    def residual(self, p: Tensor, q: Tensor, p_tilted: Tensor) -> Tensor:
        """What a correction is drawn from after the first rejection, `[..., V]`, rows sum to 1.

        Args:
            p: `[..., V]`, the target's probabilities.
            q: `[..., V]`, the drafter's; one-hot for a deterministic draft.
            p_tilted: `[..., V]`, the tilted ones, which the draft was accepted by.

        Returns:
            `norm(max(p~ - q, 0))`, which makes the output exactly p~; in mode `paper` `norm(max(p - q, p - p~, 0))`.
            Where nothing is left (p~ equals q up to rounding), p~ itself, in mode `paper` p.
        """
        if self.mode == "paper":
            left, rest = torch.maximum(p - q, p - p_tilted).clamp(min=0), p
        else:
            own = p if self.mode == "target" else p_tilted
            left, rest = (own - q).clamp(min=0), own
        mass = left.sum(-1, keepdim=True)
        return torch.where(mass > 0, left / mass.clamp(min=torch.finfo(left.dtype).tiny), rest)

    def weight(self, z: Tensor, zq: Tensor) -> Tensor:
        """What an audit writes down per token: the drafter's weight in what was sampled from, `[...]`, 0 to 1.

        The weight lam of the geometric modes. The step has none; its weight is how far it moved the distribution,
        `TV(p~, p)`, before temperature and filters.
        """
        if self.mode == "kl":
            return tilt_kl(z, zq, self.delta)[1]
        z = _floats(z)
        if self.mode in ("target", "geometric"):
            return torch.full(z.shape[:-1], 0.0 if self.mode == "target" else self.lam, device=z.device)
        return (self(z, zq).softmax(-1) - z.softmax(-1)).abs().sum(-1) / 2

    def record(
        self, rows: Sequence[int], z: Tensor, zq: Tensor, n: Tensor, lengths: Tensor, first: bool = False
    ) -> None:
        """Write the weights of a block's tokens into the audit; a loop calls it after each pass.

        Args:
            rows: the caller's rows, R of them.
            z: `[R, T, V]`, logits of the target.
            zq: `[R, T, V]`, those of the drafter.
            n: `[R]` int64, drafted tokens that were accepted; one token more came out.
            lengths: `[R]` int64, drafted tokens.
            first: the token behind the prompt, with which a run begins.
        """
        if self.audit is None:
            return
        if first:
            self.audit.begin()
        weights = self.weight(z, zq)
        for row, weight, accepted, drafted in zip(rows, weights, ints(n), ints(lengths), strict=True):
            told = floats(weight[: accepted + 1])
            if accepted == drafted and not self.tilted_bonus:
                told[-1] = 0.0  # drawn from the target's own
            self.audit.add(row, told)


def _divergence(logp: Tensor, base: Tensor) -> Tensor:
    """KL in nats per row; a token without mass counts nothing."""
    p = logp.exp()
    return torch.where(p > 0, p * (logp - base), torch.zeros_like(p)).sum(-1)


def _times(weight: Tensor, log: Tensor) -> Tensor:
    """The product, with 0 times minus infinity as 0."""
    return torch.where(weight > 0, weight * log, torch.zeros_like(log))


def _floats(x: Tensor) -> Tensor:
    """At least float32: a softmax over 128,000 tokens in 16 bits is not one."""
    return x if x.dtype == torch.float64 else x.float()


def _check_logits(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.dim() < 1 or a.shape[-1] < 1:
        raise ShapeError(f"logits {list(a.shape)} of the target, {list(b.shape)} of the drafter", accepted="one shape")
    if not a.numel():
        return
    ends = torch.stack([a.amax(-1).float(), b.amax(-1).float()])  # NaN, if there is one
    if not bool(torch.isfinite(ends).all()):
        raise ShapeError("logits with NaN, plus infinity, or no token at all", accepted="numbers, or minus infinity")
