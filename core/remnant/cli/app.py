"""The application: one command per file, joined here."""

from __future__ import annotations

from typing import Annotated

import typer

from remnant import __version__
from remnant.cli._output import Json, print_json
from remnant.cli.bench import bench
from remnant.cli.demo import demo
from remnant.cli.fastdraft import fastdraft
from remnant.cli.kinetics import kinetics
from remnant.cli.memory import memory
from remnant.cli.plan import plan
from remnant.cli.plan_draft import plan_draft
from remnant.cli.plugins import plugins
from remnant.cli.policies import policies
from remnant.cli.route import route
from remnant.cli.systems import systems
from remnant.cli.testbed import testbed
from remnant.cli.train_gates import train_gates
from remnant.cli.trim_vocab import trim_vocab

app = typer.Typer(
    name="remnant",
    help="A lasting memory for language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def version(as_json: Json = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": __version__})
    else:
        typer.echo(__version__)


app.command()(demo)
app.command()(policies)
app.command()(systems)
app.command()(plugins)
app.command()(plan)
app.command(name="plan-draft")(plan_draft)
app.command()(kinetics)
app.command()(route)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench)
app.command(name="train-gates")(train_gates)
app.command(name="trim-vocab")(trim_vocab)
app.command()(fastdraft)
app.add_typer(memory, name="memory")
app.add_typer(testbed, name="testbed")


@app.callback(invoke_without_command=True)
def start(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """A lasting memory for language models."""
    if show_version:
        typer.echo(__version__)
        raise typer.Exit
