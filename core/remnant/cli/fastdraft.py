"""`remnant fastdraft`: train a stand-alone drafter for a target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from remnant.cli._output import Json, answer, print_table
from remnant.errors import ConfigError
from remnant.lazy import needs


def fastdraft(
    target: Annotated[str, typer.Argument(help="A checkpoint of transformers, or testbed.")],
    out: Annotated[Path, typer.Option(help="Folder of the drafter.", metavar="DIR")],
    budget: Annotated[float, typer.Option(help="Size of the drafter, as a fraction of the target's.")] = 0.125,
    budget_params: Annotated[int | None, typer.Option(min=1, help="Or in parameters.")] = None,
    corpus: Annotated[
        list[Path] | None, typer.Option(help="Text, or .jsonl with text; may be repeated.", metavar="FILE")
    ] = None,
    more: Annotated[
        list[Path] | None, typer.Option(help="Text for continued pretraining (code, say).", metavar="FILE")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="One per line, or .jsonl with prompt or messages, and domain.", metavar="FILE")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="A drafter to begin with: aligned only, unless steps are given.", metavar="DIR")
    ] = None,
    embedding: Annotated[str, typer.Option(help="Begin with the target's, made narrower, or at random.")] = "target",
    width: Annotated[int | None, typer.Option(help="Instead of the search, with --depth.")] = None,
    depth: Annotated[int | None, typer.Option(help="Instead of the search, with --width.")] = None,
    minutes: Annotated[float, typer.Option(help="For the whole run; steps and samples follow.")] = 20.0,
    pretrain_steps: Annotated[int | None, typer.Option(help="On the corpus.")] = None,
    more_steps: Annotated[int | None, typer.Option(help="On --more.")] = None,
    align_steps: Annotated[int | None, typer.Option(help="On the target's completions.")] = None,
    samples: Annotated[int | None, typer.Option(help="Completions by the target.")] = None,
    new: Annotated[int, typer.Option(help="Most tokens of a completion.")] = 64,
    loss: Annotated[str, typer.Option(help="ce, kl, tvd, ce+kl or ce+tvd.")] = "ce",
    top: Annotated[int, typer.Option(help="Tokens of the target that kl and tvd count one by one; 0: all.")] = 0,
    on_policy: Annotated[float, typer.Option(help="Fraction of rows that the drafter writes itself.")] = 0.0,
    num_draft: Annotated[int, typer.Option(help="Tokens per block.")] = 3,
    rows: Annotated[int, typer.Option(help="Rows per step.")] = 32,
    length: Annotated[int, typer.Option(help="Most tokens per row.")] = 128,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; left out, by width.")] = None,
    align_lr: Annotated[float | None, typer.Option(help="Of the alignment; left out, half of --lr.")] = None,
    pilots: Annotated[int, typer.Option(help="Shapes tried with a short training; 0: by time alone.")] = 3,
    pilot_steps: Annotated[int, typer.Option(help="Of that training.")] = 150,
    measured: Annotated[int, typer.Option(help="Held-out prompts (testbed: per domain).")] = 12,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; left out, a GPU if there is one.")] = None,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of everything.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a drafter for any target; transformers and vLLM load the folder."""
    options = dict(locals())
    for name in ("out", "resume", "as_json", "budget_params"):
        del options[name]
    options["corpus"], options["more"] = tuple(corpus or ()), tuple(more or ())
    if budget_params is not None:
        options["budget"] = float(budget_params)
    elif budget >= 1:
        raise ConfigError(f"budget {budget:g}", accepted="a fraction below 1", do="or --budget-params in parameters")

    def work(progress: Any) -> dict[str, Any]:
        with needs("hf", wanted_by="remnant fastdraft"):
            from remnant.speculative.fastdraft.run import run
            from remnant.speculative.fastdraft.settings import Settings
        return run(Settings(**options), out, resume, progress)

    answer(as_json, work, _show)


def _show(card: dict[str, Any]) -> None:
    """The shape, the figures by domain, and how to use the folder."""
    shape = card["shape"]
    share = card["parameters"] / card["target_parameters"]
    typer.echo(
        f"drafter  {card['parameters']:,} parameters ({share:.1%} of the target), layers x width "
        f"{shape['depth']} x {shape['width']}"
    )
    samples = card["samples"]
    typer.echo(f"aligned  on {samples['rows']:,} completions, {samples['tokens']:,} tokens\n")
    rows: list[tuple[str, ...]] = []
    for mode, domains in ((m, d) for m, d in card["after"].items() if m == "greedy" or m.startswith("T=")):
        for domain, now in domains.items():
            then = card["before"][mode][domain]
            rows.append(
                (
                    domain,
                    mode,
                    f"{then['acceptance']:.1%}",
                    f"{now['acceptance']:.1%}",
                    f"{now['block_efficiency']:.2f}",
                    f"{now['block_efficiency_predicted']:.2f}",
                    f"{now['mbsu']:.2f}",
                )
            )
    print_table(("domain", "decoding", "accepted before", "accepted", "tau", "predicted", "MBSU"), rows)
    typer.echo(f"\nwritten to {card['out']}; see its README.md")
