"""`remnant policies`: what can decide what stays in the KV cache."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from remnant.cli._output import Json, answer, print_table

COLUMNS = ("name", "needs", "when", "layout", "source", "claim")


def rows() -> list[dict[str, Any]]:
    """Every registered policy as data, with the plugin it comes from; needs torch."""
    from remnant.plugins import collect

    return [_row(plugin, policy) for plugin, policy in collect("remnant_policies")]


def _row(plugin: str, policy: Any) -> dict[str, Any]:
    """One policy; a third party's may leave fields out."""
    texts = {name: str(getattr(policy, name, "")) for name in COLUMNS if name not in ("needs", "when")}
    texts["when"] = _when(policy)
    return {**texts, "needs": sorted(getattr(policy, "needs", ())), "plugin": plugin}


def _when(policy: Any) -> str:
    """When a policy acts by default; a class of a third party may have no such property."""
    when = getattr(policy, "when", "")
    if isinstance(when, property):
        when = policy().when
    return when if isinstance(when, str) else ", ".join(str(trigger) for trigger in when) or "never"


def markdown() -> str:
    """The table of policies for the README."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in rows():
        cells = [f"`{row['name']}`", *_cells(row)[1:]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    needs = ", ".join(row["needs"]) or "-"
    return [needs if name == "needs" else row[name] for name in COLUMNS]


def policies(
    as_json: Json = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="As in the README.")] = False,
) -> None:
    """List the KV policies: what each needs, when it acts, where it comes from."""
    if as_markdown and not as_json:
        typer.echo(markdown(), nl=False)
        return
    answer(as_json, lambda _: rows(), lambda found: print_table(COLUMNS, map(_cells, found)))
