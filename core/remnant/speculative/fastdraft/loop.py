"""One stage of training: steps over rows, with a schedule, a checkpoint and a loss."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from remnant.progress import Progress, silent
from remnant.speculative.fastdraft.checkpoint import load_state, save_state
from remnant.speculative.fastdraft.data import IGNORE, Ids, Rows
from remnant.speculative.fastdraft.losses import distillation_loss
from remnant.speculative.fastdraft.samples import complete

__all__ = ["Stage", "Teacher", "train_stage"]

_DECAY = 0.1  # weight decay of matrices
_CLIP = 1.0  # largest norm of a gradient
_FLOOR = 0.1  # of the peak learning rate, where the cosine ends


@dataclass(frozen=True)
class Stage:
    """A schedule.

    Args:
        name: `pretrain`, `more` or `align`; its checkpoints lie in a folder of this name.
        steps: optimizer steps.
        rows: rows per step.
        length: most tokens per row.
        lr: peak of a cosine that ends at a tenth of it.
        seed: of the rows.
        loss: one of `LOSSES`.
        top: tokens of the target that a divergence counts one by one; 0 is all.
        on_policy: fraction of the rows whose completion the drafter writes itself, scored by the target.
        save_every: steps between checkpoints.
    """

    name: str
    steps: int
    rows: int
    length: int
    lr: float
    seed: int
    loss: str = "ce"
    top: int = 0
    on_policy: float = 0.0
    save_every: int = 200

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: a short rise, then a cosine."""
        warm = min(100, max(1, self.steps // 20))
        if step < warm:
            return self.lr * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.lr * (_FLOOR + (1 - _FLOOR) * (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True)
class Teacher:
    """The target in a loss.

    Args:
        model: frozen.
        real: ids that exist.
        ends: `[n]` ids that end a text.
    """

    model: Any
    real: int
    ends: Tensor


def make_optimizer(model: Any) -> torch.optim.AdamW:
    """AdamW with betas 0.9 and 0.95; vectors do not decay."""
    named = list(model.parameters())
    groups = [
        {"params": [p for p in named if p.dim() > 1], "weight_decay": _DECAY},
        {"params": [p for p in named if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))


def train_stage(
    model: Any,
    rows: Rows,
    stage: Stage,
    folder: Path | None = None,
    teacher: Teacher | None = None,
    progress: Progress = silent,
) -> dict[str, float]:
    """Train to the end of a stage, from where its checkpoint stands.

    A step depends on the weights before it and on `(seed, step)` alone, so a run that was broken off and resumed has
    the same result as one that was not.

    Args:
        model: the drafter, changed in place.
        rows: what it reads.
        stage: how.
        folder: of the checkpoints; None keeps none.
        teacher: for losses that ask the target.
        progress: called after every step.

    Returns:
        `loss` (a running mean, nats), `seconds` (of all its parts together), `tokens` (labels, so far).
    """
    optimizer = make_optimizer(model)
    place: dict[str, Any] = {"step": 0} if folder is None else load_state(folder, model, optimizer)
    device = next(model.parameters()).device
    mean, tokens = float(place.get("loss", 0.0)), int(place.get("tokens", 0))
    began = time.monotonic() - float(place.get("seconds", 0.0))
    model.train()
    for step in range(int(place["step"]), stage.steps):
        rng = np.random.default_rng([stage.seed, step])
        for group in optimizer.param_groups:
            group["lr"] = stage.lr_at(step)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss, labels = _loss(model, rows, stage, teacher, rng, device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        tokens += labels
        done = {"loss": mean, "seconds": time.monotonic() - began, "tokens": tokens}
        last = step + 1 == stage.steps
        if folder is not None and (last or (step + 1) % stage.save_every == 0):
            save_state(folder, model, optimizer, {"step": step + 1, **done})
        progress(step + 1, stage.steps, f"{stage.name}  loss {mean:.3f}")
    model.eval()
    return {"loss": mean, "seconds": time.monotonic() - began, "tokens": tokens}


def _loss(
    model: Any, rows: Rows, stage: Stage, teacher: Teacher | None, rng: np.random.Generator, device: torch.device
) -> tuple[Tensor, int]:
    """Loss of a batch, and its labels."""
    ids, labels = rows.rows(rng, stage.rows, stage.length)
    if stage.on_policy and teacher is not None:
        ids, labels = _own(model, ids, labels, stage, teacher, rng)
    batch, wanted = _tensor(ids, device), _tensor(labels, device)
    chosen = wanted != IGNORE
    # The vocabulary is most of a small drafter's work, so it is asked only where a label stands.
    hidden = model.base_model(input_ids=batch, use_cache=False).last_hidden_state[chosen]
    logits = model.get_output_embeddings()(hidden)
    told: Tensor | None = None
    if stage.loss != "ce" and teacher is not None:
        with torch.no_grad():
            told = teacher.model(input_ids=batch, use_cache=False).logits[chosen]
    real = None if teacher is None else teacher.real
    return distillation_loss(stage.loss, logits, wanted[chosen], told, stage.top, real), int(chosen.sum())


def _own(
    model: Any, ids: Ids, labels: Ids, stage: Stage, teacher: Teacher, rng: np.random.Generator
) -> tuple[Ids, Ids]:
    """Replace some completions by what the drafter says now: its own mistakes are what the target must judge.

    Args:
        model: the drafter.
        ids: `[n, T]`.
        labels: `[n, T]`; the first label tells where the completion begins.
        stage: says how many rows.
        teacher: says what ends a text.
        rng: of this step.
    """
    many = round(stage.on_policy * len(ids))
    starts = (labels != IGNORE).argmax(-1)
    ids, labels = np.array(ids, dtype=np.int64), np.array(labels, dtype=np.int64)
    if not many:
        return ids, labels
    picked: list[int] = sorted(cast(Any, rng).choice(len(ids), size=many, replace=False).tolist())
    prompts: list[list[int]] = [ids[row, : int(starts[row]) + 1].tolist() for row in picked]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    room = ids.shape[1] - int(starts[picked].min())
    model.eval()
    said = complete(model, prompts, torch.ones(many), room, teacher.ends, teacher.real, generator)
    model.train()
    for row, prompt, answer in zip(picked, prompts, said, strict=True):
        whole = (prompt + answer)[: ids.shape[1] + 1]
        ids[row], labels[row] = 0, IGNORE
        ids[row, : len(whole) - 1] = whole[:-1]
        labels[row, len(prompt) - 1 : len(whole) - 1] = whole[len(prompt) :]
    return ids, labels


def _tensor(ids: Ids, device: torch.device) -> Tensor:
    return torch.from_numpy(ids).to(device)  # pyright: ignore[reportUnknownMemberType]
