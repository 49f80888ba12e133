"""What every command shares: JSON or a table, progress, errors."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from remnant.errors import RemnantError
from remnant.progress import Progress, silent
from remnant.text import visible

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

_PIPE_WIDTH = 1000  # columns; so wide that no cell is folded

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def answer(as_json: bool, work: Callable[[Progress], T], show: Callable[[T], None]) -> None:
    """Do the work of a command and print its result.

    Whatever the work itself prints goes to stderr, so that stdout holds the result alone.

    Args:
        as_json: print the result as JSON and draw no progress.
        work: computes the result; gets the function it reports progress to.
        show: prints the result for people.
    """
    with redirect_stdout(sys.stderr), progress_bar(as_json) as progress:
        result = work(progress)
    if as_json:
        print_json(result)
    else:
        show(result)


def print_json(data: Any) -> None:
    """Print data on stdout as one JSON document; numbers that JSON does not have are null."""
    sys.stdout.write(json.dumps(_plain(data), indent=2, default=str, allow_nan=False) + "\n")


def _plain(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: _plain(value) for key, value in cast("Mapping[Any, Any]", data).items()}
    if isinstance(data, (list, tuple)):
        return [_plain(value) for value in cast("Sequence[Any]", data)]
    return data


def print_error(error: RemnantError, as_json: bool) -> None:
    """Print an error: a line on stderr, or an object `{"error": ...}` on stdout."""
    if as_json:
        print_json({"error": error.to_dict()})
    else:
        sys.stderr.write(f"remnant: {visible(str(error), lines=False)}\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on stdout, cells as they are; in a pipe it is as wide as its content."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(visible(str(cell))) for cell in row))
    stdout().print(table)


def stdout() -> Console:
    """Where people read results; in a pipe it folds nothing."""
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def print_fields(fields: dict[str, Any]) -> None:
    """Print the fields of one result, a line each; nested ones are left to `--json`."""
    plain = {name: value for name, value in fields.items() if not isinstance(value, (dict, list))}
    width = max(map(len, plain), default=0)
    for name, value in plain.items():
        text = f"{value:.4g}" if isinstance(value, float) else value
        sys.stdout.write(f"{name:<{width}}  {visible(str(text))}\n")


@contextmanager
def progress_bar(quiet: bool) -> Generator[Progress, None, None]:
    """A progress bar on stderr, as a function to report to; silent when nobody is watching."""
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def report(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)

        yield report
