"""What `remnant testbed` calls."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

from remnant.progress import Progress, silent
from remnant.testbed.evaluate import evaluate as measure
from remnant.testbed.examples import NAMES
from remnant.testbed.model import WEIGHTS_FILE, testbed_config
from remnant.testbed.model import export as export_model
from remnant.testbed.score import write_scores
from remnant.testbed.train import train as train_model

__all__ = ["evaluate", "export", "info", "train"]

_SHOWN = ("recall_accuracy", "text")


def info() -> dict[str, Any]:
    """The shipped model: shape, where it comes from, what it scored."""
    c = testbed_config()
    shape = {
        "layers": c.num_hidden_layers,
        "width": c.hidden_size,
        "query_heads": c.num_attention_heads,
        "kv_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "vocabulary": c.vocab_size,
        "context": c.max_position_embeddings,
    }
    found = WEIGHTS_FILE.with_name("provenance.json")
    record: dict[str, Any] = json.loads(found.read_text()) if found.is_file() else {}
    return {
        "architecture": "Llama",
        "parameters": record.get("parameters"),
        **shape,
        "weights": str(WEIGHTS_FILE),
        "weights_bytes": WEIGHTS_FILE.stat().st_size if WEIGHTS_FILE.is_file() else 0,
        "tasks": list(NAMES),
        "scores": record.pop("scores", {}),
        "scores_long": record.pop("scores_long", {}),
        "provenance": record,
    }


def export(folder: Path) -> dict[str, Any]:
    """Write the shipped model as a checkpoint folder; returns where, and what is in it."""
    made = export_model(folder)
    return {"folder": str(made), "files": sorted(file.name for file in made.iterdir())}


def train(
    preset: str, out: Path, device: str | None, resume: bool, seed: int, progress: Progress = silent
) -> dict[str, Any]:
    """Train, then score what came out; returns the provenance record."""

    def report(step: int, steps: int, metrics: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {metrics[name]:.2f}" for name in _SHOWN if name in metrics)
        progress(step, steps, f"length {int(metrics['length'])}  {shown}")

    train_model(preset=preset, out=out, device=device, resume=resume, seed=seed, report=report)
    return write_scores(out, progress, n=100 if preset == "full" else 8)


def evaluate(
    task: str,
    policy: str,
    budget: int | Fraction,
    length: int,
    n: int,
    seed: int,
    progress: Progress = silent,
    **options: Any,
) -> dict[str, Any]:
    """See `remnant.testbed.evaluate.evaluate`."""
    return measure(task, policy, budget, length, n, seed, progress, **options)
