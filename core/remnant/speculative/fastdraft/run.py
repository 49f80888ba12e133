"""`remnant fastdraft`: from a target to a drafter in a folder, in stages that can be broken off and resumed."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.progress import Progress, silent
from remnant.speculative.fastdraft.card import fingerprint, versions, write_draft
from remnant.speculative.fastdraft.checkpoint import write_json
from remnant.speculative.fastdraft.data import Data, Rows, check_files, read_data
from remnant.speculative.fastdraft.evaluate import evaluate
from remnant.speculative.fastdraft.loop import train_stage
from remnant.speculative.fastdraft.plan import first_draft, make_plan, read_plan, shapes_for, stage_for, teacher_for
from remnant.speculative.fastdraft.samples import make_samples
from remnant.speculative.fastdraft.settings import Settings
from remnant.speculative.fastdraft.shape import Shape
from remnant.speculative.fastdraft.target import Target, load_model, load_tokenizer, read_target, stops

__all__ = ["run"]

_PROMPTS = 20_000  # prompts that are cut from a corpus at most


def run(settings: Settings, out: Path, resume: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """Search, pretrain, let the target speak, align, measure, write.

    Args:
        settings: the user's choices.
        out: folder of the drafter; `out/run` holds what resuming needs and may be deleted afterwards.
        resume: go on with the run in `out`; its result equals that of a run that was never stopped.
        progress: called throughout, one stage after the other.

    Returns:
        The card: shape, parameters, search, `before` and `after` the alignment (see `evaluate`), provenance.

    Raises:
        ConfigError: the drafter would not be smaller than its target, its budget does not hold the vocabulary, a file
            is missing or empty, `start` has another vocabulary, or `out` holds another run. All of it is said before
            the target's weights are loaded.

    Source: FastDraft (Zafrir et al. 2024, arXiv 2411.11055). Differs: the shape is searched on the machine at hand;
        divergences from sparse targets have a bucket for the rest; on-policy rows.
    """
    device = _device(settings.device)
    target = read_target(settings.target)
    budget = settings.parameters(target.parameters)
    shapes = [] if settings.start else shapes_for(settings, target, budget)
    start = _check_start(settings, target)
    check_files([*settings.corpus, *settings.more], "corpus")
    work = out / "run"
    _check_folder(out, work, resume)
    tokenizer = load_tokenizer(target)
    data = _read(settings, tokenizer)
    plan = read_plan(work, settings, data.sha256)

    model = load_model(target.name, device)
    real, ends = len(tokenizer), stops(model, tokenizer)
    if plan is None:
        if start is not None:
            shapes = [start]
        plan = make_plan(settings, target, model, data, shapes, device, real, ends, work, progress)
    draft = _first(settings, target, model, plan).to(device)
    timed = _pretrain(settings, plan, draft, data, work, progress)
    before = _measure(settings, model, draft, data, ends, real, work / "before.json", progress)
    prompts = data.prompts[: plan["samples"]]
    samples = make_samples(model, prompts, work / "samples", settings.new, ends, real, settings.seed, progress=progress)
    timed["align"] = _stage(
        settings, plan, "align", draft, samples, work, progress, teacher_for(settings, model, real, ends)
    )
    after = _measure(settings, model, draft, data, ends, real, work / "after.json", progress)
    card = {
        "script": "remnant fastdraft",
        "target": target.name,
        "target_parameters": target.parameters,
        "parameters": sum(p.numel() for p in draft.parameters()),
        "shape": plan["shape"],
        "num_draft": settings.num_draft,
        "before": before,
        "after": after,
        "plan": {name: plan[name] for name in ("pretrain_steps", "more_steps", "samples", "align_steps")},
        "search": plan["search"],
        "stages": timed,
        "samples": {"rows": len(samples), "tokens": samples.tokens},
        "settings": settings.to_dict(),
        "seconds": sum(stage["seconds"] for stage in timed.values()),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "data_sha256": data.sha256,
        "target_sha256": fingerprint(model),
        "draft_sha256": fingerprint(draft),
        "versions": versions(),
    }
    write_draft(out, draft, tokenizer, card)
    return {**card, "out": str(out)}


def _device(asked: str | None) -> str:
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(asked).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"device {asked!r}", accepted="cpu, or cuda where there is such a GPU")
    return asked


def _check_folder(out: Path, work: Path, resume: bool) -> None:
    near = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not near.is_dir():
        raise ConfigError(f"{str(near)!r} is a file", accepted="a folder")
    if not os.access(near, os.W_OK):
        raise ConfigError(f"{str(near)!r} may not be written to", accepted="a folder that may")
    if work.exists() and not resume:
        raise ConfigError(f"{str(out)!r} holds a run", do="go on with --resume, or use another folder")


def _check_start(settings: Settings, target: Target) -> Shape | None:
    """The shape of the drafter to begin with; refused where its tokens or its size do not fit."""
    if settings.start is None:
        return None
    given = read_target(str(settings.start))
    c = given.config
    if given.vocab != target.vocab:
        raise ConfigError(
            f"a drafter of {given.vocab} tokens for a target of {target.vocab}",
            accepted="the target's own vocabulary",
            do="start from a drafter that was made for this target's tokenizer",
        )
    if given.parameters >= target.parameters:
        raise ConfigError(
            f"a drafter of {given.parameters} parameters for a target of {target.parameters}",
            accepted="a drafter smaller than its target",
        )
    try:
        return Shape(
            c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads, given.head_dim,
            c.intermediate_size, str(c.model_type),
        )  # fmt: skip
    except AttributeError as error:
        raise ConfigError(f"a drafter of kind {c.model_type!r}", accepted="one with Llama's names of sizes") from error


def _read(settings: Settings, tokenizer: Any) -> Data:
    wanted = settings.samples or _PROMPTS
    if settings.target == "testbed":
        from remnant.speculative.fastdraft.testbed_data import read_testbed

        return read_testbed(wanted, settings.measured, settings.seed, settings.length)
    return read_data(
        tokenizer, settings.corpus, settings.more, settings.prompts, wanted, settings.measured, settings.seed
    )


def _first(settings: Settings, target: Target, model: Any, plan: dict[str, Any]) -> Any:
    """The drafter that training begins with."""
    if settings.start is not None:
        return load_model(str(settings.start), "cpu").requires_grad_(True)
    return first_draft(settings, target, model, Shape(**plan["shape"]))


def _pretrain(
    settings: Settings, plan: dict[str, Any], draft: Any, data: Data, work: Path, progress: Progress
) -> dict[str, dict[str, float]]:
    timed = {"pretrain": _stage(settings, plan, "pretrain", draft, data.corpus, work, progress)}
    if data.more is not None and plan["more_steps"]:
        timed["more"] = _stage(settings, plan, "more", draft, data.more, work, progress)
    return timed


def _stage(
    settings: Settings,
    plan: dict[str, Any],
    name: str,
    draft: Any,
    rows: Rows,
    work: Path,
    progress: Progress,
    teacher: Any = None,
) -> dict[str, float]:
    stage = stage_for(settings, name, plan[f"{name}_steps"], plan["shape"]["width"])
    return train_stage(draft, rows, stage, work / name, teacher, progress)


def _measure(
    settings: Settings,
    model: Any,
    draft: Any,
    data: Data,
    ends: Tensor,
    real: int,
    file: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Measure, or read what an earlier part of the run has measured at this place."""
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    found = evaluate(model, draft, data.held_out, ends, real, settings.num_draft, seed=settings.seed, progress=progress)
    write_json(file, found)
    return found
