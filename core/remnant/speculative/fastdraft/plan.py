"""What a run will do, decided once: the shape, and how many steps and samples its time allows.

The plan is written before training starts and read again by a resumed run, which is how a budget in minutes and an
identical result go together.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.progress import Progress, silent
from remnant.speculative.fastdraft.checkpoint import write_json
from remnant.speculative.fastdraft.data import Data
from remnant.speculative.fastdraft.evaluate import expected_acceptance
from remnant.speculative.fastdraft.loop import Stage, Teacher, train_stage
from remnant.speculative.fastdraft.samples import complete
from remnant.speculative.fastdraft.search import measure_verify, search
from remnant.speculative.fastdraft.settings import Settings
from remnant.speculative.fastdraft.shape import (
    Shape,
    block_of,
    borrow_embedding,
    candidates,
    draft_config,
    new_draft,
    sized,
)
from remnant.speculative.fastdraft.target import Target

__all__ = [
    "default_lr",
    "first_draft",
    "given_shape",
    "make_plan",
    "read_plan",
    "shapes_for",
    "stage_for",
    "teacher_for",
]

_SHARES = {"pretrain": 0.42, "samples": 0.15, "align": 0.33}  # of the minutes; the rest searches and measures
_BATCH = 64
_TEMPERATURE = 0.6  # of the acceptance that shapes are compared by


def default_lr(width: int) -> float:
    """Peak learning rate: 6e-4 at 768 channels, inversely with the width, 6e-3 at most."""
    return min(6e-3, 6e-4 * 768 / width)


def given_shape(settings: Settings, target: Target, budget: int) -> Shape | None:
    """The shape that the user fixed, if so.

    Raises:
        ConfigError: nothing of this width and depth fits the budget.
    """
    if settings.width is None or settings.depth is None:
        return None
    block = block_of(target.config)
    fitting = candidates(target.vocab, budget, target.head_dim, block)  # refuses a budget below the vocabulary
    found = sized(settings.width, settings.depth, target.vocab, budget, target.head_dim, block)
    if found is None:
        raise ConfigError(
            f"width {settings.width}, depth {settings.depth} within {budget} parameters",
            accepted="for example " + ", ".join(f"{s.width} x {s.depth}" for s in fitting[:4]),
        )
    return found


def shapes_for(settings: Settings, target: Target, budget: int) -> list[Shape]:
    """What the search may choose from; the one shape that was fixed, if so."""
    fixed = given_shape(settings, target, budget)
    return [fixed] if fixed else candidates(target.vocab, budget, target.head_dim, block_of(target.config))


def read_plan(folder: Path, settings: Settings, sha256: str) -> dict[str, Any] | None:
    """The plan of an earlier run into this folder.

    Raises:
        ConfigError: that run had other settings or data.
    """
    file = folder / "plan.json"
    if not file.is_file():
        return None
    plan: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    told = settings.to_dict()
    other = [name for name, value in told.items() if name != "save_every" and plan["settings"].get(name) != value]
    if plan["data_sha256"] != sha256:
        other.append("data")
    if other:
        raise ConfigError(
            f"the run in {str(folder)!r} has other {', '.join(other)}",
            accepted="the same settings, to go on",
            do="use another folder, or remove this one",
        )
    return plan


def make_plan(
    settings: Settings,
    target: Target,
    model: Any,
    data: Data,
    shapes: list[Shape],
    device: str,
    real: int,
    ends: Tensor,
    folder: Path,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Search the shape, time one training step and one batch of the target, and write down what follows.

    Args:
        settings: the user's.
        target: by its files.
        model: the target itself.
        data: corpus and prompts.
        shapes: candidates.
        device: of torch.
        real: ids that exist.
        ends: `[n]` ids that end a text.
        folder: for `plan.json`.
        progress: called while searching.
    """
    timing = measure_verify(model, settings.num_draft)

    def pilot(shape: Shape) -> float:
        draft = first_draft(settings, target, model, shape).to(device)
        train_stage(draft, data.corpus, stage_for(settings, "pilot", settings.pilot_steps, shape.width))
        rng = np.random.default_rng([settings.seed, 2])
        return expected_acceptance(model, draft, data.corpus, _TEMPERATURE, real, rng, settings.rows, settings.length)

    wanted = len(shapes) > 1 and settings.pilots > 0
    found = search(
        shapes,
        target.config,
        timing,
        settings.num_draft,
        device,
        pilot if wanted else None,
        min(settings.pilots, len(shapes)),
        progress,
    )
    plan = {
        "settings": settings.to_dict(),
        "data_sha256": data.sha256,
        "shape": found[0].shape.to_dict(),
        "search": [row.to_dict() for row in found],
        "target_step": timing.target,
        "verify": timing.verify,
        **_amounts(settings, target, model, data, found[0].shape, device, real, ends),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plan.json", plan)
    return plan


def first_draft(settings: Settings, target: Target, model: Any, shape: Shape) -> Any:
    """The drafter before any training of ours, in float32: that is what is trained."""
    draft = new_draft(draft_config(target.config, shape), settings.seed)
    if settings.embedding == "target":
        borrow_embedding(draft, model, settings.seed)
    return draft


def stage_for(settings: Settings, name: str, steps: int, width: int) -> Stage:
    """The schedule of a stage."""
    peak = settings.lr or default_lr(width)
    aligning = name == "align"
    return Stage(
        name,
        steps,
        settings.rows,
        settings.length,
        (settings.align_lr or peak / 2) if aligning else peak,
        seed={"pretrain": 10, "more": 11, "align": 12, "pilot": 13}[name] + 100 * settings.seed,
        loss=settings.loss if aligning else "ce",
        top=settings.top if aligning else 0,
        on_policy=settings.on_policy if aligning else 0.0,
        save_every=settings.save_every,
    )


def _amounts(
    settings: Settings, target: Target, model: Any, data: Data, shape: Shape, device: str, real: int, ends: Tensor
) -> dict[str, int]:
    """Steps and samples: as given, else what the minutes allow at the speed of a few trials."""
    seconds = 60 * settings.minutes
    pretrain, align = settings.pretrain_steps, settings.align_steps
    if pretrain is None or align is None:
        draft = new_draft(draft_config(target.config, shape), settings.seed).to(device)
        train_stage(draft, data.corpus, stage_for(settings, "pilot", 2, shape.width))
        step = train_stage(draft, data.corpus, stage_for(settings, "pilot", 8, shape.width))["seconds"] / 8
        pretrain = max(1, int(_SHARES["pretrain"] * seconds / step)) if pretrain is None else pretrain
        costly = 1.0 if settings.loss == "ce" else 3.0  # the target reads every batch, too
        align = max(1, int(_SHARES["align"] * seconds / (step * costly))) if align is None else align
    if settings.start is not None:
        pretrain = settings.pretrain_steps or 0
    samples = settings.samples
    if samples is None:
        chosen = [p.ids for p in data.prompts[:_BATCH]]
        began = time.monotonic()
        heat = torch.full((len(chosen),), 1.0)
        complete(model, chosen, heat, settings.new, ends, real, torch.Generator().manual_seed(0))
        batch = time.monotonic() - began
        samples = max(len(chosen), int(_SHARES["samples"] * seconds / batch) * len(chosen))
    more = 0 if data.more is None else (pretrain // 2 if settings.more_steps is None else settings.more_steps)
    return {
        "pretrain_steps": pretrain,
        "more_steps": more,
        "samples": min(samples, len(data.prompts)),
        "align_steps": align,
    }


def teacher_for(settings: Settings, model: Any, real: int, ends: Tensor) -> Teacher | None:
    """The target in the loss, where the loss asks it."""
    return None if settings.loss == "ce" else Teacher(model, real, ends)
