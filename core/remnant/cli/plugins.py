"""`remnant plugins`: what is ready, what is off, and what fixes it."""

from __future__ import annotations

from remnant.cli._output import Json, answer, print_table

COLUMNS = ("name", "state", "reason", "install")


def rows() -> list[dict[str, str]]:
    """Every known host and third-party plugin as data."""
    from remnant.plugins import status

    return [row.to_dict() for row in status()]


def plugins(as_json: Json = False) -> None:
    """List the plugins: ready, off or planned, and the command that fixes it."""
    answer(
        as_json,
        lambda _: rows(),
        lambda found: print_table(COLUMNS, ([row[name] for name in COLUMNS] for row in found)),
    )
