"""`remnant train-gates`: teach a model's cache which tokens will matter, for the policy `trimkv`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remnant.cli._output import Json, answer, print_fields
from remnant.errors import ConfigError
from remnant.lazy import needs

if TYPE_CHECKING:
    from remnant.progress import Progress


def train_gates(
    model: Annotated[str, typer.Argument(help="A checkpoint of transformers, or testbed.")],
    data: Annotated[str, typer.Option(help="A text file, or testbed.", metavar="FILE")] = "testbed",
    budget: Annotated[str, typer.Option(help="Tokens per KV head to serve; several as 64,128.")] = "64,128,256",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 400,
    out: Annotated[Path, typer.Option(help="File of the gates.", metavar="FILE")] = Path("gates.safetensors"),
    length: Annotated[int, typer.Option(min=96, help="Tokens per sample.")] = 1024,
    rows: Annotated[int, typer.Option(min=1, help="Samples per step.")] = 2,
    lr: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 1e-2,
    share: Annotated[str, typer.Option(help="layer or head, as in the policy's option.")] = "layer",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from a checkpoint beside the file.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of gates and data.")] = 0,
    as_json: Json = False,
) -> None:
    """Train retention gates; the model stays frozen. Use them: trimkv with gates=FILE."""
    budgets = _budgets(budget)

    def work(progress: Progress) -> dict[str, Any]:
        def report(step: int, total: int, losses: dict[str, float]) -> None:
            progress(step, total, "  ".join(f"{name} {value:.3f}" for name, value in losses.items()))

        return _train(
            model,
            data,
            budgets,
            steps,
            out,
            resume=resume,
            seed=seed,
            length=length,
            rows=rows,
            report=report,
            settings={"lr": lr, "share": share},
        )

    answer(as_json, work, print_fields)


def _budgets(text: str) -> list[int]:
    try:
        budgets = [int(part) for part in text.split(",")]
    except ValueError:
        budgets = [0]
    if min(budgets) < 1:
        raise ConfigError(f"budget {text!r}", accepted="tokens per KV head, as 128 or 64,128,256")
    return budgets


def _train(*arguments: Any, settings: dict[str, Any], **options: Any) -> dict[str, Any]:
    with needs("hf", wanted_by="remnant train-gates"):
        from remnant_hf.gate_run import run
        from remnant_hf.train_gates import Settings
    return run(*arguments, settings=Settings(**settings), **options)
