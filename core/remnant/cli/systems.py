"""`remnant systems`: every published system, its state and the command that shows its claim."""

from __future__ import annotations

from typing import Any

from remnant.cli._output import Json, answer, print_table

COLUMNS = ("#", "system", "state", "doors", "command")


def rows() -> list[dict[str, Any]]:
    """Every system as data, with the plugin it comes from."""
    from remnant.plugins import collect

    return [{**row.to_dict(), "plugin": plugin} for plugin, row in collect("remnant_systems")]


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    doors = (door if door in row["open_doors"] else f"({door})" for door in row["doors"])
    number, name, state = row["number"], row["name"], row["state"]
    return number, name, state, " ".join(doors), row["command"]


def systems(as_json: Json = False) -> None:
    """List the published systems; doors in brackets are planned."""
    answer(as_json, lambda _: rows(), lambda found: print_table(COLUMNS, map(_cells, found)))
