"""Where a training stage stands: weights, optimizer and place, as safetensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

__all__ = ["load_state", "save_state", "write_json"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Write a file that is either the old or the new one, whenever the process dies."""
    part = file.with_name(file.name + ".tmp")
    part.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    part.replace(file)


def save_state(folder: Path, model: Any, optimizer: torch.optim.Optimizer, place: Mapping[str, Any]) -> None:
    """Save after a step. No random state is needed beside it: every step draws from its own seed.

    Args:
        folder: of the stage.
        model: the drafter.
        optimizer: AdamW over all its parameters.
        place: `step`, and whatever the stage wants to know when it goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    step = int(place["step"])
    named: dict[str, Tensor] = dict(model.named_parameters())
    moments = {f"{name}.{key}": optimizer.state[p][key] for name, p in named.items() for key in _MOMENTS}
    weights = {name: p.detach().contiguous() for name, p in named.items()}
    for kind, tensors in (("model", weights), ("optimizer", moments)):
        file = folder / f"{kind}-{step}.safetensors"
        save_file(tensors, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)
    write_json(folder / "state.json", place)  # only now does the new state count
    for old in folder.glob("*-*.safetensors"):
        if not old.stem.endswith(f"-{step}"):
            old.unlink()


def load_state(folder: Path, model: Any, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Restore the last saved state into model and optimizer.

    Returns:
        The place it was saved at; `{"step": 0}` where nothing was saved.
    """
    mark = folder / "state.json"
    if not mark.is_file():
        return {"step": 0}
    place: dict[str, Any] = json.loads(mark.read_text(encoding="utf-8"))
    step = int(place["step"])
    weights = load_file(folder / f"model-{step}.safetensors")
    moments = load_file(folder / f"optimizer-{step}.safetensors") if optimizer else {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
            if optimizer is not None:
                slot = {key: moments[f"{name}.{key}"].to(p.device) for key in _MOMENTS}
                optimizer.state[p] = {"step": torch.tensor(float(step)), **slot}
    return place
