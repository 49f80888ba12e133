"""`remnant plan-draft`: what drafting costs in memory and gains in speed, before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from remnant.cli._output import Json, answer, print_table
from remnant.cli.plan import parse_size
from remnant.errors import ConfigError

if TYPE_CHECKING:
    from remnant.speculative.costs import Device
    from remnant.speculative.planned import Candidate
    from remnant.speculative.planner import Planner
    from remnant.speculative.sizes import Sizes

REFUSED = 2
"""Exit code when nothing fits, as of every command that is refused."""


def plan_draft(
    target: Annotated[str, typer.Option(help="A checkpoint's folder, its config.json, or a downloaded id.")],
    budget: Annotated[str, typer.Option(help="Memory for everything, as 24GiB.", metavar="SIZE")],
    draft: Annotated[str, typer.Option(help="The drafter's checkpoint, or 'lookup'.")] = "lookup",
    batch: Annotated[int, typer.Option(min=0, help="Rows at once; 0 chooses them.")] = 1,
    context: Annotated[int, typer.Option(min=1, help="Tokens per row, prompt and answer.")] = 4096,
    now: Annotated[int | None, typer.Option(min=1, help="Tokens that must fit; left out, all of them.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    device: Annotated[str, typer.Option(help="A preset such as a100-80gb; here measures this machine.")] = "a100-80gb",
    acceptance: Annotated[float, typer.Option(min=0.0, max=1.0, help="Probability of a drafted token.")] = 0.7,
    ranks: Annotated[int, typer.Option(min=1, help="Candidates per node; more than 1 plans trees.")] = 1,
    max_nodes: Annotated[int, typer.Option(min=1, help="Most tokens verified per row and pass.")] = 64,
    epsilon: Annotated[float, typer.Option(min=0.0, help="Part of the best speed given up for memory.")] = 0.04,
    kv_budget: Annotated[int | None, typer.Option(min=1, help="Tokens that an evicting cache keeps.")] = None,
    draft_context: Annotated[int | None, typer.Option(min=1, help="Tokens that the drafter reads at most.")] = None,
    chunk: Annotated[int, typer.Option(min=0, help="Tokens per pass while prompts are read.")] = 0,
    host: Annotated[str, typer.Option(help="kernels, engine or transformers: what copies what.")] = "kernels",
    weights_bytes: Annotated[str | None, typer.Option(help="Of the target.", metavar="SIZE")] = None,
    draft_weights_bytes: Annotated[str | None, typer.Option(help="Of the drafter.", metavar="SIZE")] = None,
    slack: Annotated[
        str | None, typer.Option(help="For what is not modelled; left out, as the device's framework.", metavar="SIZE")
    ] = None,
    lazy_logits: Annotated[bool, typer.Option("--lazy-logits", help="The head runs only where needed.")] = False,
    sampling: Annotated[bool, typer.Option("--sampling", help="The drafter reports whole distributions.")] = False,
    greedy: Annotated[bool, typer.Option("--greedy", help="The target takes its best token.")] = False,
    allow_larger: Annotated[bool, typer.Option("--allow-larger", help="A drafter larger than its target.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse budgets below the lower bound.")] = False,
    chart: Annotated[Path | None, typer.Option(help="Draw predicted speed against budget into this PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Plan speculative decoding: what fits into a budget, what it gains, or how many bytes are missing."""
    refused: list[bool] = []

    def work(_: Any) -> dict[str, Any]:
        from remnant.speculative.calibration import Acceptance
        from remnant.speculative.costs import Roofline
        from remnant.speculative.costs import device as device_of
        from remnant.speculative.memory_model import MemoryModel
        from remnant.speculative.planner import Planner

        if chart and chart.suffix.lower() != ".png":
            raise ConfigError(f"chart {str(chart)!r}", accepted="a path that ends in .png")
        machine = device_of(device)
        model = MemoryModel(
            target,
            draft,
            dtype,
            target_weights=_bytes(weights_bytes, "weights-bytes"),
            draft_weights=_bytes(draft_weights_bytes, "draft-weights-bytes"),
            slack=_bytes(slack, "slack") or (machine.overhead if slack is None else 0),
            kv_budget=kv_budget,
            draft_context=draft_context,
            chunk=chunk,
            host=cast("Any", host),
            sampling=sampling,
            greedy=greedy,
            allow_larger=allow_larger,
        )
        planner = Planner(
            model,
            batch or None,
            context,
            now=now,
            acceptance=Acceptance.constant(acceptance, min(32, max_nodes), ranks),
            costs=Roofline(model, machine),
            max_nodes=max_nodes,
            epsilon=epsilon,
            lazy_logits=lazy_logits,
            strict=strict,
        )
        found = _found(planner, parse_size(budget, "budget"), machine)
        refused.append(found["plan"] is None)
        if chart:
            _draw(planner, found, chart)
        return found

    answer(as_json, work, _show)
    if refused[0]:
        raise typer.Exit(REFUSED)


def _bytes(text: str | None, option: str) -> int | None:
    """Bytes from text; unlike elsewhere, none at all is a size here."""
    if text is None:
        return None
    if text.strip() == "0":
        return 0
    return parse_size(text, option)


def _found(planner: Planner, budget: int, machine: Device) -> dict[str, Any]:
    """The answer as data; a refusal stands where the plan would."""
    from remnant.speculative.planned import Plan

    made = planner.plan(budget)
    planned = isinstance(made, Plan)
    rows = made.batch if isinstance(made, Plan) else planner.batch or 1
    draft = planner.model.draft
    return {
        "target": _described(planner.model.target),
        "draft": _described(draft) if draft else {"name": "lookup", "weights": 0, "kv_bytes_per_token": 0},
        "device": {**asdict(machine), "ridge": machine.ridge},
        "request": {"budget": budget, "batch": planner.batch, "context": planner.context, "now": planner.now},
        "plan": made.to_dict() if planned else None,
        "refusal": None if isinstance(made, Plan) else {**made.to_dict(), "error": made.error().to_dict()},
        "lower_bound": _row(planner.bound()),
        "table": [_row(one) for one in planner.candidates if one.batch == rows],
        "notes": _notes(planner, rows, machine),
    }


def _described(sizes: Sizes) -> dict[str, Any]:
    return {
        "name": sizes.name,
        "weights": sizes.weights,
        "weights_from": sizes.weights_from,
        "kv_bytes_per_token": sizes.kv_per_token,
        "vocab": sizes.vocab,
    }


def _row(one: Candidate) -> dict[str, Any]:
    return {**asdict(one), "speed": one.speed}


def _notes(planner: Planner, rows: int, machine: Device) -> list[str]:
    """What a reader should know before believing the figures."""
    notes = [
        f"acceptance of {planner.table.table[0][0]:g} is assumed, not measured",
        f"times are those of {machine.name} at its peak: ratios are worth more than tokens per second",
    ]
    if planner.model.target.weights_from == "estimate":
        notes.append("no weight files were found: their size is an estimate from the configuration")
    tokens = machine.ridge / rows
    notes.append(
        f"with {rows} rows, passes are bound by arithmetic from about {tokens:.0f} tokens per row on: the more rows, "
        "the less drafting gains"
    )
    if not planner.lazy_logits:
        notes.append("logits of every node are held, as the models of transformers give them; see --lazy-logits")
    else:
        notes.append("counts on lazy logits, which generate and remnant_hf.speculate then switch on")
    positions = planner.model.target.positions
    if positions and planner.context > positions:
        notes.append(f"{planner.context} tokens are more than the {positions} that the target was made for")
    return notes


def _show(found: dict[str, Any]) -> None:
    """What was read, the plan or the refusal, the parts, the choices."""
    from remnant.serving.plan import size

    for role in ("target", "draft"):
        one = found[role]
        weights = f"{size(one['weights'])} of weights ({one['weights_from']})" if one["weights"] else "no weights"
        typer.echo(f"{role:<8} {one['name']}: {weights}, {size(one['kv_bytes_per_token'])} per token")
    plan, refusal, bound = found["plan"], found["refusal"], found["lower_bound"]
    if plan:
        shape = f"n={plan['n']}, depth={plan['depth']}, top_k={plan['top_k']}" if plan["speculate"] else "no drafting"
        typer.echo(f"plan     {shape}, {plan['batch']} rows of {plan['L_max']} tokens, {plan['kv_length']} cached")
        gain = f"{plan['tau']:.2f} tokens per pass, {plan['speedup']:.2f}x of plain decoding"
        typer.echo(f"gain     {gain}, {plan['speed']:.0f} tokens/s predicted")
        if plan["offload"]:
            typer.echo(f"offload  {size(plan['offload'])} of old turns have no place")
    else:
        typer.echo(f"refused  {size(refusal['missing_bytes'])} or {refusal['missing_bytes']} bytes are missing")
    typer.echo(f"bound    {size(bound['total'])} for drafting at its best (n={bound['n']}, {bound['speed']:.0f})\n")
    parts = (plan or refusal)["bytes"]
    print_table(("held at most", "bytes", ""), [(name, count, size(count)) for name, count in parts.items() if count])
    typer.echo("")
    kept = [row for row in found["table"] if row["n"] in (1, 2, 3, 4, 5, 8, 12, 16, 24, 32, 48, 64)]
    rows = [
        (r["n"], r["depth"], r["top_k"], f"{r['tau']:.2f}", f"{r['speed']:.0f}", size(r["total"]),
         "yes" if r["total"] <= found["request"]["budget"] else "no")
        for r in kept
    ]  # fmt: skip
    print_table(("n", "depth", "top_k", "tokens/pass", "tokens/s", "bytes", "fits"), rows)
    typer.echo("")
    for note in found["notes"]:
        typer.echo(f"note     {note}")


def _draw(planner: Planner, found: dict[str, Any], path: Path) -> None:
    """Predicted speed against budget: where it steps, where the budget lies, where the lower bound."""
    from remnant.lazy import needs

    with needs("plot", wanted_by="remnant plan-draft --chart"):
        import matplotlib
    plot: Any = matplotlib
    plot.use("Agg")
    from matplotlib import pyplot

    draw: Any = pyplot
    steps = planner.curve()
    given, bound = found["request"]["budget"], found["lower_bound"]["total"]
    end = max(steps[-1][0], given) * 1.02
    unit = 2**30 if end >= 2**30 else 2**20
    x = [one / unit for one, _ in steps] + [end / unit]
    y = [chosen.speed for _, chosen in steps]
    figure, axes = draw.subplots(figsize=(7, 4), layout="constrained")
    axes.step(x, [*y, y[-1]], where="post", label="predicted")
    axes.axvline(given / unit, color="black", linewidth=1, label="budget")
    axes.axvline(bound / unit, color="tab:red", linestyle="--", linewidth=1, label="lower bound")
    axes.axhline(y[0], color="grey", linestyle=":", linewidth=1, label="without drafting")
    axes.set_xlabel("budget, GiB" if unit == 2**30 else "budget, MiB")
    axes.set_ylabel("tokens per second, all rows")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{found['target']['name']} with {found['draft']['name']}", fontsize=9)
    axes.legend(loc="lower right")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise ConfigError(f"chart {str(path)!r} cannot be written: {error}", accepted="a path that may be") from error
    finally:
        draw.close(figure)
    found["chart"] = str(path)
