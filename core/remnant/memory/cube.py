"""A memory as a file to carry: JSON Lines with a schema version and a checksum. Nothing in it is code.

Line 1 is the header, then one line per record, then a footer with the number of records and the
SHA-256 of all lines before it. A file is checked whole before anything of it is written.

Source: `MemCube` of MemOS (Li et al. 2025, arXiv 2507.03724), its text store. Differs: records of
one scope without their history; no activation or parametric store.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remnant.errors import ConfigError
from remnant.memory.context import Context
from remnant.memory.record import Record
from remnant.progress import Progress, silent

FORMAT, SCHEMA = "remnant-memcube", 1
STATUSES = ("active", "archived", "quarantined")


@dataclass(frozen=True)
class Cube:
    """A cube file that was read and checked.

    Args:
        header: its first line.
        records: in order; their ids are kept, their scope is where they came from.
    """

    header: dict[str, Any]
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Imported:
    """What an import did: ids that were added, and ids that were here already."""

    added: tuple[str, ...]
    skipped: tuple[str, ...]


def write_cube(c: Context, path: Path, progress: Progress = silent) -> int:
    """Write every record that is not deleted; the file appears whole or not at all. How many."""
    header = {
        "format": FORMAT,
        "schema": SCHEMA,
        "scope": c.scope,
        "strategy": {"name": c.strategy.name, "version": c.strategy.version},
        "created": c.clock(),
    }
    counts = c.store.count(c.scope)
    total = sum(counts.get(status, 0) for status in STATUSES)
    hashed, count = hashlib.sha256(), 0
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for data in (header, *(_line(record) for record in _all(c))):
                line = json.dumps(data, ensure_ascii=True, sort_keys=True) + "\n"
                hashed.update(line.encode())
                file.write(line)
                progress(count, total, "writing")
                count += 1
            file.write(json.dumps({"records": count - 1, "sha256": hashed.hexdigest()}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count - 1


def read_cube(path: Path, progress: Progress = silent) -> Cube:
    """Read and check a cube.

    Raises:
        ConfigError: it is not a cube, has another schema, was cut off, or its checksum is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        parsed: list[Any] = []
        for line in lines:
            parsed.append(json.loads(line))
            progress(len(parsed), len(lines), "reading")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a cube: {error}", accepted="a file that `export` wrote") from error
    if len(parsed) < 2 or not all(isinstance(line, dict) for line in parsed) or parsed[0].get("format") != FORMAT:
        raise ConfigError(f"{path} is not a cube", accepted="a file that `export` wrote")
    if parsed[0].get("schema") != SCHEMA:
        raise ConfigError(f"{path} has schema {parsed[0].get('schema')}", accepted=str(SCHEMA), do="update remnant")
    checksum = hashlib.sha256("".join(lines[:-1]).encode()).hexdigest()
    if parsed[-1] != {"records": len(parsed) - 2, "sha256": checksum}:
        raise ConfigError(f"{path} was changed or cut off: its checksum is wrong", do="export it again")
    return Cube(parsed[0], tuple(Record.from_dict(line) for line in parsed[1:-1]))


def new_records(c: Context, cube: Cube) -> tuple[list[Record], list[str]]:
    """The cube's records that are not here, and the ids of those that are.

    Raises:
        ConfigError: an id is here with another meaning.
    """
    here = c.store.get(c.scope, [record.id for record in cube.records])
    for record in cube.records:
        if record.id in here and here[record.id].meaning() != record.meaning():
            raise ConfigError(f"record {record.id!r} is here and differs", do="import into another scope")
    return [record for record in cube.records if record.id not in here], list(here)


def _line(record: Record) -> dict[str, Any]:
    return {name: value for name, value in record.to_dict().items() if name != "scope"}


def _all(c: Context) -> Iterator[Record]:
    after = ""
    while page := c.store.page(c.scope, statuses=STATUSES, after=after):
        yield from page
        after = page[-1].id
