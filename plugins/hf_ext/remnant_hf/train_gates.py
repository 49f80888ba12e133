"""Train retention gates for any causal language model of transformers; the model itself stays as it is.

The teacher is the untouched model. The student takes turns between two tasks: keys that fade with age, as in the paper,
and a cache that was compacted once, as it will be used.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from remnant.errors import ConfigError
from remnant.kv.gate_attention import Form
from remnant.kv.gate_training import Share, capacity_loss, distillation
from remnant.kv.gates import Gates, RetentionGate
from remnant_hf.bridge import install
from remnant_hf.gate_data import Batches, GateBatch
from remnant_hf.gate_student import Compaction, GateCache, frozen, new_gate

__all__ = ["Report", "Settings", "train_gates"]

Report = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Settings:
    """How to train.

    Args:
        lr: peak learning rate of AdamW, after a linear warm-up and before a cosine decay to zero.
        warmup: steps of the warm-up.
        capacity: weight of the capacity loss against the quality loss.
        form: of the gated attention, `additive` or `multiplicative`.
        share: as the policy will be used: `layer` holds the mean of a layer's heads to the budget, `head` every one.
        clip: largest norm of the gradient.
        save_every: steps between checkpoints.
        compact_every: every so many steps the student goes through a compaction instead of fading; 0 never.
        width: softness of that compaction, see `remnant.kv.gate_training.choice`.
    """

    lr: float = 1e-2
    warmup: int = 10
    capacity: float = 1.0
    form: Form = "additive"
    share: Share = "layer"
    clip: float = 1.0
    save_every: int = 25
    compact_every: int = 2
    width: float = 0.5

    def __post_init__(self) -> None:
        """Refuse names that mean nothing."""
        for option, accepted in (("form", ("additive", "multiplicative")), ("share", ("layer", "head"))):
            if getattr(self, option) not in accepted:
                raise ConfigError(f"{option} {getattr(self, option)!r}", accepted=accepted)

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.lr * min(1.0, (step + 1) / self.warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def _compaction(length: int, budgets: Sequence[int], settings: Settings, step: int, seed: int) -> Compaction | None:
    """The compaction of a step, somewhere behind the middle and to one of the budgets; None for a step that fades."""
    if not settings.compact_every or (step + 1) % settings.compact_every:
        return None
    rng = np.random.default_rng([seed, 11, step])
    cut = int(rng.integers(length // 2, max(length * 7 // 8, length // 2 + 1)))
    # A budget that keeps most of what was read teaches little.
    telling = [m for m in budgets if 4 * m <= cut] or [min(budgets)]
    return Compaction(cut, int(rng.choice(telling)), settings.share, settings.width)


def _losses(
    model: Any,
    gate: RetentionGate,
    batch: GateBatch,
    budgets: Sequence[int],
    settings: Settings,
    compaction: Compaction | None = None,
) -> tuple[Tensor, dict[str, float]]:
    ids, weights = batch.ids.to(model.device), batch.weights.to(model.device)
    if compaction is not None:
        # Before the cut the student is the teacher.
        weights = weights * (torch.arange(ids.shape[1], device=ids.device) >= compaction.cut)
    chosen = weights > 0
    with torch.no_grad():
        teacher = model(input_ids=ids, use_cache=False).logits[chosen]
    cache = GateCache(model.config, gate, settings.form, compaction)
    student = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[chosen]
    log_betas = cache.log_betas()
    kl, ce = distillation(student, teacher, batch.labels.to(model.device)[chosen], weights[chosen])
    loss, values = kl + ce, {"kl": kl, "cross_entropy": ce}
    if compaction is None:
        real = None if batch.real is None else batch.real.to(model.device)
        held = [capacity_loss(x, budgets, settings.share, real=real) for x in log_betas]
        values["capacity"] = torch.stack(held).mean()
        loss = loss + settings.capacity * values["capacity"]
    return loss, {"loss": loss.item(), **{name: value.item() for name, value in values.items()}}


class _Checkpoint:
    """Gate, optimizer and step in one safetensors file, replaced in one move."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.path, self.plan = folder / "checkpoint.safetensors", json.dumps(plan, sort_keys=True)

    def save(self, gate: RetentionGate, optimizer: torch.optim.Optimizer, step: int, spent: float) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"gate.{n}": p.detach() for n, p in gate.named_parameters()}
        for name, p in gate.named_parameters():
            tensors |= {f"{key}.{name}": optimizer.state[p][key] for key in ("exp_avg", "exp_avg_sq")}
        tensors |= {"step": torch.tensor(step), "seconds": torch.tensor(spent, dtype=torch.float64)}
        unfinished = self.path.with_suffix(".tmp")
        save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, unfinished, metadata={"plan": self.plan})
        unfinished.replace(self.path)

    def load(self, gate: RetentionGate, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
        if not self.path.exists():
            return 0, 0.0
        from safetensors import safe_open

        with safe_open(str(self.path), "pt") as file:
            plan = file.metadata()["plan"]
        if plan != self.plan:
            do = "use the same options, or another folder"
            raise ConfigError(f"the checkpoint in {str(self.path.parent)!r} is of another run: {plan}", do=do)
        saved = load_file(self.path)
        step = int(saved["step"])
        with torch.no_grad():
            for name, p in gate.named_parameters():
                p.copy_(saved[f"gate.{name}"])
                moments = {key: saved[f"{key}.{name}"].to(p.device) for key in ("exp_avg", "exp_avg_sq")}
                optimizer.state[p] = {"step": torch.tensor(float(step)), **moments}
        return step, float(saved["seconds"])


def train_gates(
    model: Any,
    batches: Batches,
    gates: RetentionGate | Gates | None,
    budgets: int | Sequence[int],
    steps: int,
    settings: Settings | None = None,
    report: Report | None = None,
    folder: Path | str | None = None,
    resume: bool = False,
    seed: int = 0,
    stop_after: int | None = None,
) -> Gates:
    """Train gates so that the model says the same with a small cache.

    Args:
        model: a causal language model of transformers; frozen here, and untouched afterwards.
        batches: draws the batch of a step.
        gates: where to start; None for new ones.
        budgets: cache sizes that the gates shall serve, in tokens per KV head; several make one gate for all.
        steps: optimizer steps in all.
        settings: how to train.
        report: called as `report(step, steps, losses)` after every step.
        folder: for checkpoints; None writes none.
        resume: go on from the checkpoint in `folder`, if there is one.
        seed: of new gates.
        stop_after: leave after this many steps of the schedule, with a checkpoint.

    Returns:
        The gates, with how they were trained as provenance.

    Raises:
        ConfigError: no steps, no budget, or a checkpoint of another run.
        UnsupportedPolicy: the model's attention cannot be reached.

    Source: TRIM-KV, training. Differs: additive gates, several budgets at once, every second step a compaction in place
    of fading keys; the paper's optimizer settings are not public, so they are ours.
    """
    sizes = [budgets] if isinstance(budgets, int) else list(budgets)
    if steps < 1 or not sizes or min(sizes) < 1:
        raise ConfigError(f"steps {steps}, budgets {sizes}", accepted="at least one step and budgets of at least 1")
    settings = settings or Settings()
    install()
    gate = (
        gates if isinstance(gates, RetentionGate) else RetentionGate.of(gates) if gates else new_gate(model, seed=seed)
    )
    gate.to(model.device)
    about = {"steps": steps, "budgets": sizes, "seed": seed, "settings": asdict(settings), "gate": vars(gate.shape)}
    optimizer = torch.optim.AdamW(gate.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0)
    checkpoint = _Checkpoint(Path(folder), about) if folder is not None else None
    start, spent = checkpoint.load(gate, optimizer) if checkpoint and resume else (0, 0.0)
    began, last = time.monotonic() - spent, {}
    end = min(steps, stop_after or steps)
    with frozen(model):
        for step in range(start, end):
            for group in optimizer.param_groups:
                group["lr"] = settings.lr_at(step, steps)
            batch = batches(step)
            compaction = _compaction(batch.ids.shape[1], sizes, settings, step, seed)
            loss, last = _losses(model, gate, batch, sizes, settings, compaction)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(gate.parameters(), settings.clip)
            optimizer.step()
            if report is not None:
                report(step + 1, steps, last)
            if checkpoint and ((step + 1) % settings.save_every == 0 or step + 1 == end):
                checkpoint.save(gate, optimizer, step + 1, time.monotonic() - began)
    return gate.export({**about, "seconds": round(time.monotonic() - began), "last": last})
