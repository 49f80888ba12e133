"""`remnant bench`: run a benchmark of a source checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from remnant.cli._output import Json, print_json
from remnant.errors import ConfigError


def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A benchmark, e.g. quality or speed.")],
    directory: Annotated[Path, typer.Option("--dir", help="A source checkout of remnant.")] = Path(),
    as_json: Json = False,
) -> None:
    """Run benchmarks/run.py of a source checkout; further arguments go to it."""
    command = [sys.executable, str(_runner(directory)), name, *context.args]
    done = subprocess.run(command, stdout=subprocess.PIPE if as_json else None, check=False)
    if done.returncode:
        raise ConfigError(
            f"benchmark {name!r} ended with exit code {done.returncode}",
            do="its own message is above",
        )
    if as_json:
        print_json({"name": name, "command": command, "rows": _rows(done.stdout.decode())})


def _runner(directory: Path) -> Path:
    """The script of a checkout: benchmarks are not part of the installed package."""
    script = directory / "benchmarks" / "run.py"
    if not script.is_file():
        raise ConfigError(
            f"no benchmarks/run.py in {str(directory.resolve())!r}",
            accepted="a source checkout of remnant",
            do="run it there, or name it with --dir",
        )
    return script


def _rows(text: str) -> list[Any]:
    """The JSON objects among the lines that a benchmark printed."""
    lines = (line.strip() for line in text.splitlines())
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
