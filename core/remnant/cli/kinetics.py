"""`remnant kinetics`: what a budget buys: a larger model, longer answers or more samples."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remnant.cli._output import Json, answer, print_table
from remnant.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remnant.kinetics import Measurement, Option, Purse, Reading, Shape
    from remnant.speculative.costs import Device

_DEFAULTS = ("dense", "block:1024:16:16")
_EFLOPS = 1e17


def kinetics(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A checkpoint's folder, its config.json, or a downloaded id; left out, two shapes that come along."
        ),
    ] = None,
    context: Annotated[int, typer.Option(min=0, help="Tokens of the prompt.")] = 512,
    budget_eflops: Annotated[
        float | None, typer.Option(help="FLOPs and memory traffic together; 1e17 without any.")
    ] = None,
    budget_seconds: Annotated[float | None, typer.Option(help="Of the device, instead of --budget-eflops.")] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="What a step reads: dense, topk:B, block:B[:PAGE[:LOCAL[:SUMMARIES]]], evict:M; several may be given."
        ),
    ] = None,
    lengths: Annotated[str, typer.Option(help="Tokens per answer, with commas.")] = "1024,2048,4096,8192,16384",
    trials: Annotated[str, typer.Option(help="Answers per prompt, with commas.")] = "1,4,16,64",
    device: Annotated[str, typer.Option(help="A preset such as h100; here measures this machine.")] = "h100",
    intensity: Annotated[float | None, typer.Option(min=0.0, help="FLOPs per byte, instead of the device's.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Prompts decoded together, to count reads of weights; left out, none.")
    ] = None,
    parameters: Annotated[list[float] | None, typer.Option(help="Used per token; one for each --model.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    kv_bytes: Annotated[float | None, typer.Option(help="Per number of the KV cache, where not as dtype.")] = None,
    accuracy: Annotated[Path | None, typer.Option(help="Measured accuracies, JSON or CSV, to choose by.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Draw what is bought into this PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Price decoding by compute and memory access: what a budget buys, a larger model or more samples."""

    def work(_: Any) -> dict[str, Any]:
        from remnant.kinetics import Purse, parse_reading, read_measurements
        from remnant.speculative.costs import device as device_of

        machine = device_of(device)
        if budget_eflops is not None and budget_seconds is not None:
            raise ConfigError("two budgets", accepted="either --budget-eflops or --budget-seconds")
        budget = _EFLOPS if budget_eflops is None else budget_eflops
        budget = budget if budget_seconds is None else budget_seconds * machine.flops
        shapes = _shapes(model or _examples(), parameters or [], dtype, kv_bytes)
        purse = Purse(budget, context, machine.ridge if intensity is None else intensity, batch)
        table = read_measurements(accuracy) if accuracy else []
        named = policy or ([one.policy.label for one in table] or _DEFAULTS)
        readings = list(dict.fromkeys(parse_reading(text) for text in named))
        counts = _counts(trials, "trials")
        return _found(purse, machine, shapes, readings, _counts(lengths, "lengths"), counts, table, chart)

    answer(as_json, work, _show)


def _shapes(models: Sequence[str], parameters: Sequence[float], dtype: str, kv_bytes: float | None) -> list[Shape]:
    """The models under short names, where these tell them apart."""
    from remnant.kinetics import read_shape

    if parameters and len(parameters) != len(models):
        raise ConfigError(f"{len(parameters)} --parameters for {len(models)} --model", accepted="one for each, or none")
    if twice := [name for name, count in Counter(models).items() if count > 1]:
        raise ConfigError(f"model {twice[0]!r} is given twice", accepted="different models")
    short = [_short(name) for name in models]
    known = Counter(short)
    return [
        read_shape(
            given,
            parameters=parameters[i] if parameters else None,
            dtype=dtype,
            kv_bytes=kv_bytes,
            name=short[i] if known[short[i]] == 1 else given,
        )
        for i, given in enumerate(models)
    ]


def _examples() -> list[str]:
    """A small and a large model to look at without a checkpoint: configurations only."""
    folder = Path(str(files("remnant.kinetics"))) / "examples"
    return [str(path) for path in sorted(folder.iterdir())]


def _short(given: str) -> str:
    path = Path(given).expanduser()
    folder = path if path.is_dir() else path.parent if path.is_file() else None
    return given if folder is None else folder.resolve().name


def _counts(text: str, option: str) -> list[int]:
    """Whole numbers with commas between them, ascending."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"{option} {text!r}", accepted="whole numbers from 1 on, as 1,4,16")
    return sorted({int(part) for part in parts})


def _found(
    purse: Purse,
    machine: Device,
    shapes: list[Shape],
    readings: list[Reading],
    lengths: list[int],
    trials: list[int],
    table: list[Measurement],
    chart: Path | None,
) -> dict[str, Any]:
    """The answer as data."""
    from remnant.kinetics import afford, best, efficient, exchange, frontier, measured

    by_length, by_trials = afford(purse, shapes, readings, lengths, trials)
    asked = [one for one in table if one.policy in readings]
    priced = measured(purse, shapes, asked, trials)
    if table and not priced:
        raise ConfigError(
            "no row of the accuracies is of these models and policies",
            accepted=[f"{shape.name} with {one.label}" for shape in shapes for one in readings],
            do=f"the rows are of {', '.join(sorted({f'{one.model} with {one.policy.label}' for one in table}))}",
        )
    chosen = best(priced, purse.budget)
    bought = [*by_length, *by_trials]
    ahead = frontier(bought)

    def row(one: Option, **flags: bool) -> dict[str, Any]:
        seconds = one.cost.eflops / machine.flops
        return {**one.to_dict(), "seconds": seconds, "spent": one.cost.eflops / purse.budget, **flags}

    rows = [row(one, frontier=flag) for one, flag in zip(bought, ahead, strict=True)]
    found: dict[str, Any] = {
        "models": [_described(shape) for shape in shapes],
        "policies": [{"name": one.label, "kind": type(one).__name__.lower(), **asdict(one)} for one in readings],
        "device": {**asdict(machine), "ridge": machine.ridge},
        "request": {**asdict(purse), "seconds": purse.budget / machine.flops, "lengths": lengths, "trials": trials},
        "by_length": rows[: len(by_length)],
        "by_trials": rows[len(by_length) :],
        "exchange": [
            {"y": y, "choices": [{"model": one.model, "policy": one.policy, "N": one.N} for one in choices]}
            for y, choices in exchange(by_length, lengths).items()
        ],
        "buys": "accuracy" if table else "tokens and samples",
        "measured": [row(one, efficient=flag) for one, flag in zip(priced, efficient(priced), strict=True)],
        "best": row(chosen) if chosen else None,
        "notes": _notes(purse, machine, shapes, readings, table),
    }
    if chart:
        from remnant.kinetics.chart import draw

        draw(bought, priced, purse.budget, chart)
        found["chart"] = str(chart)
    return found


def _described(shape: Shape) -> dict[str, Any]:
    return {
        "name": shape.name,
        "parameters": shape.parameters,
        "parameters_from": shape.source,
        "weights_bytes": shape.weights,
        "kv_element_bytes": shape.element,
        "kv_bytes_per_token": shape.kv_per_token,
        "positions": shape.positions,
        "layers": [asdict(group) for group in shape.groups],
    }


def _notes(
    purse: Purse, machine: Device, shapes: list[Shape], readings: list[Reading], table: list[Measurement]
) -> list[str]:
    """What a reader should know before believing the figures."""
    kinds = {type(one).__name__ for one in readings}
    notes = ["reading the prompt is not counted; seconds are those of the device at its peak"]
    if not table:
        notes.append(
            "no accuracies were given: the table says how many tokens and samples are bought, not how good they are"
        )
    else:
        passed = {f"{one.model} with {one.policy.label}" for one in table} - {
            f"{shape.name} with {one.label}" for shape in shapes for one in readings
        }
        notes += [f"accuracies that were not asked for: {', '.join(sorted(passed))}"] if passed else []
    if purse.batch is None:
        notes.append("reads of the weights are left out, as for very large batches; --batch counts them")
    if purse.intensity != machine.ridge:
        notes.append(f"a byte counts {purse.intensity:g} operations, not {machine.ridge:.0f} as on {machine.name}")
    if "TopK" in kinds:
        notes.append("topk finds its tokens for nothing: a lower bound, no way to serve")
    if kinds - {"Dense"}:
        notes.append("trials share the prompt's keys with dense reading only: of many trials it may be the cheapest")
    notes += [f"{one.name}: parameters are an estimate from its sizes" for one in shapes if one.source == "estimate"]
    notes += [f"{one.name}: layers with a window read it under every policy" for one in shapes if _windowed(one)]
    return notes


def _windowed(shape: Shape) -> bool:
    return any(group.span for group in shape.groups)


def _show(found: dict[str, Any]) -> None:
    """What was read, what each model and policy affords, the best of what was measured, the notes."""
    from remnant.serving.plan import size

    for one in found["models"]:
        kv = size(int(one["kv_bytes_per_token"]))
        typer.echo(f"model    {one['name']}: {one['parameters']:.4g} parameters ({one['parameters_from']}), {kv}/token")
    request, device = found["request"], found["device"]
    typer.echo(f"device   {device['name']}: {request['intensity']:.4g} FLOPs per byte")
    typer.echo(
        f"budget   {request['budget']:.4g} eFLOPs, {request['seconds']:.4g} s; prompt of {request['x']} tokens\n"
    )
    _pivot("answers, by their tokens", found["by_length"], "y", "N", request["lengths"], found)
    _pivot("tokens per answer, by answers", found["by_trials"], "N", "y", request["trials"], found)
    typer.echo("* no policy of the same model buys as much of both; + as long as the model's positions allow\n")
    if len(found["models"]) > 1:
        _exchanged(found["exchange"])
    if found["measured"]:
        _ranked(found)
    for note in found["notes"]:
        typer.echo(f"note     {note}")
    if "chart" in found:
        typer.echo(f"chart    {found['chart']}")


def _pivot(title: str, rows: list[dict[str, Any]], by: str, cell: str, columns: list[int], found: Any) -> None:
    """A line per model and policy, a column per length or number of answers."""
    values = {(row["model"], row["policy"], row[by]): row for row in rows}

    def text(row: dict[str, Any] | None) -> str:
        if row is None:
            return "-"
        return f"{row[cell]}{'*' if row['frontier'] else ''}{'+' if row['limited'] == 'positions' else ''}"

    lines: list[tuple[str, ...]] = []
    for model in found["models"]:
        for policy in found["policies"]:
            cells = [values.get((model["name"], policy["name"], column)) for column in columns]
            shares = [row["cost"]["memory"] / row["cost"]["eflops"] for row in cells if row]
            memory = f"{min(shares):.0%} to {max(shares):.0%}" if shares else ""
            lines.append((model["name"], policy["name"], *map(text, cells), memory))
    print_table((title, "", *map(str, columns), "memory's share"), lines)
    typer.echo("")


def _exchanged(found: list[dict[str, Any]]) -> None:
    """The same budget, spent on one model or on another."""
    for row in found:
        words = [f"{one['N']} of {one['model']} ({one['policy']})" for one in row["choices"]]
        typer.echo(f"either   answers of {row['y']} tokens: {' or '.join(words) or 'none'}")
    typer.echo("")


def _ranked(found: dict[str, Any]) -> None:
    """The measured options that nothing beats, and the best within the budget."""
    rows = sorted((row for row in found["measured"] if row["efficient"]), key=lambda row: row["cost"]["eflops"])
    print_table(
        ("best for its cost", "policy", "tokens", "answers", "accuracy", "eFLOPs", "of the budget"),
        [
            (row["model"], row["policy"], row["y"], row["N"], f"{row['accuracy']:.3f}",
             f"{row['cost']['eflops']:.3g}", f"{row['spent']:.1%}")
            for row in rows
        ],
    )  # fmt: skip
    typer.echo("")
    best = found["best"]
    if best is None:
        typer.echo("best     none of what was measured is within the budget")
        return
    what = f"{best['model']} with {best['policy']}, {best['N']} answers of {best['y']} tokens"
    typer.echo(f"best     {what}: {best['accuracy']:.1%} for {best['cost']['eflops']:.3g} eFLOPs")
