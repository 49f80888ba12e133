"""`remnant testbed`: the tiny trained model that the claims are measured on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remnant.cli._output import Json, answer, print_fields
from remnant.cli._parse import parse_budget, parse_options
from remnant.cli.testbed_agents import agents
from remnant.errors import unknown
from remnant.lazy import needs

if TYPE_CHECKING:
    from remnant.progress import Progress

TASKS = (
    "recall",
    "passkey-early",
    "passkey-late",
    "recurrence",
    "episodes",
    "recurrence-rare",
    "perplexity",
    "tree",
)
PRESETS = ("quick", "full")

testbed = typer.Typer(
    help="The tiny trained model: what it is, train it, measure a policy on it.",
    no_args_is_help=True,
)
testbed.command()(agents)


@testbed.command()
def info(as_json: Json = False) -> None:
    """Show the shipped model: size, context, provenance, scores."""
    answer(as_json, lambda _: _api().info(), _show_info)


@testbed.command()
def train(
    preset: Annotated[str, typer.Option(help="quick or full.")] = "full",
    out: Annotated[Path, typer.Option(help="Folder for weights and checkpoints.")] = Path("runs/testbed"),
    device: Annotated[str | None, typer.Option(help="cpu or cuda; left out, a GPU if there is one.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from a checkpoint.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    as_json: Json = False,
) -> None:
    """Train the model again; stop it and go on with --resume."""
    _one_of("preset", preset, PRESETS)

    def work(progress: Progress) -> dict[str, Any]:
        return _api().train(preset, out, device, resume, seed, progress)

    answer(as_json, work, print_fields)


@testbed.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")],
    as_json: Json = False,
) -> None:
    """Write the shipped model as an ordinary checkpoint folder, for example for 'vllm serve'."""
    answer(as_json, lambda _: _api().export(folder), print_fields)


@testbed.command(name="eval")
def evaluate(
    task: Annotated[str, typer.Option(help="One of: " + ", ".join(TASKS) + ".")] = "recall",
    policy: Annotated[str, typer.Option(help="A name from 'remnant policies'.")] = "full",
    budget: Annotated[str, typer.Option(help="Tokens (128) or a fraction (0.1, 10%).")] = "1.0",
    length: Annotated[int, typer.Option(min=16, help="Tokens per sample.")] = 1024,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    option: Annotated[list[str] | None, typer.Option(help="A policy option as key=value; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a policy: accuracy or perplexity, bytes held, bytes of a full cache, speed."""
    _one_of("task", task, TASKS)
    tokens, options = parse_budget(budget), parse_options(option or [])

    def work(progress: Progress) -> dict[str, Any]:
        return _api().evaluate(task, policy, tokens, length, n, seed, progress, **options)

    answer(as_json, work, print_fields)


def _show_info(found: dict[str, Any]) -> None:
    print_fields(found)
    scores = {k: v for k, v in found["scores"].items() if not isinstance(v, dict)}
    for name, value in found["scores"].get("baselines", {}).items():
        scores[f"perplexity of a {name} model"] = value
    long = found["scores_long"]
    sections = (
        ("Scores with the full cache", scores),
        (f"Scores at {long.get('length', 0):,} tokens", long),
        ("Provenance", found["provenance"]),
    )
    for title, fields in sections:
        if fields:
            typer.echo(f"\n{title}")
            print_fields({f"  {name}": value for name, value in fields.items()})


def _one_of(kind: str, given: str, accepted: tuple[str, ...]) -> None:
    if given not in accepted:
        raise unknown(kind, given, accepted)


def _api() -> Any:
    with needs("hf", wanted_by="remnant testbed"):
        from remnant.testbed import cli_api
    return cli_api
