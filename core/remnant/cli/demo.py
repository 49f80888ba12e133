"""`remnant demo`: see a policy work, on the testbed or on a model and a file of your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remnant.cli._output import Json, answer, print_table
from remnant.cli._parse import parse_budget
from remnant.errors import ConfigError
from remnant.lazy import needs

if TYPE_CHECKING:
    from remnant.progress import Progress


def demo(
    model: Annotated[str | None, typer.Option(help="A checkpoint; left out, the testbed.", metavar="PATH")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A long text.", metavar="FILE")] = None,
    question: Annotated[str | None, typer.Option(help="A question about it.", metavar="TEXT")] = None,
    policy: Annotated[str, typer.Option(help="A name from 'remnant policies'.")] = "snapkv",
    budget: Annotated[str | None, typer.Option(help="Tokens (128) or a fraction (0.1, 10%).")] = None,
    out: Annotated[str, typer.Option(help="Chart of the kept positions.", metavar="PNG")] = ("remnant-demo.png"),
    as_json: Json = False,
) -> None:
    """Answer a question about a long text in bounded memory; draw what was kept."""
    if prompt_file is not None and not prompt_file.is_file():
        raise ConfigError(f"prompt file {str(prompt_file)!r} does not exist", accepted="a text file")
    tokens = None if budget is None else parse_budget(budget)

    def work(progress: Progress) -> dict[str, Any]:
        with needs("hf", wanted_by="remnant demo"):
            from remnant.testbed import demo as testbed_demo
        return testbed_demo.run(
            model=model,
            prompt_file=prompt_file,
            question=question,
            policy=policy,
            budget=tokens,
            out=out,
            progress=progress,
        )

    answer(as_json, work, _show)


def _show(found: dict[str, Any]) -> None:
    """The question, then a table per scene: what each policy answered, from how many bytes."""
    typer.echo(f"model     {found['model']}")
    typer.echo(f"text      {found['text']}  ({found['length']} tokens)")
    typer.echo(f"question  {found['question']}")
    typer.echo(f"budget    {found['budget_tokens']} tokens per KV head")
    scenes: dict[str, str] = found.get("scenes", {"": ""})
    for scene, meaning in scenes.items():
        typer.echo(f"\n{scene}: {meaning}" if scene else "")
        columns = ("policy", "answer", *(("right",) if scene else ()), "bytes", "of full", "peak", "tokens/s")
        print_table(columns, [_cells(row) for row in found["rows"] if row.get("scene", "") == scene])
    typer.echo(f"\nchart     {found['chart']}")


def _cells(row: dict[str, Any]) -> list[str]:
    right = [f"{row['right']} of {row['of']}"] if "of" in row else []
    share = f"{row['bytes'] / row['bytes_full']:.0%}"
    peak, speed = f"{row['peak_bytes']:,}", f"{row['tokens_per_second']:,.0f}"
    return [row["policy"], " ".join(row["answer"].split()), *right, f"{row['bytes']:,}", share, peak, speed]
